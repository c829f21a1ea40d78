"""What every execution of a run has, whatever it trains: the ledger with its fence, the actors, the
held-out answers, the status. ``run`` and ``stage_run`` say what is done with them."""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass

from cluster.crew import Crew
from cluster.evaluation import Evaluation
from cluster.footprint import Footprint
from cluster.ledger import Ledger
from cluster.monitor_link import MonitorLink
from cluster.panel_keeper import require_right_canaries
from cluster.remote import session
from cluster.results import Results
from cluster.resume_point import ResumePoint
from cluster.run_directory import RunDirectory, Status
from cluster.services import VerifierServices
from cluster.swaps import PanelSource
from cluster.terminal import Terminal
from curricula.prompts import load_prompts
from safeladder.commit_points import reached
from safeladder.config import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """What is there once everything is up."""

    config: Config
    """With the addresses of the services that the run started."""
    ledger: Ledger
    services: VerifierServices
    crew: Crew
    monitor: MonitorLink


class Execution:
    """One execution, from the start or from a checkpoint."""

    def __init__(
        self, config: Config, directory: RunDirectory, point: ResumePoint, total_steps: int
    ) -> None:
        self._config = config
        self._directory = directory
        self._point = point
        self._step = point.step
        self._total_steps = total_steps
        self._started = time.monotonic()
        self._fence = 0
        self._terminal = Terminal(sys.stdout, total_steps)
        self._footprint = Footprint()
        self._held_out = load_prompts(
            config.data.held_out, config.routes, config.model.system_prompt
        )
        self._panel_source = PanelSource.read(config)
        self._results = Results(config, directory, self._held_out)

    def _start(self, stack: ExitStack, digest: str) -> Started:
        """Take the run over and bring everything up; what ends it early is ended in reverse order.
        ``digest`` is of all that decides what the run trains in which order."""
        self._write_status("starting")
        stack.callback(self._terminal.close)
        self._footprint.start()
        stack.callback(self._footprint.stop)
        ledger = stack.enter_context(
            Ledger.open(self._directory.ledger, self._config.run.name, digest)
        )
        self._ledger = ledger
        self._fence = ledger.raise_fence(self._settle, has_groups=self._config.stage == "rl")
        point = self._point
        if point.checkpoint is not None:
            self._say(f"going on from {point.checkpoint}, {len(point.skipped)} newer skipped")
        services = VerifierServices(
            self._config, self._directory.config_file, self._directory.services
        )
        stack.callback(services.close)
        config = self._config
        if config.generates:
            self._say("starting verifier services and Ray")
            config = services.start()
            reached("services.started")
        stack.enter_context(session(config))
        reached("ray.started")
        crew = stack.enter_context(Crew(config, self._fence))
        roles = "rollout engine, learner, verifiers" if config.generates else "learner"
        self._say(f"loading the model: {roles}")
        crew.bring_up(config.model.path, point.checkpoint)
        reached("crew.up")
        if config.generates:
            require_right_canaries(crew, self._panel_source.canaries)
        monitor = MonitorLink(config, self._directory.path, crew.verifier_versions)
        stack.callback(monitor.close)
        return Started(config=config, ledger=ledger, services=services, crew=crew, monitor=monitor)

    def _settle(self, fence: int) -> int:
        """The step to go on from, now that no other driver can write."""
        self._point = self._point.settle(self._config, self._directory, fence)
        self._step = self._point.step
        return self._step

    def _evaluate(self, stage: str, crew: Crew) -> None:
        if not self._held_out:
            return
        self._say(f"evaluation `{stage}`: {len(self._held_out)} held-out prompts, greedy")
        evaluation = Evaluation(
            crew.panel.config,
            self._held_out,
            crew.rollout,
            crew.judges,
            self._fence,
            crew.weights.newest,
        )
        answers = evaluation.run()
        self._ledger.require_newest(self._fence)  # else they are not this run's answers any more
        self._results.add(stage, answers)
        reached("evaluation.written", stage)
        self._say(f"evaluation `{stage}`: {self._results.describe(stage)}")

    def _say(self, text: str) -> None:
        self._terminal.say(text)

    def _write_status(self, state: str, exit_code: int | None = None) -> None:
        directory = self._directory
        write = directory.write_status if state == "starting" else directory.write_own_status
        write(
            Status(
                state=state,  # type: ignore[arg-type]
                pid=os.getpid(),
                step=self._step,
                version=self._step,
                exit_code=exit_code,
            )
        )
