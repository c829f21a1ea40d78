"""All living groups of a run, and the only way to change the state of one.

Owns the counts that admission rests on, the order in which groups wait, and the list of transitions
that the ledger has not seen yet. Does not decide when a group moves.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from cluster.asking import Asking
from cluster.scoring import GroupScores
from cluster.transitions import EDGES, DropReason, GroupState, LedgerSnapshot, Transition
from safeladder.draws import Passes
from safeladder.records import GroupHeader, GroupKey, TrainGroup


@dataclass(frozen=True, slots=True)
class Begun:
    """What an interrupted group goes on from."""

    payload: Any
    """Handle of the ``PartialGroup``."""
    num_tokens: int
    min_version: int
    """Version of the oldest token."""


@dataclass(slots=True)
class Group:
    """One living group. What belongs to an attempt is cleared when the next one begins."""

    key: GroupKey
    attempt: int = 1
    state: GroupState = GroupState.PENDING
    route: str = ""
    """Of its prompt; set by the first lease."""
    num_failures: int = 0
    """Attempts that failed since this driver started; restarts do not count."""
    num_interrupts: int = 0
    """Times that it was interrupted since it last began anew."""
    engine: str | None = None
    left: str | None = None
    """Engine that it was taken from."""
    begun: Begun | None = None
    """Made by earlier attempts, until the group is generated or fails."""
    header: GroupHeader | None = None
    payload: Any = None
    scores: GroupScores | None = None
    rewards: tuple[float | None, ...] = ()
    reference_call: int = 0
    reference: Any = None
    entered_s: dict[GroupState, float] = field(default_factory=dict)
    """When it last entered each state, by the coordinator's clock."""

    def to_train(self) -> TrainGroup:
        """As the learner gets it."""
        assert self.scores is not None, f"{self.key} has no scores"
        return TrainGroup(
            key=self.key,
            attempt=self.attempt,
            payload=self.payload,
            reference=self.reference,
            rewards=self.rewards,
            audit=self.scores.audit(),
        )

    @property
    def payloads(self) -> tuple[Any, ...]:
        """The handles that it holds."""
        begun = None if self.begun is None else self.begun.payload
        return tuple(p for p in (begun, self.payload, self.reference) if p is not None)


class GroupTable:
    """Groups by key and by state."""

    def __init__(self, asking: Asking, restored: LedgerSnapshot) -> None:
        self.now_s = 0.0
        """Set by the coordinator's ``Tick``."""
        self._asking = asking
        self._last_key = restored.last_key
        self._groups = {p.key: Group(p.key, p.attempt) for p in restored.pending}
        self._pending = list(self._groups)
        heapq.heapify(self._pending)
        self._scored: dict[GroupKey, Group] = {}
        self._admitted: dict[GroupKey, Group] = {}
        self._transitions: list[Transition] = []
        self.counts: Counter[GroupState] = Counter(
            {
                GroupState.PENDING: len(self._pending),
                GroupState.TRAINED: restored.trained,
                GroupState.DROPPED: sum(restored.dropped.values()),
            }
        )
        self.dropped: Counter[DropReason] = Counter(dict(restored.dropped))

    @property
    def num_leased(self) -> int:
        """n of the admission rule: leased since version 0, on their way or trained."""
        waiting = self.counts[GroupState.PENDING]
        return len(self._groups) - waiting + self.counts[GroupState.TRAINED]

    @property
    def num_scored(self) -> int:
        return len(self._scored)

    @property
    def scored(self) -> list[Group]:
        """Groups that wait for the learner, in order of key."""
        return [self._scored[key] for key in sorted(self._scored)]

    @property
    def admitted(self) -> list[Group]:
        """Groups of the next or running step, in order of key."""
        return [self._admitted[key] for key in sorted(self._admitted)]

    @property
    def in_no_step(self) -> list[Group]:
        """Living groups that are not ADMITTED, in order of key."""
        groups = (self._groups[key] for key in sorted(self._groups))
        return [group for group in groups if group.state is not GroupState.ADMITTED]

    def __getitem__(self, key: GroupKey) -> Group:
        """The living group with this key."""
        return self._groups[key]

    def find(self, key: GroupKey, attempt: int) -> Group | None:
        """The living group, if this attempt of it is in force."""
        group = self._groups.get(key)
        return group if group is not None and group.attempt == attempt else None

    def fleets_in_use(self) -> set[str]:
        """Verifier fleets that groups still wait for."""
        return {
            scores.fleet
            for group in self._groups.values()
            if group.state is GroupState.GENERATED and group.scores is not None
            for scores in group.scores.principles.values()
            if scores.open
        }

    def judged_well(self, fleet: str, principle: str) -> list[tuple[Group, int]]:
        """The first sample with a score by this fleet of each group that is not trained yet, in
        order of key."""
        return [
            (group, index)
            for key, group in sorted(self._groups.items())
            if group.state in (GroupState.GENERATED, GroupState.SCORED) and group.scores is not None
            if (scores := group.scores.principles.get(principle)) is not None
            if scores.fleet == fleet and (index := scores.first_ok) is not None
        ]

    def goes_on_from(self, key: GroupKey, payload: Any) -> bool:
        """Whether the group holds this payload of an interrupted attempt."""
        group = self._groups.get(key)
        return group is not None and group.begun is not None and group.begun.payload == payload

    @property
    def next_left(self) -> str | None:
        """Engine that the next group to lease was taken from, if it was."""
        return self._groups[self._pending[0]].left if self._pending else None

    def next_to_lease(self) -> Group:
        """The first PENDING group; if none waits, a new one."""
        if self._pending:
            return self._groups[self._pending[0]]
        key = self._asking.next_key(self._last_key)
        assert self._last_key is None or key > self._last_key, "keys must rise"
        self._last_key = key
        group = self._groups[key] = Group(key)
        heapq.heappush(self._pending, key)
        self.counts[GroupState.PENDING] += 1
        self._transitions.append(
            Transition(
                key=key,
                source=None,
                target=GroupState.PENDING,
                attempt=group.attempt,
                draw=self._asking.draw(key),
            )
        )
        return group

    def move(self, group: Group, target: GroupState, *, step: int | None = None) -> None:
        """A step forward on the road to TRAINED."""
        is_admission = target is GroupState.ADMITTED
        self._write(group, target, step=step, counts_after=step if is_admission else None)
        if target is GroupState.TRAINED:
            assert step is not None, f"{group.key} is trained in no step"
            self._asking.ended(group.key, step, self._passes(group))
            del self._groups[group.key]

    def num_ahead(self, group: Group) -> int:
        """Groups that the learner takes before a PENDING one, if none is dropped: those that it
        has, and those on their way with a smaller key."""
        first = sum(
            other.key < group.key or other.state is GroupState.ADMITTED
            for other in self._groups.values()
            if other.state is not GroupState.PENDING
        )
        return first + self.counts[GroupState.TRAINED]

    def hand_back(self, group: Group, begun: Begun | None, detail: str) -> None:
        """From LEASED back to PENDING, to go on from what there is."""
        group.begun, group.left, group.engine = begun, group.engine, None
        group.num_interrupts += 1
        self._write(group, GroupState.PENDING, detail=detail)
        group.attempt += 1

    def retry(self, group: Group, detail: str) -> tuple[Any, ...]:
        """Back to PENDING with the next attempt, to start anew. Returns the payloads that it
        held."""
        payloads = group.payloads
        group.engine = group.header = group.payload = group.scores = group.reference = None
        group.begun = group.left = None
        group.num_interrupts = 0
        group.rewards = ()
        group.reference_call = 0
        self._write(group, GroupState.PENDING, detail=detail)
        group.attempt += 1
        return payloads

    def drop(self, group: Group, reason: DropReason, detail: str) -> tuple[Any, ...]:
        """The end of a group without training. Returns the payloads that it held."""
        step = self._asking.next_step
        self._write(group, GroupState.DROPPED, reason=reason, detail=detail, counts_after=step)
        self._asking.ended(group.key, step, self._passes(group))
        self.dropped[reason] += 1
        del self._groups[group.key]
        return group.payloads

    def drain_transitions(self) -> list[Transition]:
        """What the ledger has not seen yet, in order."""
        transitions, self._transitions = self._transitions, []
        return transitions

    def _write(
        self,
        group: Group,
        target: GroupState,
        *,
        step: int | None = None,
        reason: DropReason | None = None,
        detail: str = "",
        counts_after: int | None = None,
    ) -> None:
        source, group.state = group.state, target
        group.entered_s[target] = self.now_s
        assert (source, target) in EDGES, f"{group.key}: {source} → {target} does not exist"
        self._leave(group, source)
        self._enter(group, target)
        self._transitions.append(
            Transition(
                key=group.key,
                source=source,
                target=target,
                attempt=group.attempt,
                engine=group.engine,
                header=group.header,
                step=step,
                reason=reason,
                detail=detail,
                passes=None if counts_after is None else self._passes(group),
                counts_after=counts_after,
            )
        )

    def _passes(self, group: Group) -> Passes | None:
        return self._asking.passes(group.scores, group.header)

    def _leave(self, group: Group, state: GroupState) -> None:
        self.counts[state] -= 1
        if state is GroupState.PENDING:
            first = heapq.heappop(self._pending)
            assert first == group.key, f"{group.key} is leased before {first}"
        elif state is GroupState.SCORED:
            del self._scored[group.key]
        elif state is GroupState.ADMITTED:
            del self._admitted[group.key]

    def _enter(self, group: Group, state: GroupState) -> None:
        self.counts[state] += 1
        if state is GroupState.PENDING:
            heapq.heappush(self._pending, group.key)
        elif state is GroupState.SCORED:
            self._scored[group.key] = group
        elif state is GroupState.ADMITTED:
            self._admitted[group.key] = group
