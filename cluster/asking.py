"""What the groups of a run ask: the places of a plain order, or the draws of a sampler.

The driver's side of a curriculum: gives a sampler each group's outcome when the group ends, tells
it when a step is committed, and counts what came of each bucket. The draws and outcomes themselves
go to the ledger with the transitions that they belong to, so that the sampler of the next driver
stands where the surviving history says. Does not choose.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from cluster.scoring import GroupScores
from rewards.constraints.reward import read_marks
from safeladder.curriculum_config import CurriculumConfig
from safeladder.draws import Draw, DrawHistory, Passes
from safeladder.records import GroupHeader, GroupKey, Prompt, VerdictStatus


class PromptSource(Protocol):
    """What to ask; ``curricula`` has implementations."""

    def prompt(self, key: GroupKey) -> Prompt:
        """The prompt at a place: a pure function of it, or what a sampler has drawn for it."""
        ...

    def next_key(self, key: GroupKey | None) -> GroupKey:
        """The place after ``key``; None asks for the first. Keys rise."""
        ...


@runtime_checkable
class Sampler(PromptSource, Protocol):
    """A source that chooses by what came of the groups before."""

    def restore(self, history: DrawHistory) -> None:
        """Stand where the surviving history says."""
        ...

    def draw(self, key: GroupKey) -> Draw:
        """Choose for a new place; places come in order."""
        ...

    def end(self, key: GroupKey, step: int, passes: Passes | None) -> Draw:
        """A group has ended, and its outcome counts after a step. Returns what it was."""
        ...

    def learn(self, step: int) -> None:
        """A step is committed."""
        ...


class Asking:
    """What is asked in one run, by one driver."""

    def __init__(
        self, prompts: PromptSource, config: CurriculumConfig, history: DrawHistory
    ) -> None:
        self._prompts = prompts
        self._config = config
        self._sampler = prompts if isinstance(prompts, Sampler) else None
        self._step = history.version
        self._ended: Counter[tuple[str, str]] = Counter()
        self._passed: Counter[tuple[str, str]] = Counter()
        self._judged: Counter[tuple[str, str]] = Counter()
        """(what, name) → groups that ended, and siblings of them, since the last step."""
        self.metrics: Mapping[str, float] = {}
        """Of the last step: shares of what ended in it, and how much of it passed."""
        if self._sampler is not None:
            self._sampler.restore(history)

    def next_key(self, key: GroupKey | None) -> GroupKey:
        """The place after ``key``."""
        return self._prompts.next_key(key)

    def prompt(self, key: GroupKey) -> Prompt:
        """What a group without an end asks."""
        return self._prompts.prompt(key)

    def draw(self, key: GroupKey) -> Draw | None:
        """The choice for a new place; None if the place says it all."""
        return None if self._sampler is None else self._sampler.draw(key)

    @property
    def next_step(self) -> int:
        """The step after which the outcome of a group counts that is dropped now."""
        return self._step + 1

    def passes(self, scores: GroupScores | None, header: GroupHeader | None) -> Passes | None:
        """How a group did; None if that is not known, or nobody asks."""
        if self._sampler is None or scores is None or header is None or not scores.is_final:
            return None
        return count_passes(scores, self._config, header.min_version)

    def ended(self, key: GroupKey, step: int, passes: Passes | None) -> None:
        """A group is trained or dropped."""
        if self._sampler is None:
            return
        draw = self._sampler.end(key, step, passes)
        for place in (("label", draw.label), ("bucket", draw.bucket), ("why", draw.why)):
            if place[1]:
                self._ended[place] += 1
                if passes is not None:
                    self._passed[place] += passes.passed
                    self._judged[place] += passes.judged

    def learn(self, step: int) -> None:
        """A step is committed: the draws after it rest on its outcomes."""
        self._step = step
        if self._sampler is None:
            return
        self._sampler.learn(step)
        total = max(1, sum(n for (what, _), n in self._ended.items() if what == "label"))
        shares = {f"{what}/{name}/share": n / total for (what, name), n in self._ended.items()}
        passed = {
            f"{what}/{name}/passed": self._passed[what, name] / judged
            for (what, name), judged in self._judged.items()
        }
        self.metrics = {f"curriculum/{name}": value for name, value in (shares | passed).items()}
        for counter in (self._ended, self._passed, self._judged):
            counter.clear()


def count_passes(scores: GroupScores, config: CurriculumConfig, version: int) -> Passes | None:
    """A sibling passes if every principle in question that applies gives it ``pass_score``. One
    with an INVALID verdict, or to which none applies, tells nothing; None if none tells."""
    by_principle: dict[str, tuple[int, int]] = {}
    siblings: dict[int, bool | None] = {}
    """Index → whether it passes; None if it cannot be told."""
    for name, one in sorted(scores.principles.items()):
        if config.principles and name not in config.principles:
            continue
        judged = passed = 0
        for index, verdict in one.verdicts.items():
            if verdict.status is VerdictStatus.INVALID:
                siblings[index] = None
            elif verdict.score is not None:
                is_pass = verdict.score >= config.pass_score
                judged, passed = judged + 1, passed + is_pass
                before = siblings.get(index, True)
                siblings[index] = None if before is None else before and is_pass
        if judged:
            by_principle[name] = judged, passed
    known = [is_pass for is_pass in siblings.values() if is_pass is not None]
    if not known:
        return None
    by_type = _count_marks(scores) if config.types is not None else ()
    return Passes(version, len(known), sum(known), by_principle, by_type)


def _count_marks(scores: GroupScores) -> tuple[tuple[int, int], ...]:
    """(judged, passed) of each constraint, from verdicts whose evidence tells one by one; none if
    no principle does, or its siblings do not agree how many there are."""
    for one in scores.principles.values():
        told = [
            marks
            for verdict in one.verdicts.values()
            if verdict.score is not None and (marks := read_marks(verdict.evidence)) is not None
        ]
        if told and len({len(marks) for marks in told}) == 1:
            columns = zip(*told, strict=True)
            known = ([met for met in column if met is not None] for column in columns)
            return tuple((len(column), sum(column)) for column in known)
    return ()
