"""One sample in, one verdict out: what every verifier of this room shares.

Owns the bookkeeping around a judgment (names, versions, latency, failures). It does not know what
is being judged. A failure inside one sample becomes an INVALID verdict of that sample alone, so
that its siblings keep theirs.
"""

from __future__ import annotations

import asyncio
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping, Sequence
from numbers import Real
from typing import Any, ClassVar

import msgspec

from rewards.building import verifier_version
from rewards.threads import Call, Threads
from safeladder.errors import VerifierUnavailableError
from safeladder.records import InvalidCause, ScoreRequest, Verdict, VerdictStatus

EVIDENCE_CHARS = 240
"""Evidence is for people and logs: longer texts are cut."""


class Judgment(msgspec.Struct, frozen=True):
    """What a verifier found in one response."""

    score: float
    """In [0, 1]; anything else makes the verdict INVALID(out_of_range)."""
    label: str | None = None
    evidence: str | None = None


class UnjudgedError(Exception):
    """Raised by a verifier that cannot judge a sample: becomes INVALID with this cause."""

    def __init__(self, cause: InvalidCause, detail: str, *, retryable: bool = False) -> None:
        super().__init__(detail)
        self.cause = cause
        self.retryable = retryable


class NotApplicableError(Exception):
    """Raised by a verifier that has nothing to say of a sample, and is allowed to: becomes
    NOT_APPLICABLE."""


class SampleVerifier(ABC):
    """A ``ports.Verifier`` that judges every sample on its own, all samples at once.

    Subclasses write ``judge_sample`` and pass all options that can change a verdict to
    ``__init__``; they become part of ``version``.
    """

    code_version: ClassVar[str] = "1"
    """Raise it whenever the same input could get another verdict."""

    def __init__(self, principle: str, options: Mapping[str, Any]) -> None:
        self.principle = principle
        self._name = f"{type(self).__module__}:{type(self).__qualname__}"
        self._version = verifier_version(self.code_version, options)

    @property
    def name(self) -> str:
        """Import path of the class."""
        return self._name

    @property
    def version(self) -> str:
        """``code_version`` and a hash of the options, joined by ``+``."""
        return self._version

    async def start(self) -> None:  # noqa: B027 - most verifiers have nothing to prepare
        """Nothing to prepare."""

    async def close(self) -> None:  # noqa: B027 - and nothing to free
        """Nothing to free."""

    @abstractmethod
    async def judge_sample(self, request: ScoreRequest) -> Judgment:
        """Judge one sample. Raise ``UnjudgedError`` for a sample that cannot be judged, and
        ``NotApplicableError`` for one that the principle does not concern."""

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Verdict]:
        """One verdict for each request, in order. Never raises for a sample's failure."""
        return list(await asyncio.gather(*(self.settle(request) for request in requests)))

    async def settle(
        self, request: ScoreRequest, judging: Awaitable[Judgment] | None = None
    ) -> Verdict:
        """Judge one sample and turn every failure into an INVALID verdict. ``judging`` stands for
        ``judge_sample`` where several samples are judged in one go."""
        started = time.perf_counter()
        try:
            judgment = await (self.judge_sample(request) if judging is None else judging)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the decision: it is INVALID
            return self._failed(request, started, error)
        return self._judged(request, started, judgment)

    def _judged(self, request: ScoreRequest, started: float, judgment: Judgment) -> Verdict:
        if (detail := _fault(judgment)) is not None:
            return self._unscored(request, started, InvalidCause.MALFORMED, detail)
        score = float(judgment.score)
        if not (math.isfinite(score) and 0 <= score <= 1):
            detail = f"score {score} is outside [0, 1]"
            return self._unscored(request, started, InvalidCause.OUT_OF_RANGE, detail)
        return Verdict(
            sample_id=request.sample_id,
            principle=self.principle,
            verifier=self.name,
            verifier_version=self.version,
            status=VerdictStatus.OK,
            score=score,
            label=judgment.label,
            evidence=_shorten(judgment.evidence),
            latency_ms=(time.perf_counter() - started) * 1e3,
        )

    def _failed(self, request: ScoreRequest, started: float, error: BaseException) -> Verdict:
        if isinstance(error, NotApplicableError):
            return self._unscored(request, started, None, str(error))
        if isinstance(error, UnjudgedError):
            return self._unscored(request, started, error.cause, str(error), error.retryable)
        if isinstance(error, VerifierUnavailableError):
            return self._unscored(request, started, InvalidCause.UNAVAILABLE, str(error), True)
        detail = f"{type(error).__name__}: {error}"
        return self._unscored(request, started, InvalidCause.ERROR, detail)

    def _unscored(
        self,
        request: ScoreRequest,
        started: float,
        cause: InvalidCause | None,
        detail: str,
        retryable: bool = False,
    ) -> Verdict:
        """INVALID for a cause; NOT_APPLICABLE without one."""
        return Verdict(
            sample_id=request.sample_id,
            principle=self.principle,
            verifier=self.name,
            verifier_version=self.version,
            status=VerdictStatus.INVALID if cause else VerdictStatus.NOT_APPLICABLE,
            evidence=_shorten(detail),
            cause=cause,
            retryable=retryable,
            latency_ms=(time.perf_counter() - started) * 1e3,
        )


class RuleVerifier(SampleVerifier):
    """A verifier that reads text and needs nothing else. Subclasses write ``judge``.

    ``judge`` runs in a thread, one call after the other for the samples of a group, several groups
    at a time: whatever it does, deadlines hold. A call that hangs is left behind.
    """

    is_quick: ClassVar[bool] = False
    """Whether ``judge`` surely returns in time linear in its text: then it runs without a thread,
    which saves a tenth of a millisecond a call. Counts for the very class that says so, not for
    its subclasses."""

    def __init__(self, principle: str, options: Mapping[str, Any]) -> None:
        super().__init__(principle, options)
        self.runs_inline = bool(vars(type(self)).get("is_quick", False))
        self._threads = Threads(f"{principle}: {self.name}")

    @property
    def is_dead(self) -> bool:
        """Whether all threads hang for good: the process must be replaced."""
        return self._threads.is_dead

    @property
    def num_stuck(self) -> int:
        """Calls that were left behind and still run."""
        return self._threads.num_stuck

    @abstractmethod
    def judge(self, request: ScoreRequest) -> Judgment:
        """Judge one sample; pure, deterministic, safe to call from several threads."""

    async def judge_sample(self, request: ScoreRequest) -> Judgment:
        """``judge``, as a coroutine."""
        if self.runs_inline:
            return self.judge(request)
        return await self._threads.run(lambda _: self.judge(request))

    def settle_now(self, request: ScoreRequest) -> Verdict:
        """``settle`` without waiting, in the thread of the caller."""
        started = time.perf_counter()
        try:
            judgment = self.judge(request)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - as in ``settle``
            return self._failed(request, started, error)
        return self._judged(request, started, judgment)

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Verdict]:
        """One verdict for each request, in order."""
        if not self.runs_inline:
            return await self._threads.run(lambda call: self._settle_all(requests, call))
        verdicts = []
        for request in requests:
            await asyncio.sleep(0)  # lets deadlines and cancellation in between two samples
            verdicts.append(self.settle_now(request))
        return verdicts

    def _settle_all(self, requests: Sequence[ScoreRequest], call: Call) -> list[Verdict]:
        """Stops between two samples if nobody waits any more."""
        return [self.settle_now(request) for request in requests if call.is_wanted]


def _fault(judgment: object) -> str | None:
    """Why this is no judgment: what a verifier of somebody else returns is not type-checked."""
    if not isinstance(judgment, Judgment):
        kind = type(judgment).__name__
        number = repr(judgment) if isinstance(judgment, int | float) else "1.0"
        return f"judge must return Judgment, got {kind}; write Judgment({number})"
    if not isinstance(judgment.score, (float, Real)):  # the plain type first: quicker
        return f"the score of a Judgment is a number, got {type(judgment.score).__name__}"
    for field in ("label", "evidence"):
        value = getattr(judgment, field)
        if value is not None and not isinstance(value, str):
            return f"the {field} of a Judgment is text or None, got {type(value).__name__}"
    return None


def _shorten(text: str | None) -> str | None:
    if text is None or len(text) <= EVIDENCE_CHARS:
        return text
    return text[: EVIDENCE_CHARS - 1] + "…"
