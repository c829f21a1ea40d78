"""``safeladder replay``: optimizer steps taken again from stored batches, held against the run.

::

    checkpoints/ or initial/ or the base model   where the replay starts
    batches/     what each step was trained on
    steps.jsonl  what it measured, and the digest of the weights that it made
    ledger       how far the run has come

One rank in this process, by the code that trains; no Ray. What one rank made on a CPU is compared
bit for bit. Elsewhere that does not hold (the sums of several ranks, or of a GPU, come in another
order), and the numbers are compared within ``TOLERANCE``, the weights not at all. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cluster.replay_plan import Plan, read_step
from cluster.run_directory import RunDirectory
from learners.replaying import Replayer

TOLERANCE = 1e-3
"""Largest difference, relative or absolute, of two numbers that agree where bits do not."""
BY_RANKS = frozenset({"micro_batches"})
"""Metrics that depend on the number of ranks by their meaning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing that came out otherwise."""

    name: str
    """Of the metric, or ``weights``."""
    stored: float | str | None
    replayed: float | str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedStep:
    """One step, taken again."""

    step: int
    num_compared: int
    """Metrics that both sides have."""
    digest: str
    """Of the weights that the replay made."""
    is_digest_compared: bool
    differences: tuple[Difference, ...]


def replay_steps(run: RunDirectory, plan: Plan) -> Iterator[ReplayedStep]:
    """Take the steps of a plan, one after another; first of all comes the start itself, with the
    digest of its weights. Loads the model."""
    checkpoint = None if plan.start == plan.config.model.path else plan.start
    with Replayer(plan.config, plan.config.model.path, checkpoint) as replayer:
        digest = replayer.digest(plan.start_step)
        stored = plan.log.digests(plan.start_step, 0)
        if checkpoint is not None and stored and plan.is_exact:
            different = _digest_difference(stored, digest) if digest not in stored else ()
            yield ReplayedStep(
                step=plan.start_step,
                num_compared=0,
                digest=digest,
                is_digest_compared=True,
                differences=different,
            )
        for step in range(plan.start_step + 1, plan.last + 1):
            samples, fence = read_step(run, step)
            metrics = replayer.take(samples, step)
            digest = replayer.digest(step)
            yield _compare(plan, step, fence, metrics, digest)


def _compare(
    plan: Plan, step: int, fence: int, metrics: Mapping[str, float], digest: str
) -> ReplayedStep:
    stored = plan.log.metrics(step, fence)
    assert stored is not None, f"step {step} has no record"
    names = [n for n in stored if n in metrics and (plan.is_exact or n not in BY_RANKS)]
    differences = [
        Difference(name=name, stored=stored[name], replayed=metrics[name])
        for name in names
        if not _agree(stored[name], metrics[name], plan.is_exact)
    ]
    digests = plan.log.digests(step, fence) if plan.is_exact else set()
    return ReplayedStep(
        step=step,
        num_compared=len(names),
        digest=digest,
        is_digest_compared=bool(digests),
        differences=(*differences, *_digest_difference(digests - {digest}, digest)),
    )


def _agree(stored: float, replayed: float, is_exact: bool) -> bool:
    if is_exact:
        return stored == replayed
    return abs(stored - replayed) <= TOLERANCE * max(1.0, abs(stored))


def _digest_difference(stored: set[str], digest: str) -> tuple[Difference, ...]:
    return tuple(
        Difference(name="weights", stored=other, replayed=digest) for other in sorted(stored)
    )
