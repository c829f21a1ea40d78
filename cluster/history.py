"""What a run has written, read back: ``metrics.jsonl`` and the other files of JSON lines.

Knows the axes of the records and the marks that a killed writer leaves; not what they mean.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from cluster.run_directory import RunDirectory

log = logging.getLogger(__name__)

AXES = {"train": "train/step", "rollout": "rollout/version", "eval": "eval/step"}
"""Kind of a record → the axis that its values must carry, and that W&B draws them over."""


def read_history(run_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """Kind → rows of ``metrics.jsonl`` in order of their axis; alerts in order of time.

    A step that was repeated after a resume counts once, the last time. Lines that a killed writer
    left half written are passed over.
    """
    history: dict[str, dict[Any, dict[str, Any]]] = {}
    for number, row in enumerate(read_lines(RunDirectory(run_dir).metrics)):
        kind = str(row.get("kind"))
        history.setdefault(kind, {})[row.get(AXES.get(kind, ""), number)] = row
    return {kind: [rows[key] for key in sorted(rows)] for kind, rows in history.items()}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """JSON objects of a file of lines; none if it is not there."""
    rows = []
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    for line in filter(None, lines):
        try:
            rows.append(json.loads(line))
        except ValueError:
            log.warning("%s: passing over a half-written line", path)
    return rows
