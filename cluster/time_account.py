"""Where the time of a step goes: what learner, engines and scoring fleets did, second by second.

Glances at the coordinator once a turn and counts what it sees for the time since the last glance:
no second is counted twice and none is left out. Decides nothing: ``step_gap`` concludes.

===================  ==============================================================================
``learner/wait_s``   no step was ordered: its groups were not there, or training was paused
``learner/other_s``  a step was ordered, but the learner still published, saved, or read its batch
``engines/busy``     share of engine-seconds with a group to write, and no load of weights
``engines/loading``  … with weights on their way: in-flight groups are paused for a part of it
``engines/idle``     … with nothing to write: no group was admitted at the version it serves
``engines/starting`` … before the engine said what it serves
``<fleet>/busy``     share of the time in which a verifier or reference fleet had a call
``<fleet>/full``     … in which calls waited for a slot
===================  ==============================================================================
"""

from __future__ import annotations

from collections import defaultdict

from cluster.coordinator_status import Glance

ENGINE_STATES = ("busy", "loading", "idle", "starting")


class TimeAccount:
    """The account of one run, closed and opened anew at each step."""

    def __init__(self, now_s: float) -> None:
        self._looked_s = now_s
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._engine_s = 0.0
        self._total_s = 0.0

    def look(self, now_s: float, glance: Glance) -> None:
        """What is so now counts for the time since the last look."""
        passed_s, self._looked_s = now_s - self._looked_s, now_s
        self._total_s += passed_s
        self._seconds["learner/ordered" if glance.is_step_ordered else "learner/wait"] += passed_s
        for activity, number in glance.engines.items():
            self._engine_s += number * passed_s
            self._seconds[f"engines/{activity}"] += number * passed_s
        for fleet, (num_out, num_waiting) in glance.fleets.items():
            self._seconds[f"{fleet}/busy"] += passed_s * (num_out > 0)
            self._seconds[f"{fleet}/full"] += passed_s * (num_waiting > 0)

    def close_step(self, train_s: float) -> dict[str, float]:
        """The figures of the step that ends now, and none for what was not there. ``train_s`` is
        what the learner itself says that it took."""
        seconds, total_s, engine_s = self._seconds, self._total_s, self._engine_s
        self._seconds, self._total_s, self._engine_s = defaultdict(float), 0.0, 0.0
        row = {
            "learner/wait_s": seconds.pop("learner/wait", 0.0),
            "learner/other_s": max(0.0, seconds.pop("learner/ordered", 0.0) - train_s),
        }
        if engine_s > 0:
            row |= {
                f"engines/{state}": seconds.pop(f"engines/{state}", 0.0) / engine_s
                for state in ENGINE_STATES
            }
        if total_s > 0:
            row |= {name: passed_s / total_s for name, passed_s in seconds.items()}
        return row
