"""The methods of ``verifier.proto``: from an envelope to verdicts and back.

Owns what a call passes between the guard and the verifier: limits of the envelope, shedding, the
deadline, equal work done once. Does not know who calls.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from cluster import wire
from cluster.batching import Batcher
from cluster.load_shedding import Pace
from cluster.protos import verifier_pb2
from cluster.service_metrics import ServiceMetrics
from cluster.shared_answers import SharedAnswers
from cluster.verifier_refusals import Reason, RefusedError
from rewards.deadline import close_with_deadline
from rewards.judging import RuleVerifier
from safeladder.ports import Verifier
from safeladder.records import ScoreRequest, Verdict

MAX_DEADLINE_S = 3600.0
"""Upper bound of a call's time, also for a caller that sets no deadline."""
MIN_BUDGET_S = 0.02
"""A call with less time than this left is refused: nothing could be scored in it."""
LARGE_BODY_BYTES = 64 * 1024
"""Longer bodies are read on a thread: the heaviest takes a third of a second, in which other calls
go on."""
MAX_NAME_CHARS = 256
"""Of request id, idempotency key and principle: they are echoed and kept."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """One principle's verifier, and how it is asked."""

    verifier: Verifier
    batcher: Batcher
    pace: Pace

    @cached_property
    def quick_rule(self) -> RuleVerifier | None:
        """The verifier, if it judges without a thread."""
        rule = self.verifier
        return rule if isinstance(rule, RuleVerifier) and rule.runs_inline else None


class VerifierMethods:
    """Answers ``Describe`` and ``Score``; refuses by raising ``RefusedError``."""

    def __init__(
        self, served: Mapping[str, Served], max_concurrent: int, metrics: ServiceMetrics
    ) -> None:
        self._served = served
        self._max_concurrent = max_concurrent
        self._metrics = metrics
        self._num_running = 0
        self._answers = SharedAnswers()
        metrics.watch("running_calls", "Calls being scored.", lambda: self._num_running)
        metrics.watch("waiting_samples", "Samples waiting for a batch to fill.", self._num_waiting)
        metrics.watch("stuck_calls", "Calls left behind that still run.", self._num_stuck)
        metrics.watch("kept_bytes", "Size of kept answers.", lambda: self._answers.num_bytes)

    async def Describe(self, request: Any, context: Any) -> Any:
        """Name and version of the verifier of a principle."""
        del context
        verifier = self._find(request).verifier
        self._metrics.count_call(request.principle)
        return verifier_pb2.DescribeResponse(
            schema_version=wire.SCHEMA_VERSION,
            principle=request.principle,
            verifier=verifier.name,
            verifier_version=verifier.version,
        )

    async def Score(self, request: Any, context: Any) -> Any:
        """Verdicts of a batch, as many and in the same order."""
        started_s = time.monotonic()
        served = self._find(request)
        if (
            len(request.request_id) > MAX_NAME_CHARS
            or len(request.idempotency_key) > MAX_NAME_CHARS
        ):
            text = f"request_id and idempotency_key have at most {MAX_NAME_CHARS} characters"
            raise RefusedError(Reason.MALFORMED_BODY, text)
        budget_s = _budget_s(context.time_remaining())
        if self._num_running >= self._max_concurrent:
            text = f"{self._max_concurrent} calls are running"
            raise RefusedError(Reason.OVERLOADED, text, retry_after_s=served.pace.estimate_s(1))
        self._num_running += 1
        try:
            payload = await self._answer(served, request, budget_s)
        finally:
            self._num_running -= 1
        self._metrics.count_answer(request.principle, time.monotonic() - started_s)
        request.payload = payload  # the rest of the answer is an echo
        return request

    async def close(self) -> None:
        """Cancel what still runs, close the verifiers."""
        await self._answers.close()
        for name, served in self._served.items():
            await served.batcher.close()
            await close_with_deadline(served.verifier, principle=name)

    async def _answer(self, served: Served, request: Any, budget_s: float) -> bytes:
        # Each look at a field of a message makes a copy of it.
        body, principle, key = request.payload, request.principle, request.idempotency_key
        digest = wire.body_digest(body)
        if not key:
            samples = await _read(body)
            return (await self._score(served, principle, samples, digest, budget_s))[0]
        # The digest in the key: a key used for another body never brings that body's answer.
        key = f"{principle}\n{digest}\n{key}"
        if (kept := self._answers.kept(key)) is not None:
            return kept
        samples = await _read(body)
        rule = served.quick_rule
        if rule is not None and len(samples) == 1:
            # A quick rule judges one sample without waiting: no deadline could interrupt it, and
            # nobody could join it while it runs.
            verdicts = [rule.settle_now(samples[0])]
            answer, is_final = self._pack(served, principle, digest, verdicts)
            if is_final:
                self._answers.keep(key, answer)
            return answer
        work = partial(self._score, served, principle, samples, digest, budget_s)
        return await self._answers.get(key, work)

    async def _score(
        self,
        served: Served,
        principle: str,
        samples: Sequence[ScoreRequest],
        digest: str,
        budget_s: float,
    ) -> tuple[bytes, bool]:
        estimate_s = served.pace.estimate_s(len(samples))
        # Somebody must be let in: without others running there would be no newer estimate.
        if self._num_running > 1 and estimate_s > budget_s:
            text = f"a call takes {estimate_s:.2g} s at the moment, {budget_s:.2g} s are left"
            raise RefusedError(Reason.OVERLOADED, text, retry_after_s=estimate_s)
        started_s = time.monotonic()
        verdicts = await served.batcher.score(samples, budget_s)
        served.pace.add(len(samples), time.monotonic() - started_s)
        return self._pack(served, principle, digest, verdicts)

    def _pack(
        self, served: Served, principle: str, digest: str, verdicts: Sequence[Verdict]
    ) -> tuple[bytes, bool]:
        """The body, and whether it may be kept: not if anything in it is INVALID, retryable or not,
        since the verifier may be well again when the same is asked once more."""
        self._metrics.count_verdicts(principle, verdicts)
        body = wire.pack_answer(digest, served.verifier.name, served.verifier.version, verdicts)
        return body, all(verdict.cause is None for verdict in verdicts)

    def _find(self, request: Any) -> Served:
        if request.schema_version != wire.SCHEMA_VERSION:
            raise RefusedError(
                Reason.UNKNOWN_SCHEMA_VERSION,
                f"schema version {request.schema_version}, this service speaks "
                f"{wire.SCHEMA_VERSION}",
            )
        served = self._served.get(request.principle)
        if served is None:
            names = ", ".join(sorted(self._served))
            raise RefusedError(Reason.UNKNOWN_PRINCIPLE, f"this service serves: {names}")
        return served

    def _num_stuck(self) -> float:
        return sum(getattr(served.verifier, "num_stuck", 0) for served in self._served.values())

    def _num_waiting(self) -> float:
        return sum(served.batcher.num_waiting for served in self._served.values())


async def _read(body: bytes) -> list[ScoreRequest]:
    try:
        if len(body) > LARGE_BODY_BYTES:
            return await asyncio.to_thread(wire.unpack_requests, body)
        return wire.unpack_requests(body)
    except wire.WireError as error:
        raise RefusedError(Reason.MALFORMED_BODY, str(error)) from error


def _budget_s(remaining_s: float | None) -> float:
    """Time for scoring: what the caller has left, less a tenth (at most 0.5 s) for the way back."""
    remaining_s = MAX_DEADLINE_S if remaining_s is None else min(remaining_s, MAX_DEADLINE_S)
    budget_s = remaining_s - min(0.1 * remaining_s, 0.5)
    if budget_s < MIN_BUDGET_S:
        raise RefusedError(Reason.DEADLINE_TOO_SHORT, "too little time is left to score")
    return budget_s
