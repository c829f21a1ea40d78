"""How long the members of a quorum are waited for.

    all asked ──▶ every sample settled ──▶ the others have ``grace_s`` ──▶ answer
                                      └──▶ late members are not waited for

Members are *late* from the call in which they exceeded the grace until one of their calls, which go
on without anybody waiting, ends within it. So a member that hangs slows one call (those that are
under way at that moment), a slow one that matters (without it nothing is settled) is waited for,
and one that is well again counts again. Knows neither scores nor what settles a sample.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from rewards.deadline import score_with_deadline
from safeladder.ports import Verifier
from safeladder.records import InvalidCause, ScoreRequest, Verdict, VerdictStatus

MAX_OPEN_CALLS = 8
"""Of a late member: with so many unanswered it is not asked again until one of them has ended."""

Call = asyncio.Task[list[Verdict]]


@dataclass(slots=True, eq=False)
class Member:
    """A verifier, and whether it keeps up with the others."""

    verifier: Verifier
    is_late: bool = False
    open_calls: set[Call] = field(default_factory=set)

    @property
    def is_engaged(self) -> bool:
        """Whether it is late with as many calls as it may be."""
        return self.is_late and len(self.open_calls) >= MAX_OPEN_CALLS

    def ask(self, requests: Sequence[ScoreRequest], principle: str, timeout_s: float) -> Call:
        """A call of ``timeout_s`` at most, whoever waits for it."""
        work = score_with_deadline(self.verifier, requests, timeout_s, principle=principle)
        call = asyncio.create_task(work)
        self.open_calls.add(call)
        call.add_done_callback(self.open_calls.discard)
        return call

    def leave(self) -> None:
        """Cancel what nobody waits for any more."""
        for call in self.open_calls:
            call.cancel()

    def absent(self, request: ScoreRequest, principle: str, detail: str) -> Verdict:
        """In the place of a verdict that was not waited for."""
        return Verdict(
            sample_id=request.sample_id,
            principle=principle,
            verifier=self.verifier.name,
            verifier_version=self.verifier.version,
            status=VerdictStatus.INVALID,
            evidence=detail,
            cause=InvalidCause.TIMEOUT,
            retryable=True,
        )


async def ask_members(
    members: Sequence[Member],
    requests: Sequence[ScoreRequest],
    *,
    principle: str,
    timeout_s: float,
    grace_s: float,
    is_settled: Callable[[Sequence[Verdict]], bool],
) -> list[list[Verdict]]:
    """For each member one verdict a request, in order; who did not answer in time has INVALID
    (timeout, retryable). ``is_settled`` says of one sample's verdicts whether more are not needed.
    """
    calls = {
        member.ask(requests, principle, timeout_s): member
        for member in members
        if not member.is_engaged
    }
    try:
        until_s = await _attend(calls, grace_s, is_settled)
    except asyncio.CancelledError:
        for call, member in calls.items():
            member.is_late |= not call.done()  # who gave up had no time left for them
            call.cancel()
        raise
    said = {member: call.result() for call, member in calls.items() if call.done()}
    for call, member in calls.items():
        if call.done():
            member.is_late = _has_timed_out(call)
        else:
            member.is_late = True
            call.add_done_callback(partial(_note, member, until_s))
    asked = set(calls.values())
    for member in set(members) - set(said):
        detail = "the others had settled it" if member in asked else "busy with earlier calls"
        said[member] = [member.absent(request, principle, detail) for request in requests]
    return [said[member] for member in members]


async def _attend(
    calls: dict[Call, Member], grace_s: float, is_settled: Callable[[Sequence[Verdict]], bool]
) -> float:
    """Wait for as many calls as this file's rule says; the time until which being late was
    allowed."""
    now = asyncio.get_running_loop().time
    until_s = math.inf
    while pending := [call for call in calls if not call.done()]:
        if until_s == math.inf:
            ended = [call.result() for call in calls if call.done()]
            if ended and all(is_settled(votes) for votes in zip(*ended, strict=True)):
                until_s = now() + grace_s
        left_s = None
        if until_s < math.inf:
            left_s = until_s - now()
            pending = [call for call in pending if not calls[call].is_late]
            if not pending or left_s <= 0:
                break
        await asyncio.wait(pending, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
    return until_s


def _note(member: Member, until_s: float, call: Call) -> None:
    """A call that nobody waited for has ended."""
    if call.cancelled() or _has_timed_out(call):
        return
    if asyncio.get_running_loop().time() <= until_s:
        member.is_late = False


def _has_timed_out(call: Call) -> bool:
    verdicts = call.result()
    return bool(verdicts) and all(one.cause is InvalidCause.TIMEOUT for one in verdicts)
