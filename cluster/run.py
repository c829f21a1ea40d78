"""One execution of a run, from the ledger to the report.

::

    ledger, verifier services, Ray ─▶ crew (all actors)
        base evaluation  ‖  supervised rung, if any      the two run side by side
                  └──▶ version 0 published ─▶ evaluation of the rung
                            └──▶ loop (asynchronous RL) ─▶ evaluation ─▶ summary, report

Owns the order of the stages; the loop owns the training, the crew the processes. Importing it loads
Ray and PyTorch, which takes seconds: ``driver`` checks everything first.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack

from cluster.coordinator import Coordinator
from cluster.crew import Crew
from cluster.evaluation import Evaluation
from cluster.fleet_keeper import FleetKeeper
from cluster.footprint import Footprint
from cluster.ledger import Ledger
from cluster.loop import Loop
from cluster.monitor_link import MonitorLink
from cluster.panel_keeper import PanelKeeper, require_right_canaries
from cluster.remote import session
from cluster.results import Results
from cluster.resume_point import ResumePoint
from cluster.run_directory import RunDirectory, Status
from cluster.services import VerifierServices
from cluster.supervised import supervised_rows
from cluster.swaps import PanelSource, Swaps
from cluster.telemetry import Telemetry
from cluster.terminal import Terminal
from curricula.prompts import PromptOrder, load_prompts
from safeladder.commit_points import reached
from safeladder.config import Config

SFT_DEADLINE_S = 4 * 3600.0


class Run:
    """One execution of a run, from the start or from a checkpoint."""

    def __init__(self, config: Config, directory: RunDirectory, point: ResumePoint) -> None:
        self._config = config
        self._directory = directory
        self._point = point
        self._step = point.step
        self._started = time.monotonic()
        self._fence = 0
        self._terminal = Terminal(sys.stdout, config.run.steps)
        data, prompt = config.data, config.model.system_prompt
        self._prompts = PromptOrder(
            load_prompts(data.train, config.routes, prompt), config.run.seed, data.shuffle
        )
        self._held_out = load_prompts(data.held_out, config.routes, prompt)
        self._panel_source = PanelSource.read(config)
        self._results = Results(config, directory, self._held_out)

    def execute(self) -> int:
        """All stages; whatever ends them early, what they started is ended in reverse order."""
        self._write_status("starting")
        with ExitStack() as stack:
            stack.callback(self._terminal.close)
            footprint = Footprint()
            footprint.start()
            stack.callback(footprint.stop)
            run = self._config.run.name
            ledger = stack.enter_context(
                Ledger.open(self._directory.ledger, run, self._prompts.digest)
            )
            self._ledger = ledger
            self._fence = ledger.raise_fence(self._settle)
            point = self._point
            if point.checkpoint is not None:
                self._say(f"going on from {point.checkpoint}, {len(point.skipped)} newer skipped")
            services = VerifierServices(
                self._config, self._directory.config_file, self._directory.services
            )
            stack.callback(services.close)
            self._say("starting verifier services and Ray")
            config = services.start()
            reached("services.started")
            stack.enter_context(session(config))
            reached("ray.started")
            crew = stack.enter_context(Crew(config, self._fence))
            self._say("loading the model: rollout engine, learner, verifiers")
            crew.bring_up(config.model.path, point.checkpoint)
            reached("crew.up")
            require_right_canaries(crew, self._panel_source.canaries)
            monitor = MonitorLink(config, self._directory.path, crew.verifier_versions)
            stack.callback(monitor.close)
            telemetry = Telemetry(
                config,
                self._directory,
                monitor,
                self._terminal,
                pid=os.getpid(),
                fence=self._fence,
            )
            for text in point.skipped:
                telemetry.alert("checkpoint", text)
            self._before_rl(config, crew)
            coordinator = self._rl(config, crew, ledger, services, telemetry)
            self._evaluate("after", config, crew)
            footprint.stop()
            ledger.require_newest(self._fence)
            summary = self._results.summarize(
                coordinator,
                telemetry,
                verifiers=crew.verifier_versions,
                wall_s=time.monotonic() - self._started,
                peak_pss_bytes=footprint.peak_pss_bytes,
            )
            monitor.finish(summary)
            telemetry.tell_notices()
        self._terminal.close()
        reached("summary.written")
        report = self._results.report(summary, sys.stdout)
        self._say(f"report: {report}")
        self._step = self._config.run.steps
        self._write_status("finished", exit_code=0)
        reached("run.finished")
        return 0

    def _settle(self, fence: int) -> int:
        """The step to go on from, now that no other driver can write."""
        self._point = self._point.settle(self._config, self._directory, fence)
        self._step = self._point.step
        return self._step

    def _before_rl(self, config: Config, crew: Crew) -> None:
        """Bring the policy to version ``step``, the start of RL; evaluate it on the way."""
        if self._point.checkpoint is not None:
            if self._step == 0:  # a later version is the first thing that the coordinator publishes
                crew.publish(0)
            crew.start_reference(self._point.initial)
            return
        base = config.model.path
        if config.sft is None:
            self._evaluate("before", config, crew)
        else:
            self._say("supervised rung, with the evaluation of the base model beside it")
            rows = supervised_rows(config)
            crew.learners.call(
                "sft",
                {"rows": rows, "config": config.sft},
                context="sft",
                deadline_s=SFT_DEADLINE_S,
            )
            self._evaluate("before", config, crew)
            metrics = crew.await_learner("sft")
            self._say(f"supervised rung: loss {metrics['loss']:.3f} on {len(rows)} rows")
            crew.queue_save(0, self._directory.initial)
            base = crew.await_learner(("checkpoint", 0))
            crew.publish(0)
            self._evaluate("after_sft", config, crew)
        crew.start_reference(base)

    def _rl(
        self,
        config: Config,
        crew: Crew,
        ledger: Ledger,
        services: VerifierServices,
        telemetry: Telemetry,
    ) -> Coordinator:
        self._write_status("running")
        self._say(f"training: {config.run.steps - self._step} steps")
        coordinator = Coordinator(config, self._prompts, self._fence, ledger.snapshot())
        telemetry.panel_in_force(crew.panel, crew.verifier_versions)
        swaps = Swaps(self._directory)
        keeper = PanelKeeper(self._panel_source, crew, swaps, services, telemetry)
        Loop(
            config,
            fence=self._fence,
            coordinator=coordinator,
            ledger=ledger,
            rollout=crew.rollout,
            verifiers=crew.verifiers,
            keeper=keeper,
            fleets=FleetKeeper(crew.rollout, self._directory, telemetry),
            reference=crew.reference,
            learners=crew.learners,
            weights=crew.weights,
            services=services,
            telemetry=telemetry,
            save=lambda step: crew.queue_save(step, self._directory.checkpoints),
        ).run()
        crew.settle()
        reached("loop.finished")
        return coordinator

    def _evaluate(self, stage: str, config: Config, crew: Crew) -> None:
        if not self._held_out:
            return
        self._say(f"evaluation `{stage}`: {len(self._held_out)} held-out prompts, greedy")
        config = crew.panel.config
        evaluation = Evaluation(
            config,
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
