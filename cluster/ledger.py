"""The ledger: one SQLite file that remembers the life of every group of a run.

Owns durability (WAL, one fsync per batch of transitions), compare-and-set on (state, attempt,
fence), the fence itself, and the resume transaction. Decides nothing: which transition comes next
is the coordinator's business. One writer, on a local disk (WAL does not work over NFS).

``groups`` holds the present, ``history`` every transition ever made, in order, ``starts`` each
start of a driver: its fence, the step it went on from, and the last transition before it,
``constraint_states`` what each step made of the constraint weights. ``audit``
checks the one against the others and against the accounting promise: in the surviving history every
group has exactly one final state, trained in one step or dropped with a reason.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from cluster.ledger_audit import violations
from cluster.ledger_draws import FORGET_UNDONE, SCHEMA, read_draws, write_draws
from cluster.transitions import (
    DropReason,
    GroupState,
    LedgerSnapshot,
    PendingGroup,
    Transition,
)
from safeladder.commit_points import reached, reached_for
from safeladder.errors import EnvironmentUnfitError, FencedError, NotResumableError
from safeladder.records import GroupKey

BUSY_TIMEOUT_S = 5.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS run (
    name TEXT NOT NULL, fence INTEGER NOT NULL, prompts TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS starts (
    fence INTEGER PRIMARY KEY, checkpoint_step INTEGER NOT NULL, after INTEGER NOT NULL,
    unix_s REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS groups (
    epoch INTEGER NOT NULL, ordinal INTEGER NOT NULL,
    state TEXT NOT NULL, attempt INTEGER NOT NULL, fence INTEGER NOT NULL,
    engine TEXT, min_version INTEGER, max_version INTEGER, num_tokens INTEGER, sha256 TEXT,
    step INTEGER, reason TEXT, detail TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (epoch, ordinal)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS history (
    id INTEGER PRIMARY KEY,
    epoch INTEGER NOT NULL, ordinal INTEGER NOT NULL,
    source TEXT, target TEXT NOT NULL, attempt INTEGER NOT NULL, fence INTEGER NOT NULL,
    min_version INTEGER, step INTEGER, reason TEXT, detail TEXT NOT NULL DEFAULT ''
);
CREATE TABLE IF NOT EXISTS constraint_states (step INTEGER PRIMARY KEY, state TEXT NOT NULL);
"""
_WEIGH = "INSERT OR REPLACE INTO constraint_states VALUES (?, ?)"
_ISSUE = "INSERT INTO groups (epoch, ordinal, state, attempt, fence) VALUES (?, ?, ?, ?, ?)"
_MOVE = """
UPDATE groups SET state = ?, attempt = ?, engine = ?, min_version = ?, max_version = ?,
    num_tokens = ?, sha256 = ?, step = ?, reason = ?, detail = ?
WHERE epoch = ? AND ordinal = ? AND state = ? AND attempt = ? AND fence = ?
"""
_REMEMBER = """
INSERT INTO history
    (epoch, ordinal, source, target, attempt, fence, min_version, step, reason, detail)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_START = """
INSERT INTO starts SELECT :fence, :step, coalesce(max(id), 0), :unix_s FROM history
"""
_REMEMBER_COMMITTED = """
INSERT INTO history
    (epoch, ordinal, source, target, attempt, fence, min_version, step, detail)
SELECT epoch, ordinal, state, 'trained', attempt, :fence, min_version, step, 'restart' FROM groups
WHERE state = 'admitted' AND step <= :step ORDER BY epoch, ordinal
"""
_COMMIT = """
UPDATE groups SET state = 'trained', fence = :fence
WHERE state = 'admitted' AND step <= :step
"""
_UNDONE = "state NOT IN ('dropped', 'trained') OR (state = 'trained' AND step > :step)"
_REMEMBER_UNDONE = f"""
INSERT INTO history (epoch, ordinal, source, target, attempt, fence, detail)
SELECT epoch, ordinal, state, 'pending', attempt + 1, :fence, 'restart' FROM groups
WHERE ({_UNDONE}) AND state != 'pending' ORDER BY epoch, ordinal
"""
_UNDO = f"""
UPDATE groups SET state = 'pending', attempt = attempt + (state != 'pending'), fence = :fence,
    engine = NULL, min_version = NULL, max_version = NULL, num_tokens = NULL, sha256 = NULL,
    step = NULL, reason = NULL, detail = 'restart'
WHERE {_UNDONE}
"""


class Ledger:
    """The one writer of a run's ledger. Close it, or use it in a ``with`` block."""

    def __init__(self, connection: sqlite3.Connection, path: str, run: str) -> None:
        self._connection = connection
        self._path = path
        self._run = run

    @classmethod
    def open(cls, path: Path | None, run: str, prompts: str = "") -> Ledger:
        """Open or create the ledger of a run; None keeps it in memory, for simulations. ``prompts``
        is a digest of what its keys stand for; empty leaves it unchecked.

        Raises ``EnvironmentUnfitError`` if the file cannot be used, ``NotResumableError`` if it
        belongs to another run or to other prompts.
        """
        place = ":memory:" if path is None else str(path)
        with _translated(place):
            connection = sqlite3.connect(place, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        ledger = cls(connection, place, run)
        try:
            ledger._prepare(prompts)
        except BaseException:
            connection.close()
            raise
        return ledger

    def close(self) -> None:
        """Close the file; every applied batch is on disk already."""
        self._connection.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def raise_fence(
        self, checkpoint_step: int | Callable[[int], int] = 0, *, has_groups: bool = True
    ) -> int:
        """Take the run over, going on from the checkpoint of a step (0: from the start), or of the
        step that a function says, which is told the new fence while nobody else can write.

        In one transaction: groups admitted to a step that the checkpoint covers become TRAINED (the
        driver died between the step and its rows), groups trained after the checkpoint and all
        that were on their way go back to PENDING with a new attempt, and the fence rises by one.
        Every driver calls this once, before it leases anything. Returns the new fence. Raises
        ``NotResumableError`` if the ledger never saw the checkpoint's step, which is not asked of a
        stage that trains no groups (``has_groups``).
        """
        with self._transaction():
            reached("fence.read")
            fence = self._number("SELECT fence FROM run") + 1
            step = checkpoint_step if isinstance(checkpoint_step, int) else checkpoint_step(fence)
            values = {"step": step, "fence": fence, "unix_s": time.time()}
            for statement in (
                _START, _REMEMBER_COMMITTED, _COMMIT, FORGET_UNDONE, _REMEMBER_UNDONE, _UNDO,
            ):  # fmt: skip
                self._connection.execute(statement, values)
            known = self._number("SELECT coalesce(max(step), 0) FROM groups WHERE state='trained'")
            if has_groups and known != step:
                raise NotResumableError(
                    f"{self._path}: the checkpoint is of step {step}, but the ledger "
                    f"knows steps up to {known} only; use the ledger that belongs to it, or an "
                    "older checkpoint"
                )
            self._connection.execute("UPDATE run SET fence = ?", (fence,))
            reached("fence.written")
        reached("fence.committed", fence)
        return fence

    def apply(
        self,
        transitions: Sequence[Transition],
        fence: int,
        constraints: Mapping[int, str] | None = None,
    ) -> None:
        """Write a batch, all of it or nothing; an empty one only asks whose the run is.
        ``constraints``: step → state of the constraint weights after it.

        Raises ``FencedError`` if a newer driver owns the run, or if any group is not in the state
        and attempt that its transition starts from.
        """
        if not transitions and not constraints:
            self.require_newest(fence)
            return
        with self._transaction():
            self._require_newest(fence)
            issues = [_issue_row(t, fence) for t in transitions if t.source is None]
            moves = [_move_row(t, fence) for t in transitions if t.source is not None]
            # A key is issued before it moves, so all issues may go first.
            self._connection.executemany(_ISSUE, issues)
            if moves and self._connection.executemany(_MOVE, moves).rowcount != len(moves):
                raise FencedError(
                    f"{self._path}: a group is not in the state that this driver left it in: "
                    "someone else writes to this ledger"
                )
            self._connection.executemany(_REMEMBER, [_history_row(t, fence) for t in transitions])
            self._connection.executemany(_WEIGH, (constraints or {}).items())
            write_draws(self._connection, transitions)
            reached_for((t.target for t in transitions), "written")
        reached_for((t.target for t in transitions), "committed")

    def require_newest(self, fence: int) -> None:
        """Raise ``FencedError`` if a newer driver owns the run."""
        with _translated(self._path):
            self._require_newest(fence)

    def snapshot(self) -> LedgerSnapshot:
        """What a coordinator needs; right after ``raise_fence`` nothing is in between states."""
        with _translated(self._path):
            pending = self._connection.execute(
                "SELECT epoch, ordinal, attempt FROM groups WHERE state = 'pending' "
                "ORDER BY epoch, ordinal"
            ).fetchall()
            last = self._connection.execute(
                "SELECT epoch, ordinal FROM groups ORDER BY epoch DESC, ordinal DESC LIMIT 1"
            ).fetchone()
            trained, version = self._connection.execute(
                "SELECT count(*), coalesce(max(step), 0) FROM groups WHERE state = 'trained'"
            ).fetchone()
            by_staleness = self._connection.execute(  # step n trains the version n - 1
                "SELECT step - 1 - min_version, count(*) FROM groups WHERE state = 'trained' "
                "GROUP BY 1"
            ).fetchall()
            weighed = self._connection.execute(
                "SELECT state FROM constraint_states WHERE step = ?", (version,)
            ).fetchone()
            draws = read_draws(self._connection, version)
        return LedgerSnapshot(
            pending=tuple(PendingGroup(GroupKey(e, o), attempt) for e, o, attempt in pending),
            trained=trained,
            version=version,
            last_key=None if last is None else GroupKey(*last),
            dropped=self.dropped(),
            trained_by_staleness=dict(by_staleness),
            constraints=None if weighed is None else weighed[0],
            draws=draws,
        )

    def counts(self) -> dict[GroupState, int]:
        """Groups in each state; absent states have none."""
        with _translated(self._path):
            rows = self._connection.execute("SELECT state, count(*) FROM groups GROUP BY state")
            return {GroupState(state): count for state, count in rows}

    def dropped(self) -> dict[DropReason, int]:
        """Dropped groups for each reason."""
        with _translated(self._path):
            rows = self._connection.execute(
                "SELECT reason, count(*) FROM groups WHERE state = 'dropped' GROUP BY reason"
            )
            return {DropReason(reason): count for reason, count in rows}

    def trained_groups(self) -> dict[int, list[GroupKey]]:
        """Step → keys of the groups trained in it, in the surviving history."""
        steps: dict[int, list[GroupKey]] = {}
        with _translated(self._path):
            rows = self._connection.execute(
                "SELECT step, epoch, ordinal FROM groups WHERE state = 'trained' ORDER BY 1, 2, 3"
            )
            for step, epoch, ordinal in rows:
                steps.setdefault(step, []).append(GroupKey(epoch, ordinal))
        return steps

    def audit(
        self, *, groups_per_step: int | None = None, max_staleness: int | None = None
    ) -> list[str]:
        """One sentence for each broken invariant; none for a sound ledger. Give the bounds to have
        them checked too."""
        with _translated(self._path):
            return violations(self._connection, groups_per_step, max_staleness)

    def _prepare(self, prompts: str) -> None:
        with _translated(self._path):
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.executescript(_SCHEMA + SCHEMA)
        with self._transaction():
            row = self._connection.execute("SELECT name, prompts FROM run").fetchone()
            if row is None:
                self._connection.execute("INSERT INTO run VALUES (?, 0, ?)", (self._run, prompts))
                return
            name, known = row
            if name != self._run:
                raise NotResumableError(
                    f"{self._path} is the ledger of the run {name!r}, not of {self._run!r}"
                )
            if known and prompts and known != prompts:
                raise NotResumableError(
                    f"{self._path}: data.train, its order or mixture, curriculum or run.seed are "
                    "not what the run began with (in a stage: its rows, how they are split, or the "
                    "tokenizer), so that it would train on something else; put them back, or "
                    "start another run"
                )

    def _require_newest(self, fence: int) -> None:
        newest = self._number("SELECT fence FROM run")
        if newest != fence:
            raise FencedError(
                f"{self._path}: this driver holds fence {fence}, but the run is at {newest}: "
                "a newer driver owns it"
            )

    def _number(self, query: str) -> int:
        return int(self._connection.execute(query).fetchone()[0])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with _translated(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # SQLite rolls some failures back by itself
                    self._connection.execute("ROLLBACK")
                raise


def _issue_row(t: Transition, fence: int) -> tuple[object, ...]:
    return (t.key.epoch, t.key.ordinal, t.target, t.attempt, fence)


def _move_row(t: Transition, fence: int) -> tuple[object, ...]:
    h = t.header
    facts = (
        (None, None, None, None)
        if h is None
        else (h.min_version, h.max_version, sum(h.lengths), h.sha256)
    )
    change = (t.target, t.next_attempt, t.engine, *facts, t.step, t.reason, t.detail)
    return (*change, t.key.epoch, t.key.ordinal, t.source, t.attempt, fence)


def _history_row(t: Transition, fence: int) -> tuple[object, ...]:
    oldest = None if t.header is None else t.header.min_version
    edge = (t.key.epoch, t.key.ordinal, t.source, t.target, t.next_attempt, fence)
    return (*edge, oldest, t.step, t.reason, t.detail)


def taken_back(path: Path, fence: int, step: int) -> str | None:
    """Why the state that a driver of ``fence`` had after ``step`` is not part of the run any more;
    None if it is: no later driver went on from an earlier step."""
    query = """SELECT fence, checkpoint_step FROM starts
        WHERE fence > ? AND checkpoint_step < ? ORDER BY fence LIMIT 1"""
    if not path.exists():
        return None
    with _translated(str(path)), closing(sqlite3.connect(path)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'starts'").fetchone():
            return None
        row = connection.execute(query, (fence, step)).fetchone()
    if row is None:
        return None
    return (
        f"it was written by the driver of fence {fence}, which was replaced: the driver of fence "
        f"{row[0]} went on from step {row[1]}"
    )


@contextmanager
def _translated(path: str) -> Iterator[None]:
    """SQLite's errors as ours, each with the path and a way out."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise FencedError(
            f"{path}: a group was issued twice ({error}): someone else writes to this ledger"
        ) from error
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorname", "")
        if code.startswith("SQLITE_BUSY"):
            raise FencedError(
                f"{path}: another process holds the ledger for longer than {BUSY_TIMEOUT_S:g} s; "
                "end the other driver of this run"
            ) from error
        if code.startswith("SQLITE_FULL"):
            raise EnvironmentUnfitError(
                f"{path}: the disk is full; free some space, then `safeladder resume` the run"
            ) from error
        raise EnvironmentUnfitError(
            f"{path}: the ledger cannot be used ({error}); it needs a writable local disk"
        ) from error
