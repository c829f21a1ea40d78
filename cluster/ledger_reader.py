"""The ledger of a run for those who only look: one moment of it, live or finished.

Opens the file so that nothing is written, not even beside it: a run that is going on is read
through its WAL, a file without one as it stands. Knows no table.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

from cluster.run_directory import RunDirectory
from safeladder.errors import ConfigError
from safeladder.paths import PathError, kind_of

TIMEOUT_S = 5.0


@contextmanager
def reading(run: RunDirectory) -> Iterator[sqlite3.Connection]:
    """A connection that sees one moment of the ledger, whatever a driver writes meanwhile.

    Raises ``ConfigError`` without a ledger that can be read.
    """
    path = run.ledger
    try:
        kind = kind_of(path)
        wal = kind_of(path.with_name(f"{path.name}-wal"))
    except PathError as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    if kind is None:
        raise ConfigError(f"{run.path} has no ledger: training has not begun")
    if kind != "file" or wal not in (None, "file"):
        raise ConfigError(f"{path} is no file, or its WAL is none; restore it, or name another run")
    # A reader of a closed WAL database would leave two files beside it; an immutable one does not.
    how = "mode=ro" if wal is not None else "mode=ro&immutable=1"
    uri = f"{path.absolute().as_uri()}?{how}"
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=TIMEOUT_S)) as connection:
            connection.isolation_level = None
            connection.execute("BEGIN")
            yield connection
    except sqlite3.Error as error:
        raise ConfigError(
            f"{path}: cannot be read as the ledger of a run ({error}); restore the file, or name "
            "another run"
        ) from None
