"""All actors of one run: who is spawned, when it counts as up, and the few things the driver asks
of them outside the training loop. Everything it starts, it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from actors.rollout import EngineStatus
from cluster.engines import LOAD_CALL_S
from cluster.fleet import Exhausted, Fleet, Joined, Lost, Reply
from cluster.learner_group import LearnerGroup, LearnerLost
from cluster.panel import Panel
from cluster.placement import Placement, engine_placement, placement_of
from cluster.protocol import REFERENCE
from cluster.remote import spawn
from cluster.role_host import RayPeer, build_store_owner
from cluster.roles import Builders, build_verifier_role
from cluster.rollout_fleets import RolloutFleets
from cluster.weight_store import PublishedWeights, WeightStore
from safeladder.config import Config, EngineFleet, PrincipleConfig
from safeladder.errors import (
    EnvironmentUnfitError,
    RunFailedError,
    SafeladderError,
    VerifierUnavailableError,
)
from safeladder.records import WeightManifest

SAVE_DEADLINE_S = 1800.0
VERIFIER_START_DEADLINE_S = 300.0
WAIT_S = 0.05


class Crew:
    """The actors of one run, as a context: leaving it ends them all."""

    def __init__(self, config: Config, fence: int, builders: Builders | None = None) -> None:
        self._builders = builders or Builders()
        self._config = config
        self._fence = fence
        self._stack = ExitStack()
        self.weights = WeightStore(fence)
        self.owner = spawn("store", build_store_owner, {}, placement_of("store", config))
        self.learners = LearnerGroup(config, self.owner, self._builders.learner)
        self._stack.callback(self.learners.close)
        self.rollout = RolloutFleets(
            {
                name: self._engines(fleet)
                for name, fleet in config.engine_fleets.items()
                if config.generates
            }
        )
        nobody = config.model_copy(update={"principles": {}, "routes": {}})
        self.panel = Panel.first(config if config.generates else nobody)
        self.verifiers = {
            fleet: self.verifier_fleet(fleet, principle, config.principles[principle])
            for principle, fleet in self.panel.fleets.items()
        }
        """Name → fleet; those of a panel that is being replaced too."""
        self.reference: Fleet | None = None
        self.verifier_versions: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def bring_up(self, model_path: Path, checkpoint: Path | None) -> None:
        """Load the model everywhere; returns when the learner and one actor of each fleet are up.

        Raises ``EnvironmentUnfitError``, ``VerifierUnavailableError`` or ``RunFailedError`` with
        the first reason why one of them will not come.
        """
        self.learners.start(model_path, checkpoint)
        deadline_s = self._config.placement.start_deadline_s
        for name, fleet in self.judges.items():
            try:
                status = wait_for_one(fleet, deadline_s)
            except EnvironmentUnfitError as error:
                raise VerifierUnavailableError(str(error)) from error
            self.verifier_versions[name] = f"{status.verifier} {status.verifier_version}"
        fleets = self._config.engine_fleets.values() if self._config.generates else ()
        names = [fleet.name for fleet in fleets if fleet.actors]
        for name in names:
            wait_for_one(self.rollout.fleets[name], deadline_s)
        if fleets and not names:
            wait_for_one(self.rollout, deadline_s)
        self.await_learner("start")

    def _engines(self, fleet: EngineFleet) -> Fleet:
        arguments: dict[str, Any] = {"config": self._config, "fleet": fleet.name}
        if self._config.weights.transport != "object_store":
            arguments["learner"] = RayPeer(self.learners.publisher)
        return self._fleet(
            fleet.name,
            self._builders.rollout,
            arguments,
            where=engine_placement(fleet, self._config),
            size=fleet.most_actors,
            num_needed=fleet.actors,
        )

    @property
    def judges(self) -> dict[str, Fleet]:
        """Principle → the fleet that judges it now."""
        return {name: self.verifiers[fleet] for name, fleet in self.panel.fleets.items()}

    def verifier_fleet(self, fleet: str, principle: str, settings: PrincipleConfig) -> Fleet:
        """Start the actors that judge a principle; ends with the crew, or before."""
        return self._fleet(
            fleet,
            build_verifier_role,
            {"principle": principle, "config": settings},
            where=placement_of("verifier", self._config),
            size=settings.actors,
            start_deadline_s=VERIFIER_START_DEADLINE_S,
        )

    def start_reference(self, model_path: Path) -> None:
        """Start the frozen policy from ``model_path``, if the objective needs it."""
        if self._config.reference.enabled:
            self.reference = self._fleet(
                REFERENCE,
                self._builders.reference,
                {"config": self._config, "model_path": model_path},
                where=placement_of(REFERENCE, self._config),
                size=self._config.reference.actors,
            )

    def publish(self, version: int) -> None:
        """Export the learner's weights as ``version`` and let every engine load them, now."""
        arguments = {"version": version, "fence": self._fence}
        self.learners.call("publish", arguments, context="publish", deadline_s=LOAD_CALL_S)
        manifest, payload = self.await_learner("publish")
        self.weights.commit(PublishedWeights(manifest=manifest, payload=payload))
        for engine in self.rollout.ready:
            self.rollout.call(
                engine,
                "load_weights",
                {"manifest": manifest, "payload": payload},
                context="load",
                deadline_s=LOAD_CALL_S,
            )
        self._await_loads(len(self.rollout.ready), manifest)

    def queue_save(self, step: int, root: Path) -> None:
        """Let the learner write a checkpoint after what it has been asked before."""
        arguments = {
            "parent": root,
            "step": step,
            "fence": self._fence,
            "extra": {"run": self._config.run.name, **_heads(self._config)},
        }
        self.learners.call(
            "save_checkpoint", arguments, context=("checkpoint", step), deadline_s=SAVE_DEADLINE_S
        )

    def await_learner(self, context: Any) -> Any:
        """Wait for one operation of the learner. Raises ``RunFailedError`` if it is lost."""
        while True:
            for event in self.learners.poll():
                if isinstance(event, LearnerLost):
                    raise RunFailedError(event.reason, event.exit_code)
                if event.context == context:
                    return event.value
            if self.learners.is_idle:
                raise RunFailedError(f"the learner was not asked for {context!r}", 1)
            time.sleep(WAIT_S)

    def settle(self) -> None:
        """Wait until the learner has done all that it was asked. Raises ``RunFailedError``."""
        while not self.learners.is_idle:
            for event in self.learners.poll():
                if isinstance(event, LearnerLost):
                    raise RunFailedError(event.reason, event.exit_code)
            time.sleep(WAIT_S)

    def _await_loads(self, engines: int, manifest: WeightManifest) -> None:
        while engines:
            for event in self.rollout.poll():
                if isinstance(event, Exhausted):
                    raise SafeladderError(f"no rollout actor is left: {event.reason}")
                if isinstance(event, Lost):
                    engines -= "load" in event.contexts
                elif isinstance(event, Reply) and event.context == "load":
                    engines -= 1
                    status = event.value
                    if not isinstance(status, EngineStatus) or not status.has_loaded(manifest):
                        self.rollout.retire(event.actor, f"weights not loaded: {status}")
            time.sleep(WAIT_S)

    def _fleet(
        self,
        name: str,
        build: Callable[..., Any],
        arguments: Mapping[str, Any],
        *,
        where: Placement,
        size: int,
        num_needed: int | None = None,
        start_deadline_s: float | None = None,
    ) -> Fleet:
        fleet = Fleet(
            name,
            lambda actor: spawn(
                actor, build, {"name": actor, **arguments}, where, owner=self.owner
            ),
            size=size,
            num_needed=num_needed,
            start_deadline_s=start_deadline_s or self._config.placement.start_deadline_s,
        )
        self._stack.callback(fleet.close)
        return fleet


def _heads(config: Config) -> dict[str, str]:
    """What a checkpoint of a value model says of its heads, in order."""
    if config.stage != "value_model" or config.value_model is None:
        return {}
    return {"value_heads": ",".join(config.value_model.principles)}


def wait_for_one(fleet: Fleet | RolloutFleets, deadline_s: float) -> Any:
    """Wait until one actor of a fleet is up; returns what its ``start`` returned.

    The first actor that cannot start ends the wait: what fails at the very start fails again.
    Raises ``EnvironmentUnfitError``.
    """
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        for event in fleet.poll():
            if isinstance(event, Joined):
                return event.value
            if isinstance(event, Lost):
                raise EnvironmentUnfitError(f"{event.actor} did not come up: {event.reason}")
        time.sleep(WAIT_S)
    raise EnvironmentUnfitError(f"no {fleet.name} actor came up within {deadline_s:.0f} s")
