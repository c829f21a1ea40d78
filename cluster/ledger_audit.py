"""The invariants of the accounting promise, each as one SQL query that finds what breaks it.

Owns the queries only; reads the tables ``groups`` and ``history`` and writes nothing.
"""

from __future__ import annotations

import sqlite3

from cluster.transitions import EDGES, GroupState

_CHAIN = """
WITH chain AS (
    SELECT *, lag(target) OVER life AS before, lag(attempt) OVER life AS attempt_before
    FROM history WINDOW life AS (PARTITION BY epoch, ordinal ORDER BY id)
)
"""
_QUERIES = {
    "a transition does not start where the one before it ended": _CHAIN
    + "SELECT epoch || '/' || ordinal FROM chain WHERE source IS NOT before",
    "an attempt number fell": _CHAIN
    + "SELECT epoch || '/' || ordinal FROM chain WHERE attempt < attempt_before",
    "a group is trained twice in the surviving history": """
        SELECT epoch || '/' || ordinal FROM history GROUP BY epoch, ordinal
        HAVING sum(target = 'trained') - sum(source IS 'trained') NOT IN (0, 1)
            OR sum(target = 'dropped') > 1""",
    "the present state is not the end of its history": """
        SELECT g.epoch || '/' || g.ordinal FROM groups g LEFT JOIN (
            SELECT epoch, ordinal, target, max(id) FROM history GROUP BY epoch, ordinal
        ) h USING (epoch, ordinal) WHERE h.target IS NOT g.state""",
    "an issued group is missing": """
        SELECT h.epoch || '/' || h.ordinal FROM history h LEFT JOIN groups g
        USING (epoch, ordinal) WHERE h.source IS NULL AND g.state IS NULL""",
    "ordinals of a pass were skipped": """
        SELECT 'pass ' || epoch FROM groups GROUP BY epoch HAVING count(*) != max(ordinal) + 1""",
    "a write came with an older fence than the one before it": """
        SELECT id FROM (SELECT id, fence, lag(fence) OVER (ORDER BY id) AS before FROM history)
        WHERE fence < before""",
    "a drop has no reason": """
        SELECT epoch || '/' || ordinal FROM groups WHERE (state = 'dropped') != (reason NOTNULL)""",
    "a step is missing below a trained one": """
        SELECT 'steps 1..' || max(step) FROM groups WHERE state = 'trained'
        HAVING max(step) != count(DISTINCT step)""",
    "a trained group was undone outside a restart": """
        SELECT epoch || '/' || ordinal FROM history WHERE source = 'trained'
        AND (target != 'pending' OR detail != 'restart')""",
}
_GROUPS_PER_STEP = """
SELECT 'step ' || step || ' has ' || count(*) FROM groups WHERE state = 'trained'
GROUP BY step HAVING count(*) != ?
"""
_STALE = """
SELECT epoch || '/' || ordinal FROM history WHERE target = 'trained'
AND (min_version IS NULL OR step - 1 - min_version > ?)
"""
_SHOWN = 5


def violations(
    connection: sqlite3.Connection, groups_per_step: int | None, max_staleness: int | None
) -> list[str]:
    """One sentence for each broken invariant, with the first few groups that break it."""
    found = {sentence: _column(connection, query) for sentence, query in _QUERIES.items()}
    found["a transition that does not exist"] = [
        f"{source} → {target}"
        for source, target in connection.execute("SELECT DISTINCT source, target FROM history")
        if not _is_edge(source, target)
    ]
    if groups_per_step is not None:
        sentence = f"a step has not {groups_per_step} groups"
        found[sentence] = _column(connection, _GROUPS_PER_STEP, groups_per_step)
    if max_staleness is not None:
        sentence = f"a group was trained at a staleness above {max_staleness}"
        found[sentence] = _column(connection, _STALE, max_staleness)
    return [
        f"{sentence}: {', '.join(places[:_SHOWN])} ({len(places)} in all)"
        for sentence, places in found.items()
        if places
    ]


def _column(connection: sqlite3.Connection, query: str, *values: int) -> list[str]:
    return [str(row[0]) for row in connection.execute(query, values)]


def _is_edge(source: str | None, target: str) -> bool:
    undone = (GroupState.TRAINED, GroupState.PENDING)
    edge = (None if source is None else GroupState(source), GroupState(target))
    return edge in EDGES or edge == undone
