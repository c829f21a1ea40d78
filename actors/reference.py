"""The reference role: what the frozen policy would have given each sampled token.

Owns batching of sequences under a token budget, and the numerically careful log-softmax. Knows
nothing of KL estimators, which belong to the objective, nor of who asks.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch

from actors.local_model import LOCAL, require_folder
from safeladder.errors import EnvironmentUnfitError
from safeladder.images import PromptImage
from safeladder.ports import PayloadStore, TokenScorer
from safeladder.records import Floats, GroupKey, RolloutGroup, Tokens
from vision.family import VisionFamily, family_of
from vision.sequences import later_inputs, model_class, position_behind, whole_inputs

logger = logging.getLogger(__name__)

HEAD_ROWS = 512
"""Positions whose logits exist at a time: bounds memory at HEAD_ROWS x vocabulary floats."""


class LoadableScorer(TokenScorer, Protocol):
    """A scorer with a life: it takes memory at start and gives it back at close."""

    async def start(self) -> None:
        """Load the model."""
        ...

    async def close(self) -> None:
        """Free it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceScored:
    """One group is priced."""

    key: GroupKey
    attempt: int
    payload: Any
    """Handle of the tuple of log-probs: one [T] array for each completion, in their order."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceFailure:
    """One group could not be priced. Data, not an exception."""

    key: GroupKey
    attempt: int
    cause: Literal["payload_lost", "scorer_error"]
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceStatus:
    """What one replica of the reference has done."""

    name: str
    groups_in_flight: int
    groups_scored: int
    busy_s: float
    """Seconds of scoring since start, waiting for the worker thread included."""
    pid: int


class TransformersScorer:
    """``ports.TokenScorer`` on a plain Hugging Face model, of text or of text and images.

    Sequences with one prompt share its pass: the prompt is read once, then its completions in
    batches of at most ``batch_tokens`` tokens, prompt and padding included (a longer single
    sequence is a batch of its own). Logits exist only for the positions that predict a sampled
    token. All work happens in one thread.
    """

    def __init__(
        self,
        model_path: Path,
        dtype: str = "float32",
        batch_tokens: int = 4096,
        threads: int = 1,
        device: str = "cpu",
    ) -> None:
        self._model_path = model_path
        self._dtype = dtype
        self._batch_tokens = batch_tokens
        self._threads = threads
        self._device = torch.device(device)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scorer")
        self._model: Any = None
        self._family: VisionFamily | None = None

    async def start(self) -> None:
        """Load the model. Raises ``EnvironmentUnfitError`` for an architecture that does more to
        its logits than its output layer."""
        await asyncio.get_running_loop().run_in_executor(self._worker, self._load)

    async def logprobs(
        self,
        sequences: Sequence[tuple[Tokens, Tokens]],
        temperature: float,
        images: Sequence[PromptImage] = (),
    ) -> list[Floats]:
        """See ``ports.TokenScorer.logprobs``; temperature 0 (greedy) stands for 1."""
        if self._model is None:
            raise RuntimeError("the scorer is not started")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._worker, self._score, sequences, temperature, tuple(images)
        )

    async def close(self) -> None:
        """End the worker thread and drop the model."""
        await asyncio.to_thread(self._worker.shutdown, cancel_futures=True)
        self._model = None

    @torch.inference_mode()
    def _load(self) -> None:
        torch.set_num_threads(self._threads)
        require_folder(self._model_path)
        self._family = family_of(self._model_path)
        model = (
            model_class(self._model_path)
            .from_pretrained(self._model_path, dtype=getattr(torch, self._dtype), **LOCAL)
            .eval()
        )
        ids = torch.tensor([[0, 1]])
        hidden = model.base_model(input_ids=ids).last_hidden_state
        if not torch.equal(model.get_output_embeddings()(hidden), model(input_ids=ids).logits):
            raise EnvironmentUnfitError(
                f"{type(model).__name__} in {self._model_path} changes its logits after the "
                "output layer; the scorer does not know how"
            )
        self._model = model.to(self._device)

    def _score(
        self,
        sequences: Sequence[tuple[Tokens, Tokens]],
        temperature: float,
        images: tuple[PromptImage, ...],
    ) -> list[Floats]:
        families: dict[bytes, list[int]] = {}
        for index, (prompt, _) in enumerate(sequences):
            families.setdefault(prompt.tobytes(), []).append(index)
        found: dict[int, Floats] = {}
        for members in families.values():
            answers = [sequences[k][1] for k in members]
            prompt = sequences[members[0]][0]
            scored = self._score_family(prompt, answers, temperature or 1.0, images)
            found.update(zip(members, scored, strict=True))
        return [found[k] for k in range(len(sequences))]

    @torch.inference_mode()
    def _score_family(
        self,
        prompt: Tokens,
        answers: Sequence[Tokens],
        temperature: float,
        images: tuple[PromptImage, ...],
    ) -> list[Floats]:
        """Answers to one prompt: it and its images are read once, keys and values serve all."""
        ids = torch.from_numpy(prompt.astype(np.int64))[None]
        inputs = whole_inputs(self._family, self._model, ids, prompt, images)
        read = self._model.base_model(**inputs, use_cache=True)
        first = position_behind(self._family, prompt, images)
        found: dict[int, Floats] = {}
        lengths = [prompt.size + tokens.size for tokens in answers]
        for batch in batches_under(lengths, self._batch_tokens):
            cache = copy.deepcopy(read.past_key_values)
            chosen = [answers[k] for k in batch]
            last = read.last_hidden_state[:, -1:]
            scored = self._score_batch(last, cache, chosen, temperature, first)
            found.update(zip(batch, scored, strict=True))
        return [found[k] for k in range(len(answers))]

    def _score_batch(
        self, last: torch.Tensor, cache: Any, answers: list[Tokens], temperature: float, first: int
    ) -> list[Floats]:
        """``last`` [1, 1, H] is the prompt's last hidden state, ``cache`` (used up) all of them;
        the answers' positions begin at ``first``."""
        rows, width = len(answers), max(tokens.size for tokens in answers)
        prompt_size = cache.get_seq_length()
        targets = torch.zeros(rows, width, dtype=torch.long)
        is_read = torch.zeros(rows, width, dtype=torch.bool)
        for row, tokens in enumerate(answers):
            targets[row, : tokens.size] = torch.from_numpy(tokens)
            is_read[row, : tokens.size] = True
        targets, is_read = targets.to(self._device), is_read.to(self._device)
        hidden = last.expand(rows, 1, -1)
        if width > 1:  # the last token is only predicted, never read
            cache.batch_repeat_interleave(rows)
            seen = torch.cat([is_read.new_ones(rows, prompt_size), is_read[:, :-1]], dim=1).long()
            read = later_inputs(self._family, self._model, targets[:, :-1], first)
            after = self._model.base_model(
                **read, attention_mask=seen, past_key_values=cache
            ).last_hidden_state
            hidden = torch.cat([hidden, after], dim=1)
        prices = self._price(hidden[is_read], targets[is_read], temperature)
        return np.split(prices, np.cumsum([tokens.size for tokens in answers])[:-1])

    def _price(self, hidden: torch.Tensor, targets: torch.Tensor, temperature: float) -> Floats:
        """Log-probs [N] of ``targets`` [N] from the hidden states [N, H] that predict them."""
        head = self._model.get_output_embeddings()
        prices = np.empty(targets.numel(), dtype=np.float32)
        for start in range(0, targets.numel(), HEAD_ROWS):
            rows = slice(start, start + HEAD_ROWS)
            logprobs = torch.log_softmax(head(hidden[rows]).float() / temperature, dim=-1)
            prices[rows] = logprobs.gather(1, targets[rows, None]).squeeze(1).cpu().numpy()
        return prices


def batches_under(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices in batches of similar length, each with rows x longest <= ``budget`` tokens; a
    sequence above the budget is alone.

    >>> batches_under([5, 1, 6, 2], budget=12)
    [[1, 3], [0, 2]]
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        # In rising order the newest is the longest.
        if batches and (len(batches[-1]) + 1) * lengths[index] <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


class ReferenceActor:
    """One replica of the frozen policy. All public methods are coroutines; none raises because
    of data."""

    def __init__(
        self, name: str, scorer: LoadableScorer, store: PayloadStore, temperature: float
    ) -> None:
        self._name = name
        self._scorer = scorer
        self._store = store
        self._temperature = temperature
        self._in_flight = 0
        self._scored = 0
        self._busy_s = 0.0

    async def start(self) -> ReferenceStatus:
        """Load the model; errors of the environment travel."""
        await self._scorer.start()
        return await self.status()

    async def score(
        self, payload_handle: Any, key: GroupKey, attempt: int
    ) -> ReferenceScored | ReferenceFailure:
        """Price all completions of the group behind the handle."""
        self._in_flight += 1
        started = time.monotonic()
        try:
            group: RolloutGroup = await self._store.get(payload_handle)
            pairs = [(c.prompt_tokens, c.tokens) for c in group.completions]
            logprobs = await self._scorer.logprobs(pairs, self._temperature, group.images)
            payload = await self._store.put(tuple(logprobs))
        except KeyError as error:
            return ReferenceFailure(
                key=key, attempt=attempt, cause="payload_lost", detail=f"no payload {error}"
            )
        except Exception as error:  # noqa: BLE001 - here a failure becomes data
            logger.warning("%s: group %s not scored: %s", self._name, key, error)
            detail = f"{type(error).__name__}: {error}"
            return ReferenceFailure(key=key, attempt=attempt, cause="scorer_error", detail=detail)
        finally:
            self._in_flight -= 1
        seconds = time.monotonic() - started
        self._scored += 1
        self._busy_s += seconds
        return ReferenceScored(key=key, attempt=attempt, payload=payload, seconds=seconds)

    async def status(self) -> ReferenceStatus:
        """A snapshot; costs nothing."""
        return ReferenceStatus(
            name=self._name,
            groups_in_flight=self._in_flight,
            groups_scored=self._scored,
            busy_s=self._busy_s,
            pid=os.getpid(),
        )

    async def close(self) -> None:
        """Free the model."""
        await self._scorer.close()
