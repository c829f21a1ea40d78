"""``probes.jsonl`` of a run: what held-out probes measured, and what followed from it.

Written by the driver, durably, before anything follows: so a resumed run knows what it was worth at
which step, how it fell, and where it must not go on from. Lines::

    {"event": "start", "fence": 2, "step": 20}              a driver goes on from step 20
    {"event": "round", "fence": 2, "step": 30, "values": {"safety": 0.8}, "prompts": {"safety": 64}}
    {"event": "rollback", "fence": 2, "step": 30, "to": 20, "text": "…"}   or pause, fail, exit
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.history import numbered_lines
from safeladder.errors import NotResumableError

RulingKind = Literal["exit", "pause", "rollback", "fail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What all probes measured on one policy version."""

    step: int
    """The version that answered."""
    values: Mapping[str, float]
    """Probe → mean score; a probe that too few answers were judged of has none."""
    prompts: Mapping[str, int]
    """Probe → answers with a verdict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """What follows from a round."""

    kind: RulingKind
    step: int
    """Of the round."""
    text: str
    """In a sentence: which probe, what value, what bound, what happens now."""
    reason: str
    """``target``, ``plateau``, or the name of the tripwire."""
    probe: str
    value: float
    to: int | None = None
    """Of a rollback: the newest step that may be gone on from."""


class ProbeLog:
    """The file, and what of it still counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fence = 0
        """Of the driver that started last; what an older one still writes does not count."""
        self.rounds: list[Round] = []
        """Of the surviving history, in order: what a driver went back behind is gone."""
        self.rulings: list[tuple[int, Ruling]] = []
        """(fence, ruling) of every ruling that was ever given."""
        for _, row in numbered_lines(path, is_strict=False):
            self._take(row)

    @property
    def num_rollbacks(self) -> int:
        return sum(ruling.kind == "rollback" for _, ruling in self.rulings)

    def start(self, fence: int, step: int) -> None:
        """A driver goes on from ``step``."""
        self._write({"event": "start", "fence": fence, "step": step})

    def add(self, fence: int, found: Round) -> None:
        """A round is over."""
        row = {"step": found.step, "values": dict(found.values), "prompts": dict(found.prompts)}
        self._write({"event": "round", "fence": fence, **row})

    def rule(self, fence: int, ruling: Ruling) -> None:
        """Something follows."""
        fields = {name: getattr(ruling, name) for name in ("step", "text", "reason", "probe")}
        self._write(
            {"event": ruling.kind, "fence": fence, **fields, "value": ruling.value, "to": ruling.to}
        )

    def forbids(self, fence: int, step: int) -> str | None:
        """Why a checkpoint that a driver of ``fence`` wrote at ``step`` must not be gone on from;
        None if it may."""
        for ruled, ruling in self.rulings:
            if ruling.to is not None and fence <= ruled and step > ruling.to:
                return f"it is later than step {ruling.to}, and {ruling.text}"
        return None

    def _take(self, row: Mapping[str, Any]) -> None:
        try:
            step, fence = int(row["step"]), int(row["fence"])
            if fence < self._fence:
                return
            match row["event"]:
                case "start":
                    self._fence = fence
                    self.rounds = [one for one in self.rounds if one.step <= step]
                case "round":
                    values, prompts = dict(row["values"]), dict(row["prompts"])
                    self.rounds.append(Round(step=step, values=values, prompts=prompts))
                case kind:
                    fields = {name: row[name] for name in ("text", "reason", "probe", "value")}
                    ruling = Ruling(kind=kind, step=step, to=row["to"], **fields)
                    self.rulings.append((fence, ruling))
        except (LookupError, TypeError, ValueError) as error:
            raise NotResumableError(
                f"{self._path}: a line is none that a run writes ({error}): restore the file"
            ) from None

    def _write(self, row: dict[str, Any]) -> None:
        before = self._path.read_bytes() if self._path.exists() else b""
        with self._path.open("ab") as file:
            is_torn = bool(before) and not before.endswith(b"\n")
            file.write((b"\n" if is_torn else b"") + json.dumps(row).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._take(row)


def last_values(rounds: Sequence[Round]) -> dict[str, float]:
    """Probe → its newest value."""
    return {name: value for one in rounds for name, value in one.values.items()}
