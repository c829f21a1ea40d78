"""What a run has written, read back: ``metrics.jsonl`` and the other files of JSON lines.

Knows the axes of the records and the marks that a killed writer leaves; not what they mean.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.run_directory import RunDirectory
from safeladder.errors import DataError
from safeladder.paths import PathError, read_bytes

log = logging.getLogger(__name__)

AXES = {"train": "train/step", "rollout": "rollout/version", "eval": "eval/step"}
"""Kind of a record → the axis that its values must carry, and that W&B draws them over."""


def read_history(run_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """Kind → rows of ``metrics.jsonl`` in order of their axis; alerts in order of time.

    A step that was repeated after a resume counts once, the last time. Lines that a killed writer
    left half written are passed over, as are rows without their axis.
    """
    history: dict[str, dict[Any, dict[str, Any]]] = {}
    for number, row in enumerate(read_lines(RunDirectory(run_dir).metrics)):
        kind = str(row.get("kind"))
        place = row.get(AXES[kind]) if kind in AXES else number
        if isinstance(place, int | float) and math.isfinite(place):
            history.setdefault(kind, {})[place] = row
        else:
            log.warning("passing over a row of %s without a number as %s", kind, AXES[kind])
    return {kind: [rows[key] for key in sorted(rows)] for kind, rows in history.items()}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """JSON objects of a file of lines, whatever else stands in it; none if it is not there."""
    try:
        return [row for _, row in numbered_lines(path, is_strict=False)]
    except DataError as error:
        log.warning("%s; passed over", error)
        return []


def numbered_lines(path: Path, *, is_strict: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and JSON object of each line; nothing if the file is not there.

    A line that a killed writer left half written is passed over: the last one, or one that a
    resumed run wrote on behind. Whatever else is no object is passed over too, or if ``is_strict``
    a ``DataError`` that names the line. A file that cannot be read always is one.
    """
    try:
        lines = read_bytes(path).split(b"\n")
    except FileNotFoundError:
        return
    except PathError as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            yield number, row
        elif row is None and (number == len(lines) or line.startswith(b'{"')):
            log.warning("%s:%d: passing over a half-written line", path, number)
        elif is_strict:
            raise DataError(
                f"{path}:{number}: is no line that a run writes: the file is damaged; restore it "
                "or remove the line"
            )
        else:
            log.warning("%s:%d: passing over a line that is no JSON object", path, number)
