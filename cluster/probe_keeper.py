"""Held-out probes while RL goes on: when a round is asked, by which engine, and what it showed.

A round is due at the start of the run and then every ``probes.every_steps`` versions. The first
engine that serves a version for which one is due answers all of its prompts, beside its leases;
until the last answer is there it takes no newer weights, so that one version answers everything.
Training does not wait for it otherwise. An engine that dies leaves the round to the next one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.evaluation import Evaluation
from cluster.fleet import Fleet, FleetEvent
from cluster.probe_log import ProbeLog, Round, Ruling, last_values
from cluster.probe_watch import ruling_on
from cluster.rollout_fleets import RolloutFleets
from cluster.telemetry import Telemetry
from curricula.prompts import load_prompts
from safeladder.config import Config
from safeladder.records import Prompt, VerdictStatus

log = logging.getLogger(__name__)

FIRST_EPOCH = -2
"""Epoch in the keys of a round's leases: this, less the step. No two rounds share a key."""
MIN_SHARE = 0.5
"""A probe of which fewer answers were judged has no value."""


def probe_prompts(config: Config) -> dict[str, list[Prompt]]:
    """Probe → its prompts. Raises ``DataError``."""
    return {
        name: load_prompts(probe.data, config.routes, config.model.system_prompt)[: probe.limit]
        for name, probe in config.probes.sets.items()
    }


def outcome(probes: ProbeKeeper, ruling: Ruling | None) -> dict[str, Any]:
    """What a summary says of probes: why the run ended, their last values, what they led to."""
    how: dict[str, Any] = {"reason": "steps"}
    if ruling is not None:
        how = {"reason": ruling.reason, "probe": ruling.probe, "value": ruling.value}
        how["text"] = ruling.text
    told: dict[str, Any] = {"exit": how}
    if probes.rounds:
        told["probes"] = last_values(probes.rounds)
    if tripped := [r.text for r in probes.rulings if r.kind != "exit"]:
        told["tripwires"] = tripped
    return told


class ProbeKeeper:
    """One for each execution of a run that goes on from ``step``. ``judges`` says who judges a
    principle now. Without probes it does nothing."""

    def __init__(
        self,
        config: Config,
        prompts: Mapping[str, Sequence[Prompt]],
        rollout: RolloutFleets,
        judges: Callable[[], Mapping[str, Fleet]],
        telemetry: Telemetry,
        file: Path,
        *,
        fence: int,
        step: int,
    ) -> None:
        self._config = config
        self._rollout = rollout
        self._judges = judges
        self._telemetry = telemetry
        self._fence = fence
        self._asked = [(name, prompt) for name, rows in prompts.items() for prompt in rows]
        """(probe, prompt) of everything that a round asks."""
        self._log = ProbeLog(file) if self._asked else None
        self._round: Evaluation | None = None
        self._engine = ""
        self._version = 0
        self._principles: dict[str, str] = {}
        """Verifier fleet → principle, in the round that is open."""
        if self._log is not None:
            self._log.start(fence, step)

    @property
    def rounds(self) -> list[Round]:
        """Of the surviving history, in order."""
        return [] if self._log is None else self._log.rounds

    @property
    def rulings(self) -> list[Ruling]:
        """All that were given, in order."""
        return [] if self._log is None else [ruling for _, ruling in self._log.rulings]

    @property
    def is_open(self) -> bool:
        """Whether a round is being answered or judged."""
        return self._round is not None

    def holds(self, engine: str) -> bool:
        """Whether an engine must not load other weights now."""
        return engine == self._engine and self._round is not None and not self._round.is_generated

    def serves(self, engine: str, version: int) -> None:
        """An engine says what it serves; a round begins if one is due."""
        if self._log is None or self._round is not None or not self._is_due(version):
            return
        config, judges = self._config, self._judges()
        asked_by = {name: probe.principle for name, probe in config.probes.sets.items()}
        principles = [[asked_by[name]] for name, _ in self._asked]
        self._principles = {judges[one].name: one for one in set(asked_by.values())}
        self._engine, self._version = engine, version
        self._round = Evaluation(
            config,
            [prompt for _, prompt in self._asked],
            self._rollout,
            judges,
            self._fence,
            None,
            principles=principles,
            serving=[engine],
            version=version,
            epoch=FIRST_EPOCH - version,
        )

    def on_rollout(self, event: FleetEvent) -> None:
        """Something happened to an engine."""
        if self._round is not None:
            self._round.on_rollout(event)

    def on_verifier(self, fleet: str, event: FleetEvent) -> None:
        """Something happened to a verifier."""
        if self._round is not None and fleet in self._principles:
            self._round.on_verifier(self._principles[fleet], event)

    def step(self) -> Ruling | None:
        """Ask what can be asked; once a round is over, what follows from it."""
        if self._round is None or self._log is None:
            return None
        if self._round.is_stranded:
            self._telemetry.alert("probe", f"the round at version {self._version} is given up")
            self._round = None
            return None
        self._round.send()
        if not self._round.is_done:
            return None
        found = self._measured(self._round)
        self._round = None
        self._log.add(self._fence, found)
        self._telemetry.probed(found)
        ruling = ruling_on(self._config, self._log.rounds, self._log.num_rollbacks)
        if ruling is not None:
            self._log.rule(self._fence, ruling)
            self._telemetry.alert("exit" if ruling.kind == "exit" else "tripwire", ruling.text)
        return ruling

    def standing(self) -> Ruling | None:
        """What followed from the last round before this execution, if it has not been carried out:
        an exit. A pause was carried out by ending; who resumes the run has seen it."""
        if self._log is None:
            return None
        ruling = ruling_on(self._config, self._log.rounds, self._log.num_rollbacks)
        return ruling if ruling is not None and ruling.kind == "exit" else None

    def _is_due(self, version: int) -> bool:
        every, rounds = self._config.probes.every_steps, self.rounds
        return not rounds or version // every > rounds[-1].step // every

    def _measured(self, evaluation: Evaluation) -> Round:
        names = {id(prompt): name for name, prompt in self._asked}
        scores: dict[str, list[float]] = {name: [] for name, _ in self._asked}
        for answer in evaluation.answers:
            for verdict in answer.verdicts.values():
                if verdict.status is VerdictStatus.OK and verdict.score is not None:
                    scores[names[id(answer.prompt)]].append(verdict.score)
        asked = [name for name, _ in self._asked]
        values = {
            name: sum(found) / len(found)
            for name, found in scores.items()
            if found and len(found) >= MIN_SHARE * asked.count(name)
        }
        for name in scores.keys() - values.keys():
            self._telemetry.alert("probe", f"{name} has no value: too few answers were judged")
        return Round(
            step=self._version,
            values=values,
            prompts={name: len(found) for name, found in scores.items()},
        )
