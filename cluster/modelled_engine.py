"""One engine in virtual time: continuous batching of many sequences, with pauses for new weights.

Owns how fast sequences go on together. Knows no coordinator, no clock and no random number: it is
told what time it is and how long each response will be.

All running sequences make one token in each iteration, and an iteration takes the longer the more
of them run (``DecodeCurve``). So one number, the tokens that a sequence running from the start
would have made, tells how far every one is, and the next to end is the first of a heap: work is
logarithmic in the number of sequences, and exact for any curve. Left out: the time to read a
prompt, preemption for want of cache, and that an iteration takes longer as contexts grow; a curve
stands for the mean context of its workload.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from safeladder.records import GroupKey


@dataclass(frozen=True, slots=True)
class DecodeCurve:
    """Seconds of an iteration by number of running sequences: straight lines between points, and
    beyond the last one the slope of the last two."""

    points: tuple[tuple[int, float], ...]
    """(sequences ≥ 1, seconds > 0), both rising or seconds equal."""

    def __post_init__(self) -> None:
        sizes = [size for size, _ in self.points]
        seconds = [s for _, s in self.points]
        if not self.points or sizes != sorted(set(sizes)) or sizes[0] < 1:
            raise ValueError(f"a curve needs rising numbers of sequences ≥ 1, not {sizes}")
        if seconds != sorted(seconds) or not all(0 < s < math.inf for s in seconds):
            raise ValueError(f"an iteration with more sequences takes no less time: {seconds}")

    @classmethod
    def linear(cls, floor_s: float, per_sequence_s: float) -> DecodeCurve:
        """``floor_s`` (weights read once, launches) + ``per_sequence_s`` for each sequence."""
        return cls(((1, floor_s + per_sequence_s), (2, floor_s + 2 * per_sequence_s)))

    @classmethod
    def from_profile(cls, tokens_per_s: Mapping[int, float]) -> DecodeCurve:
        """From what an engine measured: running sequences → tokens a second of all together. A
        rate that falls with more sequences by more than it should is taken for noise: the
        iteration then counts as long as the one before."""
        points: list[tuple[int, float]] = []
        for size, rate in sorted(tokens_per_s.items()):
            if rate <= 0:
                raise ValueError(f"{size} sequences at {rate} tokens/s: a rate is above 0")
            points.append((size, max(size / rate, points[-1][1] if points else 0.0)))
        return cls(tuple(points))

    def iteration_s(self, num_sequences: int) -> float:
        """One token for each of ``num_sequences``; 0 sequences take no time."""
        return _iteration_s(self.points, num_sequences)

    def tokens_per_s(self, num_sequences: int) -> float:
        """Of all together."""
        return num_sequences / self.iteration_s(num_sequences) if num_sequences else 0.0


@lru_cache(maxsize=1 << 16)
def _iteration_s(points: tuple[tuple[int, float], ...], num_sequences: int) -> float:
    if num_sequences == 0:
        return 0.0
    if num_sequences <= points[0][0] or len(points) == 1:
        return points[0][1]  # below the first point an iteration is bound by reading the weights
    right = min(bisect_left(points, (num_sequences, 0.0)), len(points) - 1)
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    return y0 + (y1 - y0) / (x1 - x0) * (num_sequences - x0)


@dataclass(slots=True)
class Work:
    """One lease on an engine."""

    key: GroupKey
    attempt: int
    fence: int
    num_open: int
    """Sequences that have not ended."""
    lengths: tuple[int, ...]
    min_version: int
    """Served when its first sequence began."""
    started_s: float


def _is_of(work: Work, key: GroupKey, attempt: int) -> bool:
    return (work.key, work.attempt) == (key, attempt)


class ModelledEngine:
    """See the module. ``advance`` first, then change something, then ask ``next_end_s``."""

    def __init__(self, name: str, curve: DecodeCurve, max_sequences: int, now_s: float) -> None:
        self.name = name
        self.served = 0
        self._curve = curve
        self._iteration_s = [curve.iteration_s(n) for n in range(max_sequences + 1)]
        self._max_sequences = max_sequences
        self._made = 0.0
        """Tokens of a sequence that would have run from the start."""
        self._now_s = now_s
        self._paused_until_s = now_s
        self._running: list[tuple[float, int, int, Work]] = []
        """Heap of (tokens made when it ends, number, length, lease)."""
        self._sum_begun = 0.0
        """Of tokens made when each running sequence began."""
        self._waiting: deque[tuple[int, Work]] = deque()
        self._num_begun = 0
        self.num_groups = 0
        """Leases that it holds."""
        self.busy_s = 0.0
        """Time with a sequence running, pauses left out."""
        self.paused_s = 0.0

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def tokens_held(self) -> float:
        """Sampled tokens of all running sequences so far: what the cache must hold."""
        return len(self._running) * self._made - self._sum_begun

    def begin(self, key: GroupKey, attempt: int, fence: int, lengths: Sequence[int]) -> None:
        """Take a lease: one sequence for each length. Those that find no place wait, in order."""
        work = Work(key, attempt, fence, len(lengths), tuple(lengths), -1, self._now_s)
        self.take(work, lengths)

    def take(self, work: Work, left: Sequence[int]) -> None:
        """Go on with a lease: so many tokens are left for each sequence that is open."""
        self.num_groups += 1
        self._waiting.extend((length, work) for length in left)
        self._fill()

    def stop(self, key: GroupKey, attempt: int) -> tuple[Work, list[int]] | None:
        """Give a lease up, with the tokens that are left for each sequence that is open; None if
        it has ended."""
        mine = [entry for entry in self._running if _is_of(entry[3], key, attempt)]
        queued = [entry for entry in self._waiting if _is_of(entry[1], key, attempt)]
        if not mine and not queued:
            return None
        self._running = [e for e in self._running if not _is_of(e[3], key, attempt)]
        heapq.heapify(self._running)
        self._waiting = deque(e for e in self._waiting if not _is_of(e[1], key, attempt))
        self._sum_begun -= sum(end - length for end, _, length, _ in mine)
        self.num_groups -= 1
        self._fill()
        work = mine[0][3] if mine else queued[0][1]
        left = [math.ceil(end - self._made - 1e-9) for end, *_ in mine]
        return work, [*left, *(length for length, _ in queued)]

    def pause(self, seconds: float) -> None:
        """Stand still from now on, with every sequence kept."""
        self._paused_until_s = max(self._paused_until_s, self._now_s + seconds)

    def advance(self, now_s: float) -> list[Work]:
        """Go on to ``now_s``. Returns the leases that ended on the way, in order."""
        ended: list[Work] = []
        self._sit_out(now_s)
        running = self._running
        while running and self._paused_until_s <= now_s:
            end, _, length, work = running[0]
            iteration_s = self._iteration_s[len(running)]
            end_s = self._now_s + (end - self._made) * iteration_s
            if end_s > now_s + 1e-9:
                self._made += (now_s - self._now_s) / iteration_s
                self.busy_s += now_s - self._now_s
                break
            self._made = end
            self.busy_s += end_s - self._now_s
            self._now_s = end_s
            heapq.heappop(running)
            self._sum_begun -= end - length
            work.num_open -= 1
            if work.num_open == 0:
                self.num_groups -= 1
                ended.append(work)
            self._fill()
        self._now_s = max(now_s, self._now_s)
        return ended

    def next_end_s(self) -> float:
        """When the next sequence ends, if nothing else happens; infinite if none runs."""
        if not self._running:
            return math.inf
        left_s = (self._running[0][0] - self._made) * self._iteration_s[len(self._running)]
        return max(self._now_s, self._paused_until_s) + left_s

    def _sit_out(self, now_s: float) -> None:
        until_s = min(now_s, self._paused_until_s)
        if until_s > self._now_s:
            self.paused_s += until_s - self._now_s
            self._now_s = until_s

    def _fill(self) -> None:
        waiting, running = self._waiting, self._running
        while waiting and len(running) < self._max_sequences:
            length, work = waiting.popleft()
            if work.min_version < 0:
                work.min_version = self.served
            self._num_begun += 1
            self._sum_begun += self._made
            heapq.heappush(running, (self._made + length, self._num_begun, length, work))
