"""A trained sequence classifier as verifier: text in, one label of its vocabulary out.

Owns the model (``AutoModelForSequenceClassification``) and its batches. Does not know where its
labels come from.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from actors.local_model import LOCAL, require_folder
from rewards.completers import Batches
from rewards.judging import Judgment, SampleVerifier, UnjudgedError
from rewards.label_scores import judge_by_logprobs
from rewards.text_classifier import Part, parts_of
from safeladder.config import Share
from safeladder.errors import ConfigError, VerifierUnavailableError
from safeladder.records import InvalidCause, ScoreRequest

Texts = tuple[str, ...]


class SequenceClassifier(SampleVerifier):
    """Scores the visible answer by a Hugging Face sequence classifier.

    ``path``: its folder. ``scores``: label → score, for every label of the model. ``inputs``: one
    part of the sample, or two that are read as a pair. ``score``: ``prob`` is the expected score,
    ``hard`` that of one label; the better of two must reach ``threshold``. A sample of more than
    ``max_tokens`` tokens, or with images, is INVALID(abstain): nothing is cut.
    """

    def __init__(
        self,
        *,
        principle: str,
        path: Path,
        scores: dict[str, Share],
        inputs: tuple[Part, ...] = ("question", "answer"),
        score: Literal["prob", "hard"] = "prob",
        threshold: Share = 0.5,
        max_tokens: PositiveInt = 512,
        dtype: str = "float32",
        threads: PositiveInt = 1,
        batch_size: PositiveInt = 16,
        timeout_s: PositiveFloat = 60.0,
    ) -> None:
        if not 1 <= len(inputs) <= 2:
            raise ValueError(f"inputs must name one or two parts, got {list(inputs)}")
        options = {
            "path": str(path), "scores": scores, "inputs": inputs, "score": [score, threshold],
            "max_tokens": max_tokens, "dtype": dtype,
        }  # fmt: skip
        super().__init__(principle, options)
        self._path = path
        self._scores = scores
        self._inputs = inputs
        self._score: Literal["prob", "hard"] = score
        self._threshold = threshold
        self._max_tokens = max_tokens
        self._dtype = dtype
        self._threads = threads
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="classifier")
        self._batches: Batches[Texts, list[float]] = Batches(self._ask, timeout_s, batch_size)
        self._model: Any = None
        self._tokenizer: Any = None

    async def start(self) -> None:
        """Load the model. Raises ``VerifierUnavailableError`` if that fails, ``ConfigError`` if its
        labels are not those of ``scores``."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._worker, self._load)
        except ConfigError:
            raise
        except Exception as error:
            detail = f"{type(error).__name__}: {error}"
            raise VerifierUnavailableError(f"the classifier does not start: {detail}") from error

    async def close(self) -> None:
        """End the worker thread and drop the model."""
        self._batches.close()
        await asyncio.to_thread(self._worker.shutdown, cancel_futures=True)
        self._model = None

    async def judge_sample(self, request: ScoreRequest) -> Judgment:
        """Evidence lists the probabilities."""
        if self._model is None:
            raise VerifierUnavailableError("the classifier is not started")
        if request.images:
            raise UnjudgedError(InvalidCause.ABSTAIN, "this classifier reads text only")
        texts = tuple(parts_of(request, self._inputs).values())
        size = len(self._tokenizer(*texts)["input_ids"])
        if size > self._max_tokens:
            detail = f"{size} tokens, the limit is {self._max_tokens}"
            raise UnjudgedError(InvalidCause.ABSTAIN, detail)
        logprobs = await self._batches.ask(texts)
        scores = {label: self._scores[label] for label in self._model.config.id2label.values()}
        return judge_by_logprobs(logprobs, scores, self._score, self._threshold)

    async def _ask(self, batch: Sequence[Texts]) -> list[list[float]]:
        return await asyncio.get_running_loop().run_in_executor(self._worker, self._read, batch)

    @torch.inference_mode()
    def _read(self, batch: Sequence[Texts]) -> list[list[float]]:
        columns = [list(column) for column in zip(*batch, strict=True)]
        inputs = self._tokenizer(*columns, padding=True, return_tensors="pt")
        logits = self._model(**inputs).logits.float()
        rows: list[list[float]] = logits.log_softmax(-1).tolist()
        return rows

    def _load(self) -> None:
        torch.set_num_threads(self._threads)
        require_folder(self._path)
        self._tokenizer = AutoTokenizer.from_pretrained(self._path, local_files_only=True)
        model = AutoModelForSequenceClassification.from_pretrained(
            self._path, dtype=getattr(torch, self._dtype), **LOCAL
        ).eval()
        known = set(model.config.id2label.values())
        if known != set(self._scores):
            raise ConfigError(
                f"principles.{self.principle}.options.scores: the labels of {self._path} are "
                f"{sorted(known)}"
            )
        self._model = model
