"""Requests to the driver of a live run, as files of the run: ``<folder>/1.yaml`` asks,
``<folder>/1.json`` answers.

Files need no port and no second way in: who may write to the run's folder may change the run. An
answer says ``in force``, ``refused`` or ``withdrawn``, and why. It is written once, whole: if the
asker gives up while the driver is about to obey, the first of the two decides.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.run_directory import RunDirectory, write_json
from safeladder.errors import EnvironmentUnfitError

IN_FORCE, REFUSED, WITHDRAWN = "in force", "refused", "withdrawn"
POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Request:
    """One request."""

    number: int
    path: Path
    """What is wanted."""

    @property
    def answer(self) -> Path:
        """Where the driver says what became of it."""
        return self.path.with_suffix(".json")


class Requests:
    """The requests of one kind, in order of their numbers, in a folder of the run."""

    def __init__(self, run: RunDirectory, folder: str) -> None:
        self._run = run
        self._folder = run.path / folder

    def submit(self, text: str) -> Request:
        """Ask the run's driver for what the YAML text says."""
        self._folder.mkdir(exist_ok=True)
        partial = self._folder / f".{os.getpid()}"
        partial.write_text(text, encoding="utf-8")
        number = 1
        while True:
            path = self._folder / f"{number}.yaml"
            try:
                os.link(partial, path)  # whole at once, and never over somebody else's
            except FileExistsError:
                number += 1
                continue
            partial.unlink()
            return Request(number, path)

    def next_request(self) -> Request | None:
        """The first one that has no answer."""
        number = 1
        while (path := self._folder / f"{number}.yaml").is_file():
            request = Request(number, path)
            if not request.answer.is_file():
                return request
            number += 1
        return None

    def await_answer(self, request: Request, timeout_s: float) -> dict[str, Any]:
        """Wait for the driver. Raises ``EnvironmentUnfitError`` if it is gone or silent; the
        request is then withdrawn, unless it was answered at the last moment."""
        deadline = time.monotonic() + timeout_s
        while not request.answer.is_file():
            status = self._run.status()
            if status is None or status.exit_code is not None or time.monotonic() > deadline:
                if not self.answer(request, WITHDRAWN, "the asker waited long enough"):
                    break
                why = "ended" if status and status.exit_code is not None else "did not answer"
                raise EnvironmentUnfitError(
                    f"the driver of {self._run.path} {why}; nothing changed"
                )
            time.sleep(POLL_S)
        answer: dict[str, Any] = json.loads(request.answer.read_text(encoding="utf-8"))
        return answer

    @staticmethod
    def answer(request: Request, state: str, text: str) -> bool:
        """Whether this is the answer; False if there was one."""
        partial = request.answer.with_name(f".{request.answer.name}.{os.getpid()}.new")
        write_json(partial, {"state": state, "text": text, "unix_s": time.time()})
        try:
            os.link(partial, request.answer)
        except FileExistsError:
            return False
        finally:
            partial.unlink()
        return True
