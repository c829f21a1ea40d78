"""Requests for a hot swap, as files of the run: ``swaps/1.yaml`` asks, ``swaps/1.json`` answers.

Files need no port and no second way in: who may write to the run's folder may change the run. The
answer says ``in force`` or ``refused``, and why.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.checks import check_routes, check_verifier
from cluster.data_checks import check_data
from cluster.panel import Panel
from cluster.run_directory import RunDirectory, write_json
from safeladder.config import Config
from safeladder.config_loading import load_config, resolved_yaml
from safeladder.errors import ConfigError, EnvironmentUnfitError, VerifierUnavailableError

MAY_CHANGE = ("principles", "routes", "reward")
POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class SwapRequest:
    """One request."""

    number: int
    path: Path
    """The whole configuration that is wanted, resolved."""

    def config(self) -> Config:
        """What is wanted. Raises ``ConfigError``."""
        return load_config([self.path])

    @property
    def answer(self) -> Path:
        """Where the driver says what became of it."""
        return self.path.with_suffix(".json")


class Swaps:
    """The requests of one run, in order of their numbers."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._folder = run.path / "swaps"

    def submit(self, config: Config) -> SwapRequest:
        """Ask the run's driver for the principles of ``config``."""
        self._folder.mkdir(exist_ok=True)
        partial = self._folder / f".{os.getpid()}"
        partial.write_text(resolved_yaml(config), encoding="utf-8")
        number = 1
        while True:
            path = self._folder / f"{number}.yaml"
            try:
                os.link(partial, path)  # whole at once, and never over somebody else's
            except FileExistsError:
                number += 1
                continue
            partial.unlink()
            return SwapRequest(number, path)

    def next_request(self) -> SwapRequest | None:
        """The first one that has no answer."""
        number = 1
        while (path := self._folder / f"{number}.yaml").is_file():
            request = SwapRequest(number, path)
            if not request.answer.is_file():
                return request
            number += 1
        return None

    def commit(self, request: SwapRequest, panel: Panel, versions: Mapping[str, str]) -> str:
        """The panel is in force: ``config.yaml`` and the answer say so. Returns the sentence."""
        config = request.config()
        partial = self._run.config_file.with_suffix(".partial")
        partial.write_text(resolved_yaml(config), encoding="utf-8")
        partial.replace(self._run.config_file)
        self._run.write_hash(config)
        text = ", ".join(f"{name}: {versions[name]}" for name in panel.fleets)
        text = f"swap {request.number} is in force, generation {panel.generation}: {text}"
        write_json(request.answer, {"state": "in force", "text": text, "unix_s": time.time()})
        return text

    def refuse(self, request: SwapRequest, reason: str) -> None:
        """Nothing changes."""
        write_json(request.answer, {"state": "refused", "text": reason, "unix_s": time.time()})

    def await_answer(self, request: SwapRequest, timeout_s: float) -> dict[str, Any]:
        """Wait for the driver. Raises ``EnvironmentUnfitError`` if it is gone or silent; the
        request is then withdrawn."""
        deadline = time.monotonic() + timeout_s
        while not request.answer.is_file():
            status = self._run.status()
            if status is None or status.exit_code is not None or time.monotonic() > deadline:
                self.refuse(request, "withdrawn")
                why = "ended" if status and status.exit_code is not None else "did not answer"
                raise EnvironmentUnfitError(
                    f"the driver of {self._run.path} {why}; nothing changed"
                )
            time.sleep(POLL_S)
        answer: dict[str, Any] = json.loads(request.answer.read_text(encoding="utf-8"))
        return answer


def check_swap(current: Config, request: SwapRequest) -> Config:
    """The wanted configuration, if a live run can go over to it. Raises ``ConfigError`` and what
    checking a verifier raises."""
    wanted = request.config()
    require_principles_only(current, wanted)
    check_routes(wanted)
    check_data(wanted)
    for principle in wanted.principles.keys() - kept_principles(current, wanted):
        check_verifier(principle, wanted.principles[principle])
    return wanted


def kept_principles(current: Config, wanted: Config) -> set[str]:
    """Those that stay as they are."""
    return {
        name
        for name, settings in wanted.principles.items()
        if settings == current.principles.get(name)
    }


def require_principles_only(current: Config, wanted: Config) -> None:
    """Refuse a change of anything that a live run cannot change. Raises ``ConfigError``."""
    for section in type(current).model_fields:
        if section not in MAY_CHANGE and getattr(current, section) != getattr(wanted, section):
            raise ConfigError(
                f"{section} differs from the run's; a live run can change {', '.join(MAY_CHANGE)}"
            )


def swap_principles(run_dir: Path, overlays: Sequence[Path], wait_s: float) -> str:
    """What the verb ``principles`` does: ask, wait, and return the driver's sentence.

    Raises ``ConfigError`` for what cannot be swapped, ``VerifierUnavailableError`` if the run
    refuses, ``EnvironmentUnfitError`` if no driver answers.
    """
    run = RunDirectory.open(run_dir)
    wanted = load_config([run.config_file, *overlays])
    require_principles_only(run.config(), wanted)
    swaps = Swaps(run)
    answer = swaps.await_answer(swaps.submit(wanted), wait_s)
    if answer["state"] != "in force":
        raise VerifierUnavailableError(f"the run refuses, nothing changed: {answer['text']}")
    return str(answer["text"])
