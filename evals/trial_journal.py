"""Answers on disk while a probe goes on: one line each, so that nothing answered is asked again.

``trials.jsonl`` begins with a line of settings; every further line is one trial, written by one
call and flushed to the disk before it counts. A last line without its end was cut by a crash: it is
taken off, with a message. Any other broken line is an error that names it. One process writes at a
time.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from safeladder.errors import ConfigError, DataError, EnvironmentUnfitError
from safeladder.records import FinishReason

log = logging.getLogger(__name__)

Failure = Literal["deadline", "prompt_too_long"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What an engine made of one trial, and the verdicts on it."""

    id: str
    """Of the trial."""
    answers: tuple[str, ...] = ()
    """One for each turn that was answered; the last one is judged."""
    tokens: int = 0
    """Sampled, over all turns."""
    finish_reason: FinishReason | None = None
    """Of the last answer."""
    seconds: float = 0.0
    passed: tuple[bool | None, ...] = ()
    """[n] in presented order; None is INVALID."""
    causes: Mapping[str, str] | None = None
    """Slot → why its verdict is INVALID."""
    failure: Failure | None = None
    """Why there is no answer."""
    detail: str = ""

    def __post_init__(self) -> None:
        if (self.failure is None) == (self.finish_reason is None):
            raise ValueError(f"trial {self.id}: either an answer or a failure")


class TrialJournal:
    """The file, and what it held when it was opened. Close it, or use it as a context."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Raises ``ConfigError`` if the file is of a probe with other settings, or if another
        process writes it, ``DataError`` for a broken line, ``EnvironmentUnfitError`` for a place
        that cannot be written."""
        self.path = path
        self.answered: dict[str, Answered] = {}
        """Trial → its newest line. A trial that missed its deadline is not here: ask it again."""
        settings = json.loads(json.dumps(settings))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise EnvironmentUnfitError(f"{path} cannot be written: {error.strerror}") from None
        try:
            self._take_over(settings)
        except BaseException:
            os.close(self._file)
            raise

    def append(self, answered: Answered) -> None:
        """Make one answer durable. Raises ``EnvironmentUnfitError`` if the disk takes no more."""
        self._write(asdict(answered))
        self.answered[answered.id] = answered

    def close(self) -> None:
        """Let another process write."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take_over(self, settings: Mapping[str, Any]) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"{self.path} is being written by another process") from None
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            log.warning("%s: the last line was cut; it is dropped and asked again", self.path)
            os.ftruncate(self._file, len(whole))
        lines = whole.splitlines()
        if not lines:
            self._write({"settings": settings})
            return
        self._require_same(_parse(self.path, 1, lines[0]).get("settings"), settings)
        for number, line in enumerate(lines[1:], 2):
            answered = _answered(self.path, number, _parse(self.path, number, line))
            self.answered[answered.id] = answered
        for trial in [a.id for a in self.answered.values() if a.failure == "deadline"]:
            del self.answered[trial]

    def _require_same(self, stored: Any, settings: Mapping[str, Any]) -> None:
        if not isinstance(stored, dict):
            raise DataError(f"{self.path}:1: no settings; name another --out")
        for key in sorted({*stored, *settings}):
            was, now = stored.get(key), settings.get(key)
            if was != now:
                raise ConfigError(
                    f"{self.path} holds a probe with {key} {was!r}, and now it is {now!r}: name "
                    "another --out, or go on with the same settings"
                )

    def _write(self, row: Mapping[str, Any]) -> None:
        line = json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        try:
            written = os.write(self._file, line)
            if written < len(line):
                raise OSError(28, "the disk is full")
            os.fsync(self._file)
        except OSError as error:
            raise EnvironmentUnfitError(
                f"{self.path} cannot be written: {error.strerror}"
            ) from None


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{path}:{number}: not JSON ({error}); name another --out") from None
    if not isinstance(row, dict):
        raise DataError(f"{path}:{number}: no object; name another --out")
    return row


def _answered(path: Path, number: int, row: dict[str, Any]) -> Answered:
    try:
        row |= {key: tuple(row[key]) for key in ("answers", "passed")}
        return Answered(**row)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}:{number}: no trial of a probe ({error})") from None
