"""What a simulated run says of its speed, and the counting that leads to it.

A report is the difference between two moments of counters that only grow. Knows neither the
coordinator nor the models.
"""

from __future__ import annotations

import gc
import time
from collections import Counter
from dataclasses import dataclass, replace

from cluster.speed_of_light import bubble
from safeladder.records import GroupHeader, GroupKey


@dataclass(frozen=True, slots=True, kw_only=True)
class PerformanceReport:
    """A simulated run in steady state: over the steps after the warm-up."""

    num_steps: int
    step_s: float
    """Mean."""
    training_s: float
    """Mean time that the learner works on a step, publication included."""
    training_bubble: float
    """β_t: share of the time that the learner waits for a batch."""
    generation_bubble: float
    """β_g: share of the engines' time in which nothing is decoded, deaths and pauses included."""
    tokens_per_step: float
    """Sampled tokens trained, mean."""
    staleness_mean: float
    staleness_max: int
    num_trained: int
    """Groups."""
    num_lost: int
    """Groups that died with an engine, to be generated again."""
    dropped: dict[str, int]
    """Reason → groups."""
    trained_length_mean: float
    generated_length_mean: float
    """Of groups that were generated, dropped ones included."""
    peak_calls: int
    """Most verifier calls that were out at a time, since the start."""
    num_events: int
    """That the policy handled since the start, ticks included."""
    policy_s: float
    """Processor seconds that the policy took for them, with its ledger if it has one."""
    simulator_s: float
    """Processor seconds of everything else; of garbage collection too, since most of what there is
    to look through are the simulator's sequences."""

    @property
    def events_per_s(self) -> float:
        """Of the policy alone, by processor time: other processes of the machine do not count."""
        return self.num_events / self.policy_s

    @property
    def tokens_per_s(self) -> float:
        """Sampled tokens trained in a virtual second."""
        return self.tokens_per_step / self.step_s


class CollectorClock:
    """Processor seconds of this thread's garbage collections, while it is entered."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started_s = 0.0

    def __enter__(self) -> None:
        gc.callbacks.append(self._note)

    def __exit__(self, *exception: object) -> None:
        gc.callbacks.remove(self._note)

    def _note(self, phase: str, info: object) -> None:
        if phase == "start":
            self._started_s = time.thread_time()
        else:
            self.seconds += time.thread_time() - self._started_s


@dataclass(slots=True)
class Counters:
    """From the start of a run."""

    at_s: float = 0.0
    learner_busy_s: float = 0.0
    decoding_s: float = 0.0
    trained_tokens: int = 0
    generated_tokens: int = 0
    generated_groups: int = 0
    trained_groups: int = 0
    lost_groups: int = 0


class Meter:
    """Counts, and remembers of each living group what its training will need."""

    def __init__(self) -> None:
        self.total = Counters()
        self.calls_out = 0
        self.peak_calls = 0
        self.num_events = 0
        self.policy_s = 0.0
        self.version = 0
        """Steps that are committed."""
        self._headers: dict[GroupKey, GroupHeader] = {}
        self._staleness: Counter[int] = Counter()
        self._dropped: Counter[str] = Counter()
        self._first = Counters()

    def start(self, now: Counters) -> None:
        """The warm-up is over."""
        self._first = now
        self._staleness.clear()
        self._dropped.clear()

    def call_out(self) -> None:
        """A verifier is asked."""
        self.calls_out += 1
        self.peak_calls = max(self.peak_calls, self.calls_out)

    def generated(self, header: GroupHeader) -> None:
        """A group came back from its engine."""
        self._headers[header.key] = header
        self.total.generated_groups += 1
        self.total.generated_tokens += sum(header.lengths)

    def dropped(self, key: GroupKey, reason: str) -> None:
        """A group ended without training."""
        self._dropped[reason] += 1
        self._headers.pop(key, None)

    def tokens(self, key: GroupKey) -> int:
        """Sampled tokens of a group that was generated."""
        return sum(self._headers[key].lengths)

    def trained(self, key: GroupKey) -> None:
        """A group is in the step that is being committed."""
        header = self._headers.pop(key)
        self._staleness[self.version - header.min_version] += 1
        self.total.trained_groups += 1
        self.total.trained_tokens += sum(header.lengths)

    def now(self, at_s: float, learner_ahead_s: float, decoding_s: float) -> Counters:
        """The counters of this moment. What the learner has begun since it committed is work of
        the next step."""
        return replace(
            self.total,
            at_s=at_s,
            learner_busy_s=self.total.learner_busy_s - learner_ahead_s,
            decoding_s=decoding_s,
        )

    def report(
        self, steps: int, last: Counters, num_engines: int, group_size: int, processor_s: float
    ) -> PerformanceReport:
        """Over the ``steps`` since ``start``. ``processor_s`` is that of the whole
        run."""
        first = self._first
        elapsed_s = last.at_s - first.at_s
        busy_s = last.learner_busy_s - first.learner_busy_s
        trained = last.trained_groups - first.trained_groups
        generated = last.generated_groups - first.generated_groups
        tokens = last.trained_tokens - first.trained_tokens
        made = last.generated_tokens - first.generated_tokens
        decoding_s = last.decoding_s - first.decoding_s
        return PerformanceReport(
            num_steps=steps,
            step_s=elapsed_s / steps,
            training_s=busy_s / steps,
            training_bubble=bubble(elapsed_s - busy_s, elapsed_s),
            generation_bubble=1 - decoding_s / (elapsed_s * num_engines),
            tokens_per_step=tokens / steps,
            staleness_mean=sum(age * n for age, n in self._staleness.items()) / trained,
            staleness_max=max(self._staleness),
            num_trained=trained,
            num_lost=last.lost_groups - first.lost_groups,
            dropped=dict(self._dropped),
            trained_length_mean=tokens / trained / group_size,
            generated_length_mean=made / max(1, generated) / group_size,
            peak_calls=self.peak_calls,
            num_events=self.num_events,
            policy_s=self.policy_s,
            simulator_s=processor_s - self.policy_s,
        )
