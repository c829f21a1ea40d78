"""Rows of a source, one at a time, each with its place for messages.

A JSON-lines file has one object in a line; Parquet files and Hugging Face datasets are read in
``curricula.tables``. Whatever the source, a row holds what JSON can hold, within the limits of a
call to a verifier service. Nothing is kept but the row at hand.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from safeladder.data_config import SourceConfig
from safeladder.errors import DataError
from safeladder.paths import PathError, open_bytes

Row = dict[str, Any]

_HALF_PAIR = re.compile("[\ud800-\udfff]")
MAX_LEVELS = 16
"""Levels of nesting in ``meta``: what a call to a verifier service can carry."""


def read_rows(source: Path | SourceConfig) -> Iterator[tuple[str, Row]]:
    """(place, row) for each row of a source, under our names of columns. A place is ``file:line``
    or ``file: row N``, counted from 1. Raises ``DataError``."""
    source = source if isinstance(source, SourceConfig) else SourceConfig(path=source)
    rows = islice(_rows(source), source.limit)
    if not source.columns:
        return rows
    return ((place, _renamed(place, row, source)) for place, row in rows)


def _rows(source: SourceConfig) -> Iterator[tuple[str, Row]]:
    if source.path is not None and source.path.suffix != ".parquet":
        return _lines(source.path)
    from curricula.tables import table_rows

    return ((place, _sound(place, row)) for place, row in table_rows(source))


def _renamed(place: str, row: Row, source: SourceConfig) -> Row:
    """Columns of the source under our names; a column that had one of these names before is
    replaced."""
    for theirs in source.columns.values():
        if theirs not in row:
            raise DataError(
                f"{place}: column {theirs} is missing, which `columns` of the source names; the "
                f"row has {', '.join(sorted(row)) or 'none'}"
            )
    mapped = {ours: row[theirs] for ours, theirs in source.columns.items()}
    taken = set(source.columns.values())
    return {name: value for name, value in row.items() if name not in taken} | mapped


def _lines(path: Path) -> Iterator[tuple[str, Row]]:
    number = 0
    has_rows = False
    try:
        with open_bytes(path) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    has_rows = True
                    place = f"{path}:{number}"
                    yield place, _parse(place, line, cut=not line.endswith(b"\n"))
    except FileNotFoundError:
        raise DataError(f"{path}: cannot be read (no such file); check the path") from None
    except PathError as error:
        raise DataError(f"{path}: cannot be read ({error}); check the path") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read after line {number} ({error})") from None
    if not has_rows:
        raise DataError(f"{path}: the file is empty; it needs one JSON object in each line")


def _parse(place: str, line: bytes, cut: bool) -> Row:
    """``cut``: no line feed follows; if the row does not parse, it was not written whole."""
    try:
        row = _DECODER.decode(line.decode("utf-8-sig"))
    except _TwiceError as error:
        raise DataError(
            f"{place}: the key {error.key!a} stands twice; remove or rename one of the two"
        ) from None
    except RecursionError:
        raise DataError(
            f"{place}: is nested deeper than {MAX_LEVELS} levels; write the inner part as text"
        ) from None
    except ValueError as error:
        if cut:
            raise DataError(
                f"{place}: the last line is cut off in the middle of a row; copy the file again or "
                f"remove the line ({error})"
            ) from None
        raise DataError(f"{place}: is not JSON ({error}); write one object in one line") from None
    if not isinstance(row, dict):
        raise DataError(f"{place}: holds a {type(row).__name__}; each line must be a JSON object")
    return _sound(place, row)


def _sound(place: str, row: Row) -> Row:
    for column, value in row.items():
        if fault := _fault(column, 0) or _fault(value, 1 if column == "meta" else 2):
            raise DataError(f"{place}: column {ascii(column)[1:-1]}: {fault}")
    return row


def _fault(value: Any, level: int) -> str | None:
    """What in a value cannot travel to a verifier; None if all of it can. ``level`` counts from the
    outermost map of ``meta``."""
    inner = [(value, level)]
    while inner:
        value, level = inner.pop()
        match value:
            case str() if _HALF_PAIR.search(value):
                return "has half of a surrogate pair, which is no text; write the whole character"
            case float() if math.isnan(value):
                return "has NaN, which is no number; leave the value out"
            case float() if not math.isfinite(value):
                return "has a number that is too large; write it as text"
            case int() if not -(2**63) <= value < 2**64:
                return "has a number of more than 64 bits; write it as text"
            case dict() | list() if level > MAX_LEVELS:
                return f"is nested deeper than {MAX_LEVELS} levels; write the inner part as text"
            case dict():
                inner += [(part, level + 1) for pair in value.items() for part in pair]
            case list():
                inner += [(part, level + 1) for part in value]
            case None | str() | int() | float():
                pass
            case _:
                how = "into a file and its path here" if isinstance(value, bytes) else "as text"
                return f"has a value of type {type(value).__name__}; write it {how}"
    return None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


class _TwiceError(ValueError):
    """An object has a key twice; the last one would win without a word."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _unique(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _TwiceError(next(key for key in keys if keys.count(key) > 1))
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant)
