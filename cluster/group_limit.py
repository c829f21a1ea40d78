"""How many groups one engine holds: what its cache bears, not a fixed number.

Additive increase, multiplicative decrease, as in congestion control. It starts from the size of the
cache and the longest answers there can be, doubles from one round of groups to the next until the
cache is under pressure for the first time, then grows by one group a round. Preempted sequences, or
a cache filled beyond ``HIGH_WATER``, take a quarter off; not more than once until so many groups
have come back. The clock is the groups that come back, so that short and long answers are
treated alike. Does not know which engine this is.
"""

from __future__ import annotations

from safeladder.engine_profile import EngineLoad, EngineProfile

LOW_WATER = 0.7
"""Below this share of the cache there is room for more groups."""
HIGH_WATER = 0.95
"""Above it, the next tokens will preempt somebody."""
CUT = 0.75
WITHOUT_PROFILE = 8
"""Groups of an engine that says nothing of its cache, if there is no cap either."""


class GroupLimit:
    """The limit of one engine. ``cap`` is never exceeded; None is no cap. ``group_tokens`` is what
    a group is expected to hold in the cache. An engine without a profile keeps to the cap."""

    def __init__(
        self, cap: int | None, profile: EngineProfile | None, group_size: int, group_tokens: float
    ) -> None:
        self._cap = cap
        self._is_fixed = profile is None
        self._is_doubling = True
        self._has_room = False
        self._preemptions = 0
        if profile is None:
            self._limit = float(WITHOUT_PROFILE if cap is None else cap)
        else:
            by_cache = profile.kv_tokens // max(group_tokens, 1)
            by_batch = -(-profile.max_sequences // group_size)
            self._limit = self._clamp(min(by_cache, by_batch))

    @property
    def value(self) -> int:
        """Groups that the engine may hold now, ≥ 1."""
        return int(self._limit)

    def note(self, load: EngineLoad, held: int) -> None:
        """A report of an engine that holds ``held`` groups."""
        is_preempting = load.preemptions > self._preemptions
        self._preemptions = load.preemptions
        self._has_room = load.kv_share < LOW_WATER and not load.waiting and not is_preempting
        is_pressed = is_preempting or load.kv_share > HIGH_WATER
        if self._is_fixed or not is_pressed or held > self.value:
            return  # the last cut has not come into effect as long as more groups are held
        self._is_doubling = False
        self._limit = self._clamp(max(held, 1) * CUT)

    def finished(self, held: int) -> None:
        """A group came back from an engine that held ``held`` groups, this one included."""
        if self._has_room and held >= self.value and not self._is_fixed:
            self._limit = self._clamp(self._limit + (1 if self._is_doubling else 1 / self._limit))

    def _clamp(self, limit: float) -> float:
        return max(1.0, limit if self._cap is None else min(limit, self._cap))
