"""Which row of a pool is next: the one that was asked least for its weight, and of these the first
in an order that the seed decides.

A *pool* is a share of the run (a label of the mixture, or all rows) cut to some zones. Rows change
their zones as the policy changes; how often a row was asked goes with it. With equal weights and
zones that do not change, every pool walks through shuffled passes. Beyond the number of times that
each row was asked nothing is remembered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from curricula.buckets import NO_BUCKET, BucketOfRow
from curricula.estimates import Rows, Shares

CHUNK = 4096
"""Rows of a pool that are put in order at a time."""

Zones = tuple[int, ...] | None
"""Of a pool; None for all rows of a share."""


class Pools:
    """All pools of a run. ``shuffle_seed`` None leaves rows in the order of the data."""

    def __init__(
        self, rows_of: Mapping[str, Rows], weights: Shares, shuffle_seed: int | None
    ) -> None:
        self._rows_of = rows_of
        self._weights = weights
        self._seed = shuffle_seed
        self._asked = np.zeros(len(weights), np.int32)
        self._zones: BucketOfRow = np.full(len(weights), NO_BUCKET, np.int16)
        self._queues: dict[tuple[str, Zones], Iterator[int]] = {}

    def divide(self, zones: BucketOfRow) -> None:
        """[rows] From now on rows are in these zones."""
        if not np.array_equal(zones, self._zones):
            self._queues.clear()
        self._zones = zones

    def zone_of(self, row: int) -> int:
        """Where a row is."""
        return int(self._zones[row])

    def note(self, row: int, times: int = 1) -> None:
        """A row is asked."""
        self._asked[row] += times

    def first(self, share: str, zones: Zones) -> int | None:
        """The next row of a pool; None if it has none."""
        pool = share, zones
        row = next(self._queues.get(pool, iter(())), None)
        if row is None:
            self._queues[pool] = self._queue(share, zones)
            row = next(self._queues[pool], None)
        return row

    def _queue(self, share: str, zones: Zones) -> Iterator[int]:
        """The next rows of a pool in order, without those asked meanwhile from another pool."""
        rows = self._rows_of[share]
        if zones is not None:
            rows = rows[np.isin(self._zones[rows], zones)]
        turns = self._asked[rows] / self._weights[rows]
        rows = rows[turns == turns.min(initial=np.inf)]
        ranks = self._ranks(rows)
        if len(rows) > CHUNK:
            least = np.argpartition(ranks, CHUNK)[:CHUNK]
            rows, ranks = rows[least], ranks[least]
        rows = rows[np.lexsort((rows, ranks))]
        for row, asked in zip(rows.tolist(), self._asked[rows].tolist(), strict=True):
            if self._asked[row] == asked:
                yield row

    def _ranks(self, rows: Rows) -> npt.NDArray[np.uint64]:
        """Where rows stand in the pass that is their next: splitmix64 of (seed, row, times asked),
        a pure function, so that no order is kept."""
        if self._seed is None:
            return rows.astype(np.uint64)
        mixed = rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed += self._asked[rows].astype(np.uint64) * np.uint64(0xD1B54A32D192ED03)
        mixed += np.uint64(self._seed)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        return mixed ^ (mixed >> np.uint64(31))
