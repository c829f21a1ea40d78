"""Roles that take a known time and compute nothing: what is left of a step is the system's own.

The rollout, verifier and reference roles are the real ones around engines that sleep; the learner
reads its payloads as the real one does, and sleeps. Each engine works on one thing after another,
so that its time for a step is known: the number of things times the time for one. Payloads are made
once.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np

from actors.reference import ReferenceActor
from actors.rollout import RolloutActor
from cluster.roles import Builders
from learners.payloads import read_payloads
from safeladder.config import Config
from safeladder.engine_profile import EngineLoad, EngineProfile
from safeladder.images import PromptImage
from safeladder.partials import PartialCompletion
from safeladder.ports import PayloadStore, RawTensors
from safeladder.records import (
    Completion,
    Floats,
    Prompt,
    Sampling,
    ScoreRequest,
    StepPayloadsLost,
    StepReport,
    TensorSpec,
    Tokens,
    TrainOrder,
    Verdict,
    VerdictStatus,
    WeightManifest,
)
from safeladder.tensors import checksum
from safeladder.weight_payload import WeightPayload

PROMPT_TOKENS = 64
WEIGHT_BYTES = 1 << 20


class Timed:
    """Work of a known length, one piece after another: a piece that comes while another is being
    worked on waits. What the event loop oversleeps is caught up."""

    def __init__(self) -> None:
        self._free_at = 0.0

    async def work(self, seconds: float) -> None:
        """Return when this piece is done."""
        now = time.monotonic()
        self._free_at = max(now, self._free_at) + seconds
        await asyncio.sleep(self._free_at - now)


class TimedEngine:
    """``ports.RolloutEngine``: a group takes ``group_s``."""

    def __init__(self, group_s: float) -> None:
        self._group_s = group_s
        self._time = Timed()
        self.served_version = 0

    async def start(self) -> None:
        """Nothing to load."""

    async def look(self, prompt: Prompt) -> tuple[PromptImage, ...]:
        """Sees nothing."""
        return ()

    async def generate(
        self,
        request_id: str,
        prompt: Prompt,
        sampling: Sampling,
        begun: Sequence[PartialCompletion] | None = None,
        images: Sequence[PromptImage] = (),
    ) -> AsyncIterator[Completion | PartialCompletion]:
        """Equal completions, of as many tokens as are allowed."""
        await self._time.work(self._group_s)
        for index in range(sampling.num_samples):
            yield _completion(index, sampling.max_new_tokens, self.served_version)

    async def interrupt(self, request_id: str) -> None:
        """Ends as it would have."""

    async def pause(self) -> None:
        """Nothing runs that could be disturbed."""

    async def load(self, manifest: WeightManifest, tensors: RawTensors) -> None:
        """Serve the version from the next token on."""
        assert {spec.name for spec in manifest.tensors} == set(tensors), "other tensors came"
        self.served_version = manifest.version

    async def resume(self) -> None:
        """See ``pause``."""

    def limits(self) -> EngineProfile:
        """Room for whatever it may be given."""
        return EngineProfile(kv_tokens=1 << 40, max_sequences=1 << 20)

    def occupancy(self) -> EngineLoad:
        """There is always room."""
        return EngineLoad(kv_share=0.0, running=0, waiting=0, preemptions=0)

    async def close(self) -> None:
        """Nothing to end."""


class TimedVerifier:
    """``ports.Verifier``: a call takes ``call_s``; siblings get different scores."""

    name = "benchmarks.timed_roles:TimedVerifier"
    version = "1"

    def __init__(self, principle: str, *, call_s: float) -> None:
        self._principle = principle
        self._call_s = call_s
        self._time = Timed()

    async def start(self) -> None:
        """Nothing to load."""

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Verdict]:
        """OK for all."""
        await self._time.work(self._call_s)
        return [
            Verdict(
                sample_id=request.sample_id,
                principle=self._principle,
                verifier=self.name,
                verifier_version=self.version,
                status=VerdictStatus.OK,
                score=(index + 1) / (len(requests) + 1),
            )
            for index, request in enumerate(requests)
        ]

    async def close(self) -> None:
        """Nothing to end."""


class TimedScorer:
    """``ports.TokenScorer``: a group takes ``group_s``."""

    def __init__(self, group_s: float) -> None:
        self._group_s = group_s
        self._time = Timed()

    async def start(self) -> None:
        """Nothing to load."""

    async def logprobs(
        self,
        sequences: Sequence[tuple[Tokens, Tokens]],
        temperature: float,
        images: Sequence[PromptImage] = (),
    ) -> list[Floats]:
        """Of every token the same."""
        await self._time.work(self._group_s)
        return [_logprobs(tokens.size) for _, tokens in sequences]

    async def close(self) -> None:
        """Nothing to end."""


class TimedLearner:
    """The learner's role: a step takes ``step_s`` once its payloads are read. Writes no batch: that
    is a part of the work that the sleep stands for."""

    def __init__(self, store: PayloadStore, step_s: float) -> None:
        self._store = store
        self._step_s = step_s
        self._weights = {"weights": np.zeros(WEIGHT_BYTES, np.uint8)}
        self._spec = TensorSpec(
            name="weights",
            dtype="float32",
            shape=(WEIGHT_BYTES // 4,),
            checksum=checksum(self._weights["weights"]),
        )

    async def rendezvous(self) -> tuple[str, int]:
        """There are no other ranks."""
        return "127.0.0.1", 0

    async def start(self, **_: object) -> int:
        """Nothing to load."""
        return os.getpid()

    async def train(self, order: TrainOrder) -> StepReport | StepPayloadsLost:
        """Read all, check that it is what was ordered, and take the time."""
        ordered_at = time.monotonic()
        read = await read_payloads(self._store, order.groups)
        lost = [g for g, payload in zip(order.groups, read, strict=True) if payload is None]
        if lost:
            groups = tuple((group.key, group.attempt) for group in lost)
            return StepPayloadsLost(step=order.step, groups=groups)
        for group, payload in zip(order.groups, read, strict=True):
            assert payload is not None, f"{group.key} is lost"
            assert (payload[0].key, payload[0].attempt) == (group.key, group.attempt)
        began = time.monotonic()
        await asyncio.sleep(self._step_s)
        ended = time.monotonic()
        times = {"ordered_at": ordered_at, "began_at": began, "ended_at": ended}
        return StepReport(step=order.step, version=order.step, metrics=times, seconds=ended - began)

    async def publish(self, version: int, fence: int) -> tuple[WeightManifest, WeightPayload]:
        """The same bytes as another version."""
        manifest = WeightManifest(version=version, fence=fence, tensors=(self._spec,))
        return manifest, WeightPayload(chunks=(await self._store.put(self._weights),))

    async def save_checkpoint(self, parent: Path, step: int, **_: object) -> Path:
        """There is nothing to save."""
        return parent / f"step-{step}"


def timed_builders(*, group_s: float, priced_s: float, step_s: float) -> Builders:
    """Builders of roles that take these times for a group, a group's log-probs and a step."""
    return Builders(
        rollout=partial(_build_rollout, group_s),
        reference=partial(_build_reference, priced_s),
        learner=partial(_build_learner, step_s),
    )


def _build_rollout(
    group_s: float, *, store: PayloadStore, name: str, config: Config, fleet: str
) -> RolloutActor:
    return RolloutActor(name, TimedEngine(group_s), store)


def _build_reference(
    priced_s: float, *, store: PayloadStore, name: str, config: Config, model_path: Path
) -> ReferenceActor:
    return ReferenceActor(name, TimedScorer(priced_s), store, config.rollout.temperature)


def _build_learner(
    step_s: float, *, store: PayloadStore, rank: int, config: Config
) -> TimedLearner:
    return TimedLearner(store, step_s)


@cache
def _template(index: int, num_tokens: int) -> Completion:
    rng = np.random.default_rng(index)
    return Completion(
        index=index,
        prompt_tokens=_prompt_tokens(),
        tokens=rng.integers(0, 50_000, num_tokens, np.int32),
        behavior_logprobs=-rng.random(num_tokens, np.float32),
        token_versions=np.zeros(num_tokens, np.int32),
        text="x" * 256,
        finish_reason="length",
    )


@cache
def _prompt_tokens() -> Tokens:
    return np.arange(PROMPT_TOKENS, dtype=np.int32)


def _completion(index: int, num_tokens: int, version: int) -> Completion:
    versions = np.full(num_tokens, version, np.int32)
    return replace(_template(index, num_tokens), token_versions=versions)


@cache
def _logprobs(num_tokens: int) -> Floats:
    return np.full(num_tokens, -1.0, np.float32)
