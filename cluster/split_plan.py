"""The best split of a cluster between roles, predicted from profiles and lengths of responses.

Pure: numbers in, one line for each split out (``safeladder plan``). It joins ``speed_of_light``
with how our coordinator fills engines:

* A group keeps its place until its longest sibling ends, and no more groups are on their way than
  the staleness bound allows. That limits how many sequences an engine decodes together.
* More sequences together make more tokens a second, but each of them slower, and a response must be
  ready before it is too old. The best number is where both take equally long.
* At the bounds 0 and 1 all groups of a step begin together and the step waits for the last one.

``performance`` simulates what is predicted here; the predicted best split is held against the
simulated one in the tests. Left out: the loss where both roles take nearly the same time and now
and then wait for each other (a few per cent), and deaths.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from cluster.length_distribution import Lengths, longest_of
from cluster.modelled_engine import DecodeCurve
from cluster.speed_of_light import (
    StepBound,
    StepCosts,
    asynchronous_bound,
    bubble,
    mean_staleness,
    reward_concurrency_needed,
)

GRID = 400
"""Points at which a distribution of lengths is averaged."""
NUM_TRIED = 100
"""Numbers of sequences that are tried for an engine."""
TAIL_SHARE = 0.99
"""Groups that must be ready before they are too old."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanInputs:
    """What a plan rests on. A *GPU* is a core where a config reserves no GPUs."""

    num_gpus: int
    engine_gpus: int
    """Of one engine."""
    learner_unit: int
    """GPUs of one rank."""
    curve: DecodeCurve
    """Of one engine."""
    max_sequences: int
    """Decoded together by one engine."""
    kv_tokens: int
    """Of one engine's cache."""
    prompt_tokens: float
    """Held in the cache beside each response."""
    lengths: Lengths
    group_size: int
    groups_per_step: int
    max_staleness: int
    max_concurrent_groups: int | None
    """Of one engine."""
    train_tokens_per_gpu_s: float
    """Sampled tokens that one learner GPU trains in a second."""
    train_scaling: float = 1.0
    """α: n GPUs train ``n ** α`` times as fast as one."""
    publish_s: float = 0.0
    """The learner waits so long for each publication."""
    load_s: float = 0.0
    """An engine stands still so long for each version."""
    calls_per_group: int = 1
    """Principles that judge a group."""
    verdict_p99_s: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSplit:
    """One line of the plan."""

    rollout_gpus: int
    learner_gpus: int
    bound: StepBound
    is_synchronous: bool
    running_per_engine: float
    """Sequences that an engine decodes together, mean."""
    staleness: float
    """Mean, in versions."""
    verifier_calls: int
    """That must be possible at a time, at the p99 of their latency."""
    verdict_s: float

    @property
    def step_s(self) -> float:
        """Predicted. At bound 0 the phases follow each other."""
        if self.is_synchronous:
            return self.bound.generation_s + self.verdict_s + self.bound.training_s
        return self.bound.step_s

    @property
    def training_bubble(self) -> float:
        """β_t."""
        return bubble(self.step_s - self.bound.training_s, self.step_s)

    @property
    def generation_bubble(self) -> float:
        """β_g."""
        return bubble(self.step_s - self.bound.decoding_s, self.step_s)


def plan_splits(inputs: PlanInputs) -> list[PlannedSplit]:
    """Every split into whole engines and ranks, from the fewest engines to the most. Raises
    ``ValueError`` if there is none."""
    found = []
    first, last = inputs.engine_gpus, inputs.num_gpus - inputs.learner_unit
    for rollout_gpus in range(first, last + 1, inputs.engine_gpus):
        rest = inputs.num_gpus - rollout_gpus
        found.append(_plan(inputs, rollout_gpus, rest // inputs.learner_unit * inputs.learner_unit))
    if not found:
        raise ValueError(
            f"{inputs.num_gpus} GPUs hold no engine of {inputs.engine_gpus} beside a learner rank "
            f"of {inputs.learner_unit}"
        )
    return found


def best_planned(found: list[PlannedSplit]) -> PlannedSplit:
    """The shortest step; of equal ones the split with the larger reserve."""
    return min(
        found, key=lambda split: (split.step_s, split.bound.generation_s + split.bound.training_s)
    )


def _plan(inputs: PlanInputs, rollout_gpus: int, learner_gpus: int) -> PlannedSplit:
    engines = rollout_gpus // inputs.engine_gpus
    if inputs.max_staleness < 2:
        running, bound = _all_together(inputs, rollout_gpus, learner_gpus)
    else:
        running, bound = _in_a_stream(inputs, rollout_gpus, learner_gpus)
    in_flight = engines * running / (inputs.group_size * _occupancy(inputs))
    # While the learner works on a step, the next one's groups gather; all of them at the end of it.
    queued = inputs.groups_per_step * (1.0 if bound.binding == "training" else 0.5)
    staleness = mean_staleness(in_flight, queued, inputs.groups_per_step)
    calls = inputs.groups_per_step * inputs.calls_per_group
    split = PlannedSplit(
        rollout_gpus=rollout_gpus,
        learner_gpus=learner_gpus,
        bound=bound,
        is_synchronous=inputs.max_staleness == 0,
        running_per_engine=running,
        staleness=min(inputs.max_staleness, staleness),
        verifier_calls=1,
        verdict_s=inputs.verdict_p99_s,
    )
    needed = reward_concurrency_needed(calls, split.step_s, inputs.verdict_p99_s)
    return replace(split, verifier_calls=needed)


def _in_a_stream(
    inputs: PlanInputs, rollout_gpus: int, learner_gpus: int
) -> tuple[float, StepBound]:
    """Sequences that an engine runs, as few as do not make the step longer, and what follows. The
    tail is the 99th percentile of a group's longest response: others would be dropped as stale."""
    longest = inputs.lengths.quantile(TAIL_SHARE ** (1 / inputs.group_size))
    most = _most_running(inputs, rollout_gpus // inputs.engine_gpus)
    tried = [most * (i + 1) / NUM_TRIED for i in range(NUM_TRIED) if most * (i + 1) >= NUM_TRIED]
    found = [
        (
            running,
            _bound(inputs, rollout_gpus, learner_gpus, running, longest, inputs.max_staleness),
        )
        for running in tried or [most]
    ]
    best_s = min(bound.step_s for _, bound in found)
    return next(one for one in found if one[1].step_s <= best_s * 1.001)


def _all_together(
    inputs: PlanInputs, rollout_gpus: int, learner_gpus: int
) -> tuple[float, StepBound]:
    """A step's groups begin together: how long until the last one ends, with fewer and fewer
    running beside it, and the mean of those that run."""
    responses = inputs.groups_per_step * inputs.group_size
    share = responses / (rollout_gpus // inputs.engine_gpus)
    longest = longest_of(inputs.lengths, responses)
    drain_s = tokens = 0.0
    for i in range(GRID):
        running = min(share * (1 - _share_below(inputs.lengths, (i + 0.5) / GRID * longest)), share)
        drain_s += longest / GRID * inputs.curve.iteration_s(max(1, round(running)))
        tokens += longest / GRID * running
    bound = _bound(inputs, rollout_gpus, learner_gpus, share, longest=0.0, steps=1)
    return tokens / longest, replace(bound, tail_s=drain_s + inputs.load_s)


def _share_below(lengths: Lengths, length: float) -> float:
    """Share of responses that are shorter, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if lengths.quantile(middle) < length else (low, middle)
    return low


def _bound(
    inputs: PlanInputs,
    rollout_gpus: int,
    learner_gpus: int,
    running: float,
    longest: float,
    steps: int,
) -> StepBound:
    engines = rollout_gpus // inputs.engine_gpus
    tokens = inputs.groups_per_step * inputs.group_size * inputs.lengths.mean
    running = min(running, inputs.max_sequences)
    iteration_s = inputs.curve.iteration_s(max(1, round(running)))
    costs = StepCosts(
        decode_gpu_s=rollout_gpus * tokens * iteration_s / (engines * running),
        tail_s=longest * iteration_s,
        train_gpu_s=tokens / inputs.train_tokens_per_gpu_s,
        train_scaling=inputs.train_scaling,
        recompute_s=inputs.publish_s,
        pause_s=inputs.load_s,
    )
    return asynchronous_bound(costs, rollout_gpus, learner_gpus, max_staleness=steps)


def _most_running(inputs: PlanInputs, engines: int) -> float:
    """Sequences that one engine decodes together, on average, at the most: its own limit, what its
    cache holds, and the groups that may be on their way."""
    first, second = _moments(inputs.lengths)
    held = inputs.prompt_tokens + second / (2 * first)  # of a running sequence, halfway on average
    # Up to the bound, less what gathers for the learner.
    groups = (inputs.max_staleness - 0.5) * inputs.groups_per_step / engines
    if inputs.max_concurrent_groups is not None:
        groups = min(groups, inputs.max_concurrent_groups)
    return min(
        inputs.max_sequences,
        inputs.kv_tokens / held,
        groups * inputs.group_size * _occupancy(inputs),
    )


def _occupancy(inputs: PlanInputs) -> float:
    """Mean share of a group's siblings that still run while the group holds its place: the mean
    length over the mean length of the longest sibling."""
    return _moments(inputs.lengths)[0] / _mean_of_longest(inputs.lengths, inputs.group_size)


# The same for every split.
@lru_cache(maxsize=16)
def _mean_of_longest(lengths: Lengths, group_size: int) -> float:
    grid = (lengths.quantile(((i + 0.5) / GRID) ** (1 / group_size)) for i in range(GRID))
    return sum(grid) / GRID


@lru_cache(maxsize=16)
def _moments(lengths: Lengths) -> tuple[float, float]:
    """Mean, and mean of the squares."""
    grid = [lengths.quantile((i + 0.5) / GRID) for i in range(GRID)]
    return sum(grid) / GRID, sum(length**2 for length in grid) / GRID
