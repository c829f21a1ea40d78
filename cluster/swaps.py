"""Hot swaps of principles: what is asked for, what may change, and how a run's files say so.

Requests are files of the run, ``swaps/1.yaml`` and on (see ``requests``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from cluster.canaries import Canary, canaries_of
from cluster.checks import built_version, check_routes, check_verifier
from cluster.data_checks import check_data
from cluster.panel import Panel
from cluster.requests import IN_FORCE, REFUSED, Request, Requests
from cluster.run_directory import RunDirectory
from safeladder.config import Config
from safeladder.config_loading import config_hash, load_config, resolved_yaml
from safeladder.errors import ConfigError, VerifierUnavailableError

MAY_CHANGE = ("principles", "routes", "reward")


@dataclass(frozen=True, slots=True)
class SwapRequest(Request):
    """One request; its file is the whole configuration that is wanted, resolved."""

    @classmethod
    def of(cls, request: Request) -> Self:
        """A request in the folder of swaps."""
        return cls(request.number, request.path)

    def config(self) -> Config:
        """What is wanted. Raises ``ConfigError``."""
        return load_config([self.path])


@dataclass(frozen=True, slots=True)
class PanelSource:
    """What a panel is made of: its configuration, and what that names, read at one moment. Later
    changes of a file do not reach who has this."""

    config: Config
    canaries: Mapping[str, list[Canary]]
    """Principle → canaries, for those that have some."""
    versions: Mapping[str, str]
    """Principle → version of its verifier as built from the files of this moment, for those that
    the run builds itself."""

    @classmethod
    def read(cls, config: Config) -> Self:
        """Raises ``ConfigError``."""
        built = {name: built_version(name, p) for name, p in config.principles.items()}
        versions = {name: version for name, version in built.items() if version is not None}
        return cls(config, canaries_of(config), versions)

    def parts(self, principle: str) -> tuple[Any, ...]:
        """All that its fleet depends on; equal parts, equal verdicts. Python code that is imported
        already is not looked at again, but for reward functions, whose versions hash it."""
        return (
            self.config.principles.get(principle),
            self.versions.get(principle),
            self.canaries.get(principle),
        )


class Swaps:
    """The requests for a swap, in order of their numbers."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._requests = Requests(run, "swaps")

    def submit(self, config: Config) -> SwapRequest:
        """Ask the run's driver for the principles of ``config``."""
        return SwapRequest.of(self._requests.submit(resolved_yaml(config)))

    def next_request(self) -> SwapRequest | None:
        """The first one that has no answer."""
        request = self._requests.next_request()
        return None if request is None else SwapRequest.of(request)

    def commit(
        self, request: SwapRequest, config: Config, panel: Panel, versions: Mapping[str, str]
    ) -> str | None:
        """The panel is in force: the answer and ``config.yaml`` say so. Returns the sentence, or
        None if the request was withdrawn meanwhile. Raises ``OSError`` with nothing changed."""
        text = ", ".join(f"{name}: {versions[name]}" for name in panel.fleets)
        text = f"swap {request.number} is in force, generation {panel.generation}: {text}"
        files = {
            self._run.config_file: resolved_yaml(config),
            self._run.path / "config.sha256": config_hash(config) + "\n",
        }
        partials = {path: path.with_name(f"{path.name}.partial") for path in files}
        try:
            for path, content in files.items():
                partials[path].write_text(content, encoding="utf-8")
            if not self._requests.answer(request, IN_FORCE, text):
                return None
            for path, partial in partials.items():  # needs no space: the answer is true already
                partial.replace(path)
        finally:
            for partial in partials.values():
                partial.unlink(missing_ok=True)
        return text

    def refuse(self, request: SwapRequest, reason: str) -> None:
        """Nothing changes."""
        self._requests.answer(request, REFUSED, reason)

    def await_answer(self, request: SwapRequest, timeout_s: float) -> dict[str, Any]:
        """See ``Requests.await_answer``."""
        return self._requests.await_answer(request, timeout_s)


def check_swap(current: Config, request: SwapRequest) -> PanelSource:
    """What is wanted, if a live run can go over to it. Raises ``ConfigError`` and what checking a
    verifier raises."""
    wanted = request.config()
    require_principles_only(current, wanted)
    check_routes(wanted)
    check_data(wanted)
    for principle, settings in wanted.principles.items():
        check_verifier(principle, settings)
    return PanelSource.read(wanted)


def kept_principles(current: PanelSource, wanted: PanelSource) -> set[str]:
    """Those that stay as they are: settings, and what they name."""
    names = wanted.config.principles
    return {name for name in names if current.parts(name) == wanted.parts(name)}


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
    if answer["state"] != IN_FORCE:
        raise VerifierUnavailableError(f"the run refuses, nothing changed: {answer['text']}")
    return str(answer["text"])
