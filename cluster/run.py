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
from cluster.execution import Execution, Started
from cluster.fleet_keeper import FleetKeeper
from cluster.loop import Loop
from cluster.panel_keeper import PanelKeeper
from cluster.probe_keeper import ProbeKeeper, outcome, probe_prompts
from cluster.probe_log import Ruling
from cluster.resume_point import ResumePoint
from cluster.run_directory import RunDirectory
from cluster.supervised import accepted_rows
from cluster.swaps import Swaps
from cluster.telemetry import Telemetry
from curricula.training_prompts import prompt_source
from safeladder.commit_points import reached
from safeladder.config import Config
from safeladder.errors import TrippedError

SFT_DEADLINE_S = 4 * 3600.0


class Run(Execution):
    """One execution of an RL run, from the start or from a checkpoint."""

    def __init__(self, config: Config, directory: RunDirectory, point: ResumePoint) -> None:
        super().__init__(config, directory, point, config.run.steps)
        self._prompts = prompt_source(config)

    def execute(self) -> int:
        """All stages; whatever ends them early, what they started is ended in reverse order."""
        with ExitStack() as stack:
            up = self._start(stack, self._prompts.digest)
            telemetry = Telemetry(
                up.config,
                self._directory,
                up.monitor,
                self._terminal,
                pid=os.getpid(),
                fence=self._fence,
            )
            for text in self._point.skipped:
                telemetry.alert("checkpoint", text)
            self._before_rl(up.config, up.crew)
            probes = ProbeKeeper(
                up.config,
                probe_prompts(up.config),
                up.crew.rollout,
                lambda: up.crew.judges,
                telemetry,
                self._directory.probes,
                fence=self._fence,
                step=self._step,
            )
            coordinator, ruling = self._rl(up, telemetry, probes)
            self._step = coordinator.last_step
            if ruling is not None and ruling.kind == "pause":
                raise TrippedError(f"{ruling.text}; go on by `safeladder resume`", "pause")
            self._evaluate("after", up.crew)
            self._footprint.stop()
            up.ledger.require_newest(self._fence)
            summary = self._results.summarize(
                coordinator,
                telemetry,
                ended=outcome(probes, ruling),
                verifiers=up.crew.verifier_versions,
                wall_s=time.monotonic() - self._started,
                peak_pss_bytes=self._footprint.peak_pss_bytes,
            )
            up.monitor.finish(summary)
            telemetry.tell_notices()
        self._terminal.close()
        reached("summary.written")
        report = self._results.report(summary, sys.stdout)
        self._say(f"report: {report}")
        self._write_status("finished", exit_code=0)
        reached("run.finished")
        return 0

    def _before_rl(self, config: Config, crew: Crew) -> None:
        """Bring the policy to version ``step``, the start of RL; evaluate it on the way."""
        if self._point.checkpoint is not None:
            if self._step == 0:  # a later version is the first thing that the coordinator publishes
                crew.publish(0)
            crew.start_reference(self._point.initial)
            return
        base = config.model.path
        if config.sft is None:
            self._evaluate("before", crew)
        else:
            self._say("supervised rung, with the evaluation of the base model beside it")
            rows, acceptance = accepted_rows(config, self._directory.path)
            for line in acceptance.lines() if acceptance else ():
                self._say(line)
            crew.learners.call(
                "sft",
                {"rows": rows, "config": config.sft},
                context="sft",
                deadline_s=SFT_DEADLINE_S,
            )
            self._evaluate("before", crew)
            metrics = crew.await_learner("sft")
            self._say(f"supervised rung: loss {metrics['loss']:.3f} on {len(rows)} rows")
            crew.queue_save(0, self._directory.initial)
            base = crew.await_learner(("checkpoint", 0))
            crew.publish(0)
            self._evaluate("after_sft", crew)
        crew.start_reference(base)

    def _rl(
        self, up: Started, telemetry: Telemetry, probes: ProbeKeeper
    ) -> tuple[Coordinator, Ruling | None]:
        config, crew = up.config, up.crew
        self._write_status("running")
        self._say(f"training: {config.run.steps - self._step} steps")
        coordinator = Coordinator(config, self._prompts, self._fence, up.ledger.snapshot())
        telemetry.panel_in_force(crew.panel, crew.verifier_versions)
        swaps = Swaps(self._directory)
        keeper = PanelKeeper(self._panel_source, crew, swaps, up.services, telemetry)
        ruling = Loop(
            config,
            fence=self._fence,
            coordinator=coordinator,
            ledger=up.ledger,
            rollout=crew.rollout,
            verifiers=crew.verifiers,
            keeper=keeper,
            probes=probes,
            fleets=FleetKeeper(crew.rollout, self._directory, telemetry),
            reference=crew.reference,
            learners=crew.learners,
            weights=crew.weights,
            services=up.services,
            telemetry=telemetry,
            save=lambda step: crew.queue_save(step, self._directory.checkpoints),
            saved=self._step if self._point.checkpoint is not None else None,
        ).run()
        crew.settle()
        reached("loop.finished")
        return coordinator, ruling
