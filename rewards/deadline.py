"""Any verifier, in bounded time, without an exception: the one way the system asks for verdicts.

Owns the contract check at the border between us and a verifier, which may be slow, broken or
written by somebody else. It does not know where the verifier runs or what an INVALID verdict
leads to.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from safeladder.errors import SafeladderError, VerifierUnavailableError
from safeladder.ports import Verifier
from safeladder.records import InvalidCause, ScoreRequest, Verdict, VerdictStatus

log = logging.getLogger(__name__)

START_DEADLINE_S = 3600.0
"""Upper bound: how long a model may load is for those to judge who wait for it."""
CLOSE_DEADLINE_S = 10.0

T = TypeVar("T")


async def score_with_deadline(
    verifier: Verifier, requests: Sequence[ScoreRequest], timeout_s: float, *, principle: str
) -> list[Verdict]:
    """One verdict for each request, in order, after at most ``timeout_s`` seconds.

    Never raises for a fault of the verifier: an exception is INVALID(error), or INVALID
    (unavailable, retryable) if the verifier could not be reached; no answer in time is INVALID
    (timeout, retryable); an answer of the wrong length, order, type or principle is INVALID
    (malformed). A verifier that ignores its cancellation is left behind, not waited for.
    """

    def invalid(
        request: ScoreRequest, cause: InvalidCause, detail: str, retryable: bool = False
    ) -> Verdict:
        return Verdict(
            sample_id=request.sample_id,
            principle=principle,
            verifier=verifier.name,
            verifier_version=verifier.version,
            status=VerdictStatus.INVALID,
            evidence=detail,
            cause=cause,
            retryable=retryable,
        )

    task = asyncio.ensure_future(_ask(verifier, requests))
    try:
        done, _ = await asyncio.wait({task}, timeout=timeout_s)
    finally:
        task.add_done_callback(_retrieve)
        task.cancel()
    if not done:
        detail = f"no verdict within {timeout_s:g} s"
        return [invalid(r, InvalidCause.TIMEOUT, detail, retryable=True) for r in requests]
    if (error := _failure(task)) is not None:
        away = isinstance(error, VerifierUnavailableError | ConnectionError)
        cause = InvalidCause.UNAVAILABLE if away else InvalidCause.ERROR
        detail = f"{type(error).__name__}: {error}"
        return [invalid(r, cause, detail, retryable=away) for r in requests]
    verdicts = task.result()
    fault = _fault_of_answer(verdicts, len(requests))
    if fault is not None:
        return [invalid(r, InvalidCause.MALFORMED, fault) for r in requests]
    return [
        verdict
        if (fault := _fault(verdict, request, principle)) is None
        else invalid(request, InvalidCause.MALFORMED, fault)
        for request, verdict in zip(requests, verdicts, strict=True)
    ]


async def _ask(verifier: Verifier, requests: Sequence[ScoreRequest]) -> list[Verdict]:
    return await _staying(verifier.score(requests))


async def _staying(work: Coroutine[Any, Any, T]) -> T:
    """``work``, in which ``sys.exit`` is an error like others: else it would end the event loop."""
    try:
        return await work
    except SystemExit as error:
        raise RuntimeError(f"SystemExit: {error}") from error


async def start_with_deadline(
    verifier: Verifier, timeout_s: float = START_DEADLINE_S, *, principle: str
) -> None:
    """Get a verifier ready, or raise one sentence that names the principle and the fault:
    ``VerifierUnavailableError``, or the ``SafeladderError`` that it raised itself."""
    where = f"principles.{principle}.verifier"
    try:
        await asyncio.wait_for(_staying(verifier.start()), timeout_s)
    except SafeladderError:
        raise
    except TimeoutError:
        raise VerifierUnavailableError(f"{where} did not start within {timeout_s:g} s") from None
    except Exception as error:
        raise VerifierUnavailableError(
            f"{where} does not start: {type(error).__name__}: {error}"
        ) from error


async def close_with_deadline(verifier: Verifier, *, principle: str) -> None:
    """Let go of a verifier, whatever it says to that: its verdicts are in."""
    try:
        await asyncio.wait_for(_staying(verifier.close()), CLOSE_DEADLINE_S)
    except Exception as error:  # noqa: BLE001 - the decision: it is only logged
        log.warning(
            "principles.%s.verifier: close() fails with %s: %s",
            *(principle, type(error).__name__, error),
        )


def _failure(task: asyncio.Future[list[Verdict]]) -> BaseException | None:
    if task.cancelled():
        return asyncio.CancelledError("the verifier cancelled itself")
    return task.exception()


def _fault_of_answer(answer: object, expected: int) -> str | None:
    if not isinstance(answer, list | tuple):
        return f"answered with {type(answer).__name__} instead of a list of verdicts"
    if len(answer) != expected:
        return f"{len(answer)} verdicts for {expected} requests"
    return None


def _fault(verdict: object, request: ScoreRequest, principle: str) -> str | None:
    if not isinstance(verdict, Verdict):
        return f"answered with {type(verdict).__name__} instead of a verdict"
    if verdict.sample_id != request.sample_id:
        return f"verdict of sample {verdict.sample_id!r} in the place of {request.sample_id!r}"
    if verdict.principle != principle:
        return f"verdict under {verdict.principle!r} instead of {principle!r}"
    return None


def _retrieve(task: asyncio.Future[list[Verdict]]) -> None:
    """Mark a left-behind failure as seen, so that asyncio does not report it at collection."""
    if not task.cancelled():
        task.exception()
