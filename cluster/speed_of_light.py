"""How fast a step could be: the model that plans are made with and runs are held against.

Pure arithmetic on seconds; knows no config, no run and no clock. One *step* is everything that one
policy version takes: its groups generated, judged and trained.

===========  ======================================================================================
``τ_g(n)``   ``max(C_g / n, L_max · δ)``: GPU-seconds of decoding over the GPUs that decode, but
             never less than the longest response at one token after another, the tail
``τ_t(n)``   ``C_t / n ** α``: training; ``α < 1`` is the loss of scaling
r, l, w, s   rewards, log-probs that are computed again, exposed weight sync, switching of mode
κ            rewards that are computed at a time
===========  ======================================================================================

``t_sync(N) = τ_g(N) + l + r + τ_t(N) + w + s``: one after the other, on the same GPUs.
``t_async ≥ max(τ_g(n_g) + w_pause, τ_t(n_t) + l, R / κ)``: side by side, R the verifier-seconds.

Overlap itself is worth nothing: without a tail and with ``α = 1`` the best split takes
``(C_g + C_t) / N``, as synchronous training does. What it gains is the tail, the loss of scaling,
and r, l, w and s, hidden. So each term is shown, not one ratio.

The formulas restate what the open systems have published of themselves: the staleness bound of
AReaL (arXiv 2505.24298), the phase times of verl's fully asynchronous trainer
(``docs/advance/fully_async.md`` in verl-project/verl), and Little's law.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Term = Literal["decoding", "tail", "training", "rewards"]
"""What a step waits for in the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCosts:
    """What one step takes, however it is spread. Seconds, all ≥ 0."""

    decode_gpu_s: float
    """C_g: GPU-seconds to decode all responses of a step."""
    tail_s: float
    """L_max · δ: the longest response of a step, decoded alone."""
    train_gpu_s: float
    """C_t: seconds to train a step on one GPU."""
    train_scaling: float = 1.0
    """α in (0, 1]: n GPUs train ``n ** α`` times as fast as one."""
    recompute_s: float = 0.0
    """l: log-probs computed again before training."""
    reward_s: float = 0.0
    """r: rewards that synchronous training waits for."""
    reward_work_s: float = 0.0
    """R: verifier-seconds of a step, whoever waits."""
    sync_s: float = 0.0
    """w: weights to the engines while synchronous training waits."""
    switch_s: float = 0.0
    """s: from training to generation and back on the same GPUs."""
    pause_s: float = 0.0
    """w_pause: how long the engines stand still for new weights in one step."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} is a number of seconds ≥ 0, not {value}")
        if not 0 < self.train_scaling <= 1:
            raise ValueError(f"train_scaling is in (0, 1], not {self.train_scaling}")

    def generation_s(self, num_gpus: float) -> float:
        """τ_g of ``num_gpus`` GPUs."""
        return max(self.decode_gpu_s / num_gpus, self.tail_s)

    def training_s(self, num_gpus: float) -> float:
        """τ_t of ``num_gpus`` GPUs."""
        return float(self.train_gpu_s / num_gpus**self.train_scaling)

    def synchronous_s(self, num_gpus: float) -> float:
        """t_sync: the whole step on the same GPUs."""
        exposed_s = self.recompute_s + self.reward_s + self.sync_s + self.switch_s
        return self.generation_s(num_gpus) + self.training_s(num_gpus) + exposed_s


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBound:
    """The least time of an asynchronous step, with the roles side by side."""

    decoding_s: float
    """The engines at work and paused, if no response were long."""
    tail_s: float
    """The longest response, with the pause."""
    training_s: float
    """The learner at work, log-probs included."""
    rewards_s: float
    """The verifiers at work."""

    @property
    def generation_s(self) -> float:
        """τ_g + w_pause."""
        return max(self.decoding_s, self.tail_s)

    @property
    def step_s(self) -> float:
        """Speed of light: no schedule of this split is faster."""
        return max(self.generation_s, self.training_s, self.rewards_s)

    @property
    def binding(self) -> Term:
        """The term that the others wait for; of equal ones the first named in ``Term``."""
        terms: dict[Term, float] = {
            "decoding": self.decoding_s,
            "tail": self.tail_s,
            "training": self.training_s,
            "rewards": self.rewards_s,
        }
        return max(terms, key=terms.__getitem__)

    @property
    def training_bubble(self) -> float:
        """β_t that even the best schedule leaves."""
        return bubble(self.step_s - self.training_s, self.step_s)

    @property
    def generation_bubble(self) -> float:
        """β_g that even the best schedule leaves."""
        return bubble(self.step_s - self.generation_s, self.step_s)


@dataclass(frozen=True, slots=True)
class Split:
    """So many GPUs decode, so many train, and what that allows."""

    rollout_gpus: int
    learner_gpus: int
    bound: StepBound


def asynchronous_bound(
    costs: StepCosts,
    rollout_gpus: float,
    learner_gpus: float,
    *,
    reward_concurrency: float = math.inf,
    max_staleness: int = 0,
) -> StepBound:
    """The terms of t_async. A learner that trains what is finished, and lets the rest go on over
    updates of the weights, need not wait for the longest response of a step; but a response that
    begins as version v is served must be ready for step ``v + max_staleness + 1``, so that
    ``max_staleness`` steps are no shorter than the tail."""
    return StepBound(
        decoding_s=costs.decode_gpu_s / rollout_gpus + costs.pause_s,
        tail_s=costs.tail_s / max(1, max_staleness) + costs.pause_s,
        training_s=costs.training_s(learner_gpus) + costs.recompute_s,
        rewards_s=costs.reward_work_s / reward_concurrency,
    )


def splits(
    costs: StepCosts,
    num_gpus: int,
    *,
    rollout_unit: int = 1,
    learner_unit: int = 1,
    reward_concurrency: float = math.inf,
    max_staleness: int = 0,
) -> list[Split]:
    """Every split of ``num_gpus`` into whole engines of ``rollout_unit`` GPUs and a learner of a
    multiple of ``learner_unit``, from the most learner GPUs to the fewest. GPUs that fit neither
    are left over. Raises ``ValueError`` if there is no split."""
    found = []
    for rollout_gpus in range(rollout_unit, num_gpus - learner_unit + 1, rollout_unit):
        learner_gpus = (num_gpus - rollout_gpus) // learner_unit * learner_unit
        bound = asynchronous_bound(
            costs,
            rollout_gpus,
            learner_gpus,
            reward_concurrency=reward_concurrency,
            max_staleness=max_staleness,
        )
        found.append(Split(rollout_gpus, learner_gpus, bound))
    if not found:
        raise ValueError(
            f"{num_gpus} GPUs hold no engine of {rollout_unit} beside a learner of {learner_unit}"
        )
    return found


def best_split(found: Sequence[Split]) -> Split:
    """The split with the shortest step; of equal ones the one with the shorter other role, which
    has the larger reserve."""

    def spare(split: Split) -> tuple[float, float]:
        bound = split.bound
        return bound.step_s, bound.generation_s + bound.training_s

    return min(found, key=spare)


def max_speedup(synchronous_s: float, bound: StepBound) -> float:
    """S_max: what asynchrony can bring at most, as a factor."""
    return synchronous_s / bound.step_s


def share_of_light(bound_s: float, step_s: float) -> float:
    """How near a measured step comes to its bound, in (0, 1]; above 1 the bound was wrong."""
    return bound_s / step_s


def bubble(wait_s: float, step_s: float) -> float:
    """β: share of a step that a role does nothing in. ``wait_s`` is the wait for a batch (β_t), or
    the time idle and paused (β_g)."""
    return wait_s / step_s


def mean_staleness(groups_in_flight: float, groups_queued: float, groups_per_step: float) -> float:
    """Little's law: versions that pass between the lease of a group and its training."""
    return (groups_in_flight + groups_queued) / groups_per_step


def reward_concurrency_needed(calls_per_step: float, step_s: float, latency_s: float) -> int:
    """Little's law: calls that are out at a time. Give the p99 of the latency, not its mean: a
    group waits for the slowest of its verdicts."""
    return math.ceil(calls_per_step / step_s * latency_s)
