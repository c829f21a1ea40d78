"""The ledger's memory of a sampler: what each group was asked and why, and what came of it.

A draw is written in the transaction that issues its key, before the lease is sent, and is never
changed: whoever takes the run over asks the same. An outcome is written when its group is admitted
to a step or dropped. It is part of the surviving history as long as its group is: the restart that
undoes the group deletes it. Runs without a sampler leave both tables empty.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

from cluster.transitions import GroupState, Transition
from safeladder.draws import Draw, DrawHistory, Outcome, Passes
from safeladder.records import GroupKey

SCHEMA = """
CREATE TABLE IF NOT EXISTS draws (
    epoch INTEGER NOT NULL, ordinal INTEGER NOT NULL,
    data_row INTEGER NOT NULL, prompt TEXT NOT NULL, label TEXT NOT NULL, bucket TEXT NOT NULL,
    why TEXT NOT NULL, predicted REAL NOT NULL, version INTEGER NOT NULL,
    PRIMARY KEY (epoch, ordinal)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outcomes (
    epoch INTEGER NOT NULL, ordinal INTEGER NOT NULL,
    counts_after INTEGER NOT NULL, version INTEGER NOT NULL,
    judged INTEGER NOT NULL, passed INTEGER NOT NULL,
    principles TEXT NOT NULL, types TEXT NOT NULL,
    PRIMARY KEY (epoch, ordinal)
) WITHOUT ROWID;
"""
FORGET_UNDONE = """
DELETE FROM outcomes WHERE (epoch, ordinal) IN (
    SELECT epoch, ordinal FROM groups
    WHERE state NOT IN ('dropped', 'trained') OR (state = 'trained' AND step > :step)
)
"""
"""Of the resume transaction, once the steps that the checkpoint covers are TRAINED."""
_DRAW = "INSERT INTO draws VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_OUTCOME = "INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_FORGET = "DELETE FROM outcomes WHERE epoch = ? AND ordinal = ?"
_LIVING = """
SELECT d.* FROM draws d JOIN groups USING (epoch, ordinal) WHERE state NOT IN ('trained', 'dropped')
"""
_NEWEST = "SELECT data_row, why FROM draws ORDER BY epoch DESC, ordinal DESC"
_OUTCOMES = """
SELECT counts_after, epoch, ordinal, data_row, o.version, judged, passed, principles, types
FROM outcomes o JOIN draws USING (epoch, ordinal) ORDER BY 1, 2, 3
"""


def write_draws(connection: sqlite3.Connection, transitions: Sequence[Transition]) -> None:
    """What a batch of transitions says of draws and outcomes."""
    draws = [
        (*t.key, d.row, d.prompt, d.label, d.bucket, d.why, d.predicted, d.version)
        for t in transitions
        if (d := t.draw) is not None
    ]
    if draws:
        connection.executemany(_DRAW, draws)
    for t in transitions:
        if t.passes is not None:
            version, judged, passed, *told = t.passes
            facts = (t.counts_after, version, judged, passed, *map(json.dumps, told))
            connection.execute(_OUTCOME, (*t.key, *facts))
        elif t.source is GroupState.ADMITTED and t.target is GroupState.PENDING:
            connection.execute(_FORGET, t.key)


def read_draws(connection: sqlite3.Connection, version: int) -> DrawHistory:
    """The surviving history of a sampler, up to the last surviving step."""
    living = {
        GroupKey(epoch, ordinal): Draw(
            row=row,
            prompt=prompt,
            label=label,
            bucket=bucket,
            why=why,
            predicted=predicted,
            version=drawn_at,
        )
        for epoch, ordinal, row, prompt, label, bucket, why, predicted, drawn_at in (
            connection.execute(_LIVING)
        )
    }
    asked = connection.execute("SELECT data_row, count(*) FROM draws GROUP BY 1")
    reasons = connection.execute("SELECT label, why, count(*) FROM draws GROUP BY 1, 2")
    return DrawHistory(
        asked=dict(asked.fetchall()),
        reasons={(label, why): number for label, why, number in reasons},
        living=living,
        outcomes=tuple(
            Outcome(step, GroupKey(epoch, ordinal), row, _passes(*facts))
            for step, epoch, ordinal, row, *facts in connection.execute(_OUTCOMES)
        ),
        newest=_newest(connection),
        version=version,
    )


def _newest(connection: sqlite3.Connection) -> tuple[int, ...]:
    rows = []
    for row, why in connection.execute(_NEWEST):
        rows.append(row)
        if why != "together":
            break
    return tuple(reversed(rows))


def _passes(version: int, judged: int, passed: int, by_principle: str, by_type: str) -> Passes:
    principles = {name: (j, p) for name, (j, p) in json.loads(by_principle).items()}
    types = tuple((j, p) for j, p in json.loads(by_type))
    return Passes(version, judged, passed, principles, types)
