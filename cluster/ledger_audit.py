"""The invariants of the accounting promise, each as one SQL query that finds what breaks it.

Owns the queries only; reads the tables of the ledger and writes nothing.
Below the frontier, which is where the next driver goes on, a group is trained, dropped or pending:
what is between two states belongs to the newest driver, or the restart has missed it.
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
_PASSES = """
WITH passes AS (
    SELECT epoch, count(*) AS num_groups, row_number() OVER (ORDER BY epoch) - 1 AS number,
        count(*) OVER () - 1 AS last, first_value(count(*)) OVER (ORDER BY epoch) AS first
    FROM groups GROUP BY epoch
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
    "the states do not add up to the ordinals that were issued": """
        SELECT states || ' in a state, ' || issued || ' issued' FROM
        (SELECT count(*) AS states FROM groups),
        (SELECT count(*) AS issued FROM history WHERE source IS NULL) WHERE states != issued""",
    "ordinals of a pass were skipped": """
        SELECT 'pass ' || epoch FROM groups GROUP BY epoch HAVING count(*) != max(ordinal) + 1""",
    "a pass was skipped, or left before its end": f"""{_PASSES}
        SELECT 'pass ' || epoch FROM passes WHERE epoch != number
            OR num_groups > first OR (num_groups < first AND number < last)""",
    "a group is still on its way with a driver that was replaced": """
        SELECT epoch || '/' || ordinal FROM groups
        WHERE state NOT IN ('trained', 'dropped') AND fence != (SELECT fence FROM run)""",
    "a write does not bear the fence of the driver in charge": """
        SELECT 'transition ' || id || ' of ' || epoch || '/' || ordinal FROM history h
        WHERE fence IS NOT (SELECT max(fence) FROM starts WHERE after < h.id)""",
    "the starts of drivers do not lead up to the fence in force": """
        SELECT 'fence ' || run.fence || ' after ' || count(starts.fence) || ' starts'
        FROM run LEFT JOIN starts HAVING count(starts.fence) != run.fence
            OR coalesce(max(starts.fence), 0) != run.fence""",
    "a step later than the checkpoint outlived a restart": """
        SELECT DISTINCT g.epoch || '/' || g.ordinal || ' of step ' || g.step FROM groups g
        JOIN starts s ON s.fence > g.fence AND g.step > s.checkpoint_step
        WHERE g.state = 'trained'""",
    "a trained group has no step": """
        SELECT epoch || '/' || ordinal FROM groups WHERE state = 'trained' AND step IS NULL""",
    "a generated group lacks its length, versions or checksum": """
        SELECT epoch || '/' || ordinal FROM groups
        WHERE state IN ('generated', 'scored', 'admitted', 'trained')
        AND (num_tokens IS NULL OR min_version IS NULL OR max_version IS NULL OR sha256 IS NULL)""",
    "a group was dropped after its generation without its length": """
        SELECT g.epoch || '/' || g.ordinal FROM groups g JOIN history h
        ON (g.epoch, g.ordinal, g.state) = (h.epoch, h.ordinal, h.target)
        WHERE h.target = 'dropped' AND h.source NOT IN ('pending', 'leased')
        AND g.num_tokens IS NULL""",
    "a drop has no reason": """
        SELECT epoch || '/' || ordinal FROM groups WHERE (state = 'dropped') != (reason NOTNULL)""",
    "a step is missing below a trained one": """
        SELECT 'steps 1..' || max(step) FROM groups WHERE state = 'trained'
        HAVING max(step) != count(DISTINCT step)""",
    "a trained group was undone outside a restart": """
        SELECT epoch || '/' || ordinal FROM history WHERE source = 'trained'
        AND (target != 'pending' OR detail != 'restart')""",
}
_OF_DRAWS = {
    "a group was issued without its draw": """
        SELECT epoch || '/' || ordinal FROM groups LEFT JOIN draws USING (epoch, ordinal)
        WHERE prompt IS NULL AND EXISTS (SELECT 1 FROM draws)""",
    "a draw belongs to no group": """
        SELECT epoch || '/' || ordinal FROM draws LEFT JOIN groups USING (epoch, ordinal)
        WHERE state IS NULL""",
    "a draw rests on a step that was not there yet": """
        WITH firsts AS (
            SELECT step AS there, min(id) AS first FROM history WHERE step NOTNULL GROUP BY step
        )
        SELECT d.epoch || '/' || d.ordinal FROM history h JOIN draws d USING (epoch, ordinal)
        LEFT JOIN firsts ON there = d.version
        WHERE h.source IS NULL AND d.version > 0 AND (first IS NULL OR first > h.id)""",
    "an outcome belongs to a group that has none": """
        SELECT epoch || '/' || ordinal FROM outcomes LEFT JOIN groups USING (epoch, ordinal)
        WHERE coalesce(state, '') NOT IN ('admitted', 'trained', 'dropped')""",
    "an outcome counts after another step than its group's": """
        SELECT epoch || '/' || ordinal FROM outcomes JOIN groups USING (epoch, ordinal)
        WHERE state IN ('admitted', 'trained') AND step IS NOT counts_after""",
    "an outcome is of no number of siblings": """
        SELECT epoch || '/' || ordinal FROM outcomes WHERE judged < 1 OR passed NOT BETWEEN 0
        AND judged""",
}
"""Of a ledger that has the tables of a sampler."""
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
    has_draws = _column(connection, "SELECT name FROM sqlite_master WHERE name = 'draws'")
    queries = {**_QUERIES, **_OF_DRAWS} if has_draws else _QUERIES
    found = {sentence: _column(connection, query) for sentence, query in queries.items()}
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
