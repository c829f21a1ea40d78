"""How near a run comes to its speed of light, what it loses, and what to attack first.

Pure arithmetic on the rows that a run has written (``time_account`` and ``group_life`` made their
columns); medians over steps, so that a checkpoint or a restart does not hide the rest. The bound is
what the roles of *this* run worked: ``max`` of the learner's and the engines' busy time of a step.
An engine counts as busy while it holds a group, full or not: half-empty batches are no loss here,
and show in tokens per second.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from cluster.speed_of_light import bubble, share_of_light

Row = Mapping[str, Any]

NEEDED = ("time/step_s", "time/train_s", "learner/wait_s", "learner/other_s", "engines/busy")
WARM_UP_STEPS = 2
"""First steps of a run that are left out if there are others: the first fill."""
SMALL = 0.05
"""A smaller share of a step is no loss worth a sentence."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Time of a step that a role loses."""

    name: str
    seconds: float
    advice: str
    """What it comes from, and what can be done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepGap:
    """Where the time of a median step went, in seconds."""

    steps: int
    """Steps that were looked at."""
    step_s: float
    train_s: float
    """The learner at work."""
    generate_s: float
    """The engines at work, the mean of all."""
    wait_s: float
    """The learner without a step to do."""
    other_s: float
    """The learner publishing, saving, reading the batch."""
    load_s: float
    """The engines with weights on their way: the exposed part of the weight sync is within it."""
    idle_s: float
    """The engines without a group to write."""
    tail_s: float
    """From the median group of a step to the slowest one, while both are written."""
    score_p99_s: float
    """Verdicts and reference of the slowest group of a step."""
    queue_s: float
    """A finished group waits for its step, on average."""
    full: Mapping[str, float]
    """Scoring fleet → share of the time in which calls waited for a slot."""

    @property
    def light_s(self) -> float:
        """What this run's own work would take side by side without any loss."""
        return max(self.train_s, self.generate_s)

    @property
    def share(self) -> float:
        """Share of the speed of light that was reached."""
        return share_of_light(self.light_s, self.step_s)

    @property
    def learner_bubble(self) -> float:
        """β_t."""
        return bubble(self.wait_s, self.step_s)

    @property
    def engine_bubble(self) -> float:
        """β_g: idle and loading."""
        return bubble(self.idle_s + self.load_s, self.step_s)

    @property
    def losses(self) -> list[Loss]:
        """What the *slower* side loses and the faster one could not hide, largest first; then, if
        nothing is lost, the advice that the slower side itself is the limit."""
        binds_learner = self.train_s >= self.generate_s
        found = self._of_the_learner() if binds_learner else self._of_the_engines()
        found = [loss for loss in found if loss.seconds > SMALL * self.step_s]
        found.sort(key=lambda loss: -loss.seconds)
        return found or [self._limit(binds_learner)]

    def _of_the_learner(self) -> list[Loss]:
        return [
            Loss("learner waits for groups", self.wait_s, self._why_no_groups()),
            Loss(
                "learner publishes, saves or reads",
                self.other_s,
                "write checkpoints more rarely (checkpoint.every_steps); look at the weights' way",
            ),
        ]

    def _of_the_engines(self) -> list[Loss]:
        return [
            Loss(
                "engines have no group to write",
                self.idle_s,
                "admission holds them back: raise schedule.max_staleness or groups_per_step, or "
                "give engines less and the learner more",
            ),
            Loss(
                "engines load weights",
                self.load_s,
                "the way of the weights is long for steps this short: larger steps, or fewer bytes "
                "a version",
            ),
        ]

    def _why_no_groups(self) -> str:
        if crowded := [name for name, share in self.full.items() if share > 0.5]:
            return f"calls wait for {', '.join(crowded)}: give it more actors"
        if self.score_p99_s > 0.5 * self.step_s:
            return (
                f"verdicts and reference take up to {self.score_p99_s:.2g} s a group: speed up them"
            )
        if self.idle_s > self.wait_s:
            return (
                "while engines stand idle: raise schedule.max_staleness, so that they may write "
                "the next groups meanwhile"
            )
        if self.tail_s > 0.5 * self.generate_s:
            return (
                f"the slowest group takes {self.tail_s:.2g} s longer than the median one: set "
                "rollout.straggler_factor, shorten rollout.max_new_tokens, or raise max_staleness"
            )
        return "more engines, or more groups in an engine at a time"

    def _limit(self, binds_learner: bool) -> Loss:
        if binds_learner:
            advice = "training itself is the limit: more learner ranks, or less work a step"
            return Loss("training", self.train_s, advice)
        advice = "generation itself is the limit: more or faster engines, or shorter answers"
        return Loss("generation", self.generate_s, advice)

    def as_summary(self) -> dict[str, Any]:
        """For ``summary.json``: seconds and shares by name, and what to attack first."""
        first = self.losses[0]
        return {
            "steps": self.steps,
            "step_s": round(self.step_s, 3),
            "light_s": round(self.light_s, 3),
            "share_of_light": round(self.share, 3),
            "learner_bubble": round(self.learner_bubble, 3),
            "engine_bubble": round(self.engine_bubble, 3),
            "exposed_sync_s": round(self.load_s, 3),
            "tail_s": round(self.tail_s, 3),
            "score_p99_s": round(self.score_p99_s, 3),
            "attack_first": f"{first.name} ({first.seconds:.2g} s a step): {first.advice}",
        }


def step_gap(rows: Sequence[Row], newest: int | None = None) -> StepGap | None:
    """The gap of a run's training rows, or of its ``newest`` ones; None if no row has the account
    (runs of earlier versions)."""
    known = [row for row in rows if all(_is_number(row.get(name)) for name in NEEDED)]
    known = [row for row in known if row["time/step_s"] > 0]
    known = known[WARM_UP_STEPS:] or known
    if newest is not None:
        known = known[-newest:]
    if not known:
        return None

    def of_step(name: str) -> float:
        """Median of a column that is in seconds."""
        return _median(float(row[name]) for row in known if _is_number(row.get(name)))

    def of_share(name: str) -> float:
        """Median of a column that is a share of its own step, in seconds."""
        return _median(
            row[name] * float(row["time/step_s"]) for row in known if _is_number(row.get(name))
        )

    fleets = {name for row in known for name in row if name.endswith("/full")}
    return StepGap(
        steps=len(known),
        step_s=of_step("time/step_s"),
        train_s=of_step("time/train_s"),
        generate_s=of_share("engines/busy"),
        wait_s=of_step("learner/wait_s"),
        other_s=of_step("learner/other_s"),
        load_s=of_share("engines/loading"),
        idle_s=of_share("engines/idle"),
        tail_s=of_step("group/tail_s"),
        score_p99_s=of_step("group/score_p99_s"),
        queue_s=of_step("group/queue_mean_s"),
        full={name.removesuffix("/full"): of_step(name) for name in sorted(fleets)},
    )


def _median(values: Iterable[float]) -> float:
    """Of what was written; 0 if no row has it."""
    found = list(values)
    return median(found) if found else 0.0


def _is_number(value: object) -> bool:
    return (isinstance(value, float) and math.isfinite(value)) or type(value) is int
