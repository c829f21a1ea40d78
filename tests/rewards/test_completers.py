"""Questions that share a batch share its time, never each other's failures."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from rewards.completers import Batches, Local
from rewards.judging import UnjudgedError
from safeladder.records import InvalidCause
from tests.rewards.samples import sample
from tests.rewards.stand_ins import ScriptedCompleter


def test_a_question_that_a_model_cannot_take_fails_alone() -> None:
    made = ScriptedCompleter({"a": "A", "b": "B"}, fault="poison")

    async def run() -> list[str | BaseException]:
        local = Local(lambda: made, {}, timeout_s=30, batch_size=4)
        await local.start()
        asked = [local.reply(sample("", text).messages, 4) for text in ("a", "poison", "b")]
        found = await asyncio.gather(*asked, return_exceptions=True)
        await local.close()
        return found

    first, bad, last = asyncio.run(run())
    assert (first, last) == ("A", "B")
    assert isinstance(bad, UnjudgedError)
    assert (bad.cause, str(bad)) == (InvalidCause.ERROR, "ValueError: cannot read poison")
    assert made.batches == [["a", "poison", "b"], ["a"], ["poison"], ["b"]]


def test_a_failed_batch_is_asked_again_only_within_its_time() -> None:
    asked: list[Sequence[str]] = []

    async def answer(questions: Sequence[str]) -> list[str]:
        asked.append(questions)
        if len(questions) > 1:
            raise RuntimeError("out of memory")
        await asyncio.sleep(0.12)
        return list(questions)

    async def run() -> list[str | BaseException]:
        batches = Batches(answer, timeout_s=0.2, batch_size=4)
        return await asyncio.gather(*map(batches.ask, "abcd"), return_exceptions=True)

    first, second, *others = asyncio.run(run())
    assert first == "a"
    causes = [e.cause for e in (second, *others) if isinstance(e, UnjudgedError) and e.retryable]
    assert causes == [InvalidCause.TIMEOUT] * 3
    assert asked == [["a", "b", "c", "d"], ["a"], ["b"]]


def test_an_answer_that_is_a_failure_is_that_of_its_question_alone() -> None:
    num_calls = 0

    async def answer(questions: Sequence[str]) -> list[str | UnjudgedError]:
        nonlocal num_calls
        num_calls += 1
        fault = UnjudgedError(InvalidCause.ABSTAIN, "too long")
        return [fault if question == "b" else question for question in questions]

    async def run() -> None:
        batches: Batches[str, str] = Batches(answer, timeout_s=5, batch_size=4)
        first, bad, last = [asyncio.create_task(batches.ask(question)) for question in "abc"]
        with pytest.raises(UnjudgedError, match="too long") as caught:
            await bad
        assert caught.value.cause is InvalidCause.ABSTAIN
        assert (await first, await last, num_calls) == ("a", "c", 1)

    asyncio.run(run())
