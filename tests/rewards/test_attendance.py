"""A quorum waits for those that matter, briefly for the others, and for a hanging one only once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from rewards.attendance import MAX_OPEN_CALLS
from rewards.judging import Judgment, NotApplicableError, SampleVerifier
from rewards.quorum import Quorum
from safeladder.records import ScoreRequest, Verdict, VerdictStatus
from tests.rewards.samples import sample

MEMBER = {"verifier": f"{__name__}:Paced"}
TIMES = {"timeout_s": 10.0, "grace_s": 0.3}


class Paced(SampleVerifier):
    """Scores after a while; None finds nothing to score."""

    def __init__(self, *, principle: str) -> None:
        super().__init__(principle, {})
        self.takes_s = 0.0
        self.score_given: float | None = 1.0
        self.num_asked = 0

    async def judge_sample(self, request: ScoreRequest) -> Judgment:
        self.num_asked += 1
        await asyncio.sleep(self.takes_s)
        if self.score_given is None:
            raise NotApplicableError("nothing to score")
        return Judgment(self.score_given)


class Table:
    """A quorum of three, its members and a clock."""

    def __init__(self, **options: Any) -> None:
        self.quorum = Quorum(principle="safety", members=[MEMBER] * 3, **(TIMES | options))
        self.paced: list[Any] = [member.verifier for member in self.quorum._members]
        self.took_s = 0.0

    async def ask(self, size: int = 1) -> Verdict:
        started_s = time.monotonic()
        requests = [sample("an answer", sample_id=f"0/0/{i}") for i in range(size)]
        verdicts = await self.quorum.score(requests)
        self.took_s = time.monotonic() - started_s
        assert [v.sample_id for v in verdicts] == [r.sample_id for r in requests]
        return verdicts[-1]


def play(scenario: Callable[[Table], Awaitable[None]], **options: Any) -> None:
    async def run() -> None:
        table = Table(**options)
        try:
            await scenario(table)
        finally:
            await table.quorum.close()

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_member_within_the_grace_counts_and_one_beyond_it_does_not() -> None:
    async def scenario(table: Table) -> None:
        table.paced[2].takes_s, table.paced[2].score_given = 0.05, 0.5
        assert (await table.ask(3)).disagreement == 0.5
        table.paced[2].takes_s = 60.0
        verdict = await table.ask(3)
        assert (verdict.score, verdict.disagreement) == (1.0, 0.0)
        assert "2 of 3" in (verdict.evidence or "")
        assert "Paced timeout" in (verdict.evidence or "")
        assert 0.25 < table.took_s < 5

    play(scenario)


def test_a_member_that_hangs_slows_one_call_and_is_asked_no_more_than_it_can_bear() -> None:
    async def scenario(table: Table) -> None:
        table.paced[1].takes_s = 60.0
        await table.ask()
        for _ in range(2 * MAX_OPEN_CALLS):
            assert (await table.ask()).score == 1.0
            assert table.took_s < 0.2
        assert table.paced[1].num_asked == MAX_OPEN_CALLS
        assert table.paced[0].num_asked == 2 * MAX_OPEN_CALLS + 1

    play(scenario)


def test_a_member_that_is_well_again_counts_again() -> None:
    async def scenario(table: Table) -> None:
        hanging = table.paced[2]
        hanging.takes_s, hanging.score_given = 60.0, 0.5
        await table.ask()
        hanging.takes_s = 0.02
        assert (await table.ask()).disagreement == 0.0, "not waited for yet"
        await asyncio.sleep(0.1)
        assert (await table.ask()).disagreement == 0.5

    play(scenario)


def test_a_slow_member_without_which_nothing_is_settled_is_waited_for() -> None:
    async def scenario(table: Table) -> None:
        table.paced[2].takes_s = 0.6
        table.paced[1].takes_s = 60.0
        for _ in range(2):
            assert (await table.ask()).score == 1.0
            assert 0.5 < table.took_s < 5

    play(scenario)


def test_so_many_that_find_nothing_to_score_settle_it_unless_one_scores() -> None:
    async def scenario(table: Table) -> None:
        table.paced[0].score_given = table.paced[1].score_given = None
        table.paced[2].takes_s = 60.0
        assert (await table.ask()).status is VerdictStatus.NOT_APPLICABLE
        assert table.took_s < 5
        table.paced[2].takes_s = 0.0
        await table.ask()
        await asyncio.sleep(0.05)
        assert (await table.ask()).status is VerdictStatus.INVALID

    play(scenario)


def test_no_sample_is_no_call_for_anybody_to_be_late_at() -> None:
    async def scenario(table: Table) -> None:
        assert await table.quorum.score([]) == []
        table.paced[2].takes_s, table.paced[2].score_given = 0.05, 0.5
        assert (await table.ask()).disagreement == 0.5

    play(scenario)


def test_who_gives_up_on_a_quorum_leaves_no_call_behind() -> None:
    async def scenario(table: Table) -> None:
        for one in table.paced:
            one.takes_s = 60.0
        asking = asyncio.create_task(table.ask())
        await asyncio.sleep(0.05)
        asking.cancel()
        await asyncio.wait({asking})
        await asyncio.sleep(0.05)
        assert not any(member.open_calls for member in table.quorum._members)
        table.paced[0].takes_s = table.paced[1].takes_s = 0.0
        assert (await table.ask()).score == 1.0
        assert table.took_s < 0.2, "the third used up the time of a call before"

    play(scenario)
