"""An independent account of a simulated run, and what must be true of it.

Owns what the models saw with their own eyes: which engine made which group from which version,
which batches the learner trained. It shares no code with the coordinator or the ledger and reads
neither, so that their bookkeeping can be compared with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from safeladder.records import GroupKey, Lease, TrainGroup, TrainOrder

Truth = Callable[[TrainGroup, int], float]
"""(group, index) → the reward that the verifiers' scores add up to."""


@dataclass(frozen=True, slots=True)
class Made:
    """A payload as its engine made it."""

    key: GroupKey
    attempt: int
    min_version: int


class Witness:
    """Told by the models, in order of virtual time."""

    def __init__(self, groups_per_step: int, max_staleness: int, truth: Truth) -> None:
        self._groups_per_step = groups_per_step
        self._max_staleness = max_staleness
        self._truth = truth
        self._made: dict[str, Made] = {}
        self._asked: dict[GroupKey, tuple[int, ...]] = {}
        self._prompts: dict[GroupKey, str] = {}
        """Group → id of what it asked first; it must not ask anything else."""
        self._released: set[str] = set()
        self._fence = 0
        self.leased: set[GroupKey] = set()
        self.batches: dict[int, tuple[GroupKey, ...]] = {}
        """Step → keys, in the surviving history."""
        self.staleness: Counter[int] = Counter()
        self.violations: list[str] = []

    @property
    def trained(self) -> list[GroupKey]:
        """Keys of all surviving batches."""
        return [key for keys in self.batches.values() for key in keys]

    @property
    def sampled_lengths(self) -> tuple[int, ...]:
        """Tokens of every completion that was asked for, those of lost groups too."""
        return _joined(self._asked.values())

    @property
    def trained_lengths(self) -> tuple[int, ...]:
        """Tokens of every completion of the surviving batches' groups."""
        return _joined(self._asked[key] for key in self.trained)

    def saw_lease(self, lease: Lease, served: int, learner: int, lengths: tuple[int, ...]) -> None:
        """An engine that serves ``served`` gets a lease while the learner is at ``learner``; its
        answers will be so long."""
        key, fence, prompt = lease.key, lease.fence, lease.prompt.id
        self._asked[key] = lengths
        self.leased.add(key)
        first = self._prompts.setdefault(key, prompt)
        self._expect(prompt == first, f"{key} asks {prompt}, and asked {first} before")
        self._expect(fence == self._fence, f"{key} was leased under the old fence {fence}")
        self._expect(
            learner - served <= self._max_staleness,
            f"{key} was leased at version {served} while the learner was at {learner}",
        )

    def saw_payload(self, payload: str, made: Made) -> None:
        """An engine stored a group."""
        self._made[payload] = made

    def saw_use(self, payload: str) -> None:
        """Someone reads a payload."""
        self._expect(payload not in self._released, f"{payload} was used after its release")

    def saw_release(self, payloads: Iterable[str]) -> None:
        """Payloads are given up."""
        self._released.update(payloads)

    def saw_restart(self, fence: int, checkpoint_step: int) -> None:
        """A driver took over; the learner is back at its checkpoint."""
        self._expect(fence > self._fence, f"the fence went from {self._fence} to {fence}")
        self._fence = fence
        self.batches = {s: keys for s, keys in self.batches.items() if s <= checkpoint_step}

    def saw_step(self, order: TrainOrder) -> None:
        """The learner trains a batch."""
        step = order.step
        self._expect(order.fence == self._fence, f"step {step} came under the fence {order.fence}")
        self._expect(step == len(self.batches) + 1, f"step {step} follows {len(self.batches)}")
        self._expect(
            len(order.groups) == self._groups_per_step, f"step {step}: {len(order.groups)} groups"
        )
        seen = set(self.trained)
        for group in order.groups:
            self._expect(group.key not in seen, f"{group.key} is trained twice, again in {step}")
            seen.add(group.key)
            self._check_group(group, step)
        self.batches[step] = tuple(group.key for group in order.groups)

    def check_end(
        self,
        steps: int,
        ledger_batches: Mapping[int, Collection[GroupKey]],
        num_dropped: int,
    ) -> None:
        """The run is finished: every group has one end, and the ledger says the same."""
        self._expect(len(self.batches) == steps, f"{len(self.batches)} of {steps} steps")
        own = {step: sorted(keys) for step, keys in self.batches.items()}
        theirs = {step: sorted(keys) for step, keys in ledger_batches.items()}
        self._expect(own == theirs, "the ledger tells other batches than the learner trained")
        num_ended = len(self.trained) + num_dropped
        self._expect(
            num_ended == len(self.leased), f"{len(self.leased)} groups leased, {num_ended} ended"
        )

    def _check_group(self, group: TrainGroup, step: int) -> None:
        made = self._made[str(group.payload)]
        self._expect(
            (made.key, made.attempt) == (group.key, group.attempt),
            f"{group.key} attempt {group.attempt} is trained from {group.payload}",
        )
        staleness = step - 1 - made.min_version
        self.staleness[staleness] += 1
        self._expect(
            staleness <= self._max_staleness, f"{group.key} is trained at staleness {staleness}"
        )
        self._expect(
            sum(reward is not None for reward in group.rewards) > 1,
            f"{group.key} is trained with fewer than two siblings",
        )
        for index, reward in enumerate(group.rewards):
            if reward is not None:
                self._expect(
                    abs(reward - self._truth(group, index)) < 1e-9,
                    f"{group.key}/{index} is trained with the reward {reward}",
                )

    def _expect(self, is_true: bool, violation: str) -> None:
        if not is_true:
            self.violations.append(violation)


def _joined(lengths: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(sorted(tokens for group in lengths for tokens in group))
