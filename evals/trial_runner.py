"""Greedy answers to many trials, through the port of an engine, and their verdicts.

Owns the conversation of a trial, its deadline, and how many are under way at a time: a little more
than the engine takes, so that it is always full. Answers are judged beside the generation. What
fails becomes an ``Answered`` with a failure, never a verdict; an engine that breaks ends the probe
with its own error, and what was answered until then is in the journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from typing import Protocol, cast

from evals.order_trials import Trial
from evals.trial_journal import Answered, TrialJournal
from rewards.threads import Threads
from safeladder.ports import PromptTooLongError, RolloutEngine
from safeladder.records import Completion, Message, Prompt, Sampling

SURPLUS = 1.25
"""Trials under way for each sequence that an engine decodes at a time."""
JUDGE_DEADLINE_S = 30.0


class Judge(Protocol):
    """Verdicts on an answer; ``evals.order_judging.judge_trial`` is one."""

    def __call__(self, trial: Trial, answer: str) -> Sequence[bool | str]:
        """For each constraint of the trial: whether it is met, or why that cannot be told."""
        ...


async def answer_trials(
    engines: Sequence[RolloutEngine],
    trials: Sequence[Trial],
    judge: Judge,
    journal: TrialJournal,
    *,
    max_new_tokens: int,
    deadline_s: float,
    on_answer: Callable[[Answered], None] = lambda _: None,
) -> None:
    """Bring every trial into the journal, but those that are there.

    Each engine takes the next trial when it has room. ``deadline_s`` is for a whole trial, from the
    moment when it is given to an engine. Long conversations go first, so that none is alone at the
    end.
    """
    waiting = deque(
        sorted(
            (trial for trial in trials if trial.id not in journal.answered),
            key=lambda trial: -len(trial.turns),
        )
    )
    threads = Threads("judging")
    is_judging = asyncio.Semaphore(1)  # one at a time: it shares the cores with the engine

    async def work(engine: RolloutEngine) -> None:
        while waiting:
            trial = waiting.popleft()
            answered = await _ask(engine, trial, max_new_tokens, deadline_s)
            if answered.failure is None:
                async with is_judging:
                    answered = await _judged(answered, trial, judge, threads)
            journal.append(answered)
            on_answer(answered)

    try:
        async with asyncio.TaskGroup() as group:
            for engine in engines:
                for _ in range(round(SURPLUS * engine.limits().max_sequences)):
                    group.create_task(work(engine))
    except ExceptionGroup as failed:  # what one task raised, the others were stopped for
        raise failed.exceptions[0] from None


async def _ask(
    engine: RolloutEngine, trial: Trial, max_new_tokens: int, deadline_s: float
) -> Answered:
    """All turns of one conversation."""
    sampling = Sampling(num_samples=1, max_new_tokens=max_new_tokens, temperature=0.0, seed=0)
    began = time.monotonic()
    messages: list[Message] = []
    done: list[Completion] = []
    try:
        async with asyncio.timeout(deadline_s):
            for turn, text in enumerate(trial.turns):
                messages.append(Message("user", text))
                name = f"{trial.id}/{turn}"
                prompt = Prompt(id=name, messages=tuple(messages), route="probe")
                done.append(await _complete(engine, prompt, sampling))
                messages.append(Message("assistant", done[-1].text))
    except TimeoutError:
        detail = f"turn {len(done) + 1} of {len(trial.turns)} was not answered in {deadline_s:g} s"
        return Answered(id=trial.id, failure="deadline", detail=detail)
    except PromptTooLongError as error:
        return Answered(id=trial.id, failure="prompt_too_long", detail=str(error))
    return Answered(
        id=trial.id,
        answers=tuple(completion.text for completion in done),
        tokens=sum(completion.tokens.size for completion in done),
        finish_reason=done[-1].finish_reason,
        seconds=time.monotonic() - began,
    )


async def _complete(engine: RolloutEngine, prompt: Prompt, sampling: Sampling) -> Completion:
    stream = cast(AsyncGenerator[Completion, None], engine.generate(prompt.id, prompt, sampling))
    async with contextlib.aclosing(stream):
        async for completion in stream:
            if isinstance(completion, Completion):
                return completion
    raise RuntimeError(f"the engine ended {prompt.id} without an answer")


async def _judged(answered: Answered, trial: Trial, judge: Judge, threads: Threads) -> Answered:
    """The answer with its verdicts; all of them INVALID if there is none in time."""
    try:
        async with asyncio.timeout(JUDGE_DEADLINE_S):
            said = list(await threads.run(lambda _: judge(trial, answered.answers[-1])))
    except TimeoutError:
        said = [f"no verdict in {JUDGE_DEADLINE_S:g} s"] * len(trial.constraints)
    causes = {str(slot): one for slot, one in enumerate(said) if isinstance(one, str)}
    passed = tuple(None if isinstance(one, str) else one for one in said)
    return replace(answered, passed=passed, causes=causes or None)
