"""Probes: samples that a verifier has judged well, asked again while its breaker is open.

An answer shows that the verifier works and that others' INVALID verdicts are theirs; it changes no
verdict. Owns which probe of a fleet is under way and when the next one is due. Does not know what
an answer leads to.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.calls import CallId
from cluster.groups import GroupTable
from safeladder.records import GroupKey, Verdict, VerdictStatus


@dataclass(frozen=True, slots=True)
class Probe:
    """One sample, asked again."""

    call: CallId
    """Counts down from -1 over all probes of a driver, so that it is nobody's number."""
    index: int
    turn: int
    """Of the breaker when it was asked for."""

    def is_passed(self, verdicts: tuple[Verdict, ...]) -> bool:
        """Whether the answer is one valid verdict on the sample."""
        sample_id = f"{self.call.key}/{self.index}"
        return [v.sample_id for v in verdicts] == [sample_id] and all(
            v.status is not VerdictStatus.INVALID for v in verdicts
        )


class Probes:
    """At most one for each fleet."""

    def __init__(self, groups: GroupTable) -> None:
        self._groups = groups
        self._under_way: dict[str, Probe] = {}
        self._due_s: dict[str, float] = {}
        self._num_asked = 0

    def find(self, fleet: str, call: CallId) -> Probe | None:
        """The probe that this call is, if it is one."""
        probe = self._under_way.get(fleet)
        return probe if probe is not None and probe.call == call else None

    def start(self, fleet: str, principle: str, turn: int, now_s: float) -> Probe | None:
        """The next probe of a fleet, another sample each time; None if it is not due yet or there
        is no sample to ask for."""
        if fleet in self._under_way or now_s < self._due_s.get(fleet, now_s):
            return None
        known = self._groups.judged_well(fleet, principle)
        if not known:
            return None
        group, index = known[self._num_asked % len(known)]
        self._num_asked += 1
        call = CallId(group.key, group.attempt, -self._num_asked)
        self._under_way[fleet] = Probe(call, index, turn)
        return self._under_way[fleet]

    def end(self, fleet: str, next_s: float) -> None:
        """It is answered or lost; the next one is due then."""
        self._under_way.pop(fleet, None)
        self._due_s[fleet] = next_s

    def of_group(self, fleet: str, key: GroupKey) -> Probe | None:
        """The probe that asks for a sample of this group, if one does."""
        probe = self._under_way.get(fleet)
        return probe if probe is not None and probe.call.key == key else None

    def forget(self, fleet: str) -> None:
        """The fleet is gone, or works again: the next probe will be due at once."""
        self._under_way.pop(fleet, None)
        self._due_s.pop(fleet, None)
