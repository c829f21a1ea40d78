"""One execution of a run whose stage passes over rows: supervised, preference, value model.

::

    rows ─▶ ledger (fence), Ray ─▶ crew ─▶ learner takes the rows
                base evaluation  ‖  first steps      if there are held-out prompts
                     └──▶ steps, checkpoints ─▶ last version published ─▶ evaluation ─▶ summary

A step is a pure function of (checkpoint, rows, seed, step), so nothing is kept of a step but its
metrics and, every now and then, a checkpoint: a resumed run takes the same rows again. Two steps
are always ordered, so that the learner does not wait for the driver.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from cluster.execution import Execution, Started
from cluster.history import read_history, read_lines
from cluster.learner_group import LearnerLost
from cluster.report import write_summary
from cluster.resume_point import ResumePoint
from cluster.run_directory import RunDirectory
from cluster.stage_rows import StageRows, digest_of, load_stage_rows, plan_of
from safeladder.commit_points import reached
from safeladder.config import Config
from safeladder.errors import RunFailedError
from safeladder.records import StepReport

STEPS_AHEAD = 2
BEGIN_DEADLINE_S = 12 * 3600.0
"""Taking the rows may price all of them by the reference policy."""
WAIT_S = 0.02


class StageRun(Execution):
    """From the start, or from a checkpoint."""

    def __init__(self, config: Config, directory: RunDirectory, point: ResumePoint) -> None:
        self._rows = load_stage_rows(config, directory.path)
        self._plan = plan_of(config, len(self._rows.rows))
        super().__init__(config, directory, point, self._plan.num_steps)
        self._asked = 0
        """The last step that the learner was told to take."""
        self._told_at = time.monotonic()
        self._losses: dict[str, float] = {}
        """First and last loss of this execution."""
        preference = config.preference if config.stage == "preference" else None
        self._goal = preference.until_accuracy if preference else None
        """Accuracy of a pass after which no other follows."""
        self._taken: dict[int, Mapping[str, float]] = {}
        """Steps up to the last one, and what they measured: of all starts, as the learner wrote
        them down."""

    def execute(self) -> int:
        """Everything; whatever ends it early, what was started is ended in reverse order."""
        for line in self._rows.lines:
            self._say(line)
        with ExitStack() as stack:
            up = self._start(stack, digest_of(self._config, self._rows.rows))
            for text in self._point.skipped:
                up.monitor.send("alert", kind="checkpoint", text=text)
            before = self._begin(up)
            self._train(up)
            after = self._measured(up, "measure_stage", {})
            if self._config.evaluates:
                up.crew.publish(self._step)
                self._evaluate("after", up.crew)
            self._footprint.stop()
            up.ledger.require_newest(self._fence)
            summary = self._summary(before, after, self._rows)
            write_summary(self._directory, summary)
            up.monitor.finish(summary)
        self._terminal.close()
        reached("summary.written")
        self._say(f"report: {self._results.report(summary, sys.stdout)}")
        self._write_status("finished", exit_code=0)
        reached("run.finished")
        return 0

    def _begin(self, up: Started) -> Mapping[str, float]:
        """Give the learner the rows, and let the base model answer the held-out prompts."""
        arguments = {"rows": self._rows.rows, "fence": self._fence}
        self._tell_again(up)
        self._end_if_reached()
        before = self._measured(up, "begin_stage", arguments)
        up.monitor.flush()  # a later start reads from there what was measured before
        self._write_status("running")
        self._asked = self._step
        if self._config.evaluates and not self._results.has("before"):
            self._order_steps(up)  # the engines have the base model, whatever the learner does
            self._evaluate("before", up.crew)
        return before or self._measured_before()

    def _tell_again(self, up: Started) -> None:
        """Steps before the checkpoint whose rows a driver took with it when it died: the learner
        has written them down too."""
        told = {row["train/step"] for row in read_history(self._directory.path).get("train", [])}
        for row in read_lines(self._directory.steps):  # fences rise: the last one counts
            match row:
                case {"kind": "step", "step": int(step), "metrics": dict(metrics)}:
                    if step <= self._step:
                        self._taken[step] = metrics
        for step in sorted(self._taken.keys() - told):
            named = {f"train/{name}": value for name, value in self._taken[step].items()}
            values = {"train/step": step, "rollout/version": step, **named}
            up.monitor.send("record", kind="train", values=values)

    def _measured_before(self) -> Mapping[str, float]:
        """What an earlier start of the run measured at step 0."""
        rows = read_history(self._directory.path).get("eval", [])
        start: Mapping[str, Any] = next((row for row in rows if row["eval/step"] == 0), {})
        return {
            name.removeprefix("eval/"): value
            for name, value in start.items()
            if name.startswith("eval/") and name != "eval/step" and value is not None
        }

    def _measured(
        self, up: Started, method: str, arguments: Mapping[str, Any]
    ) -> Mapping[str, float]:
        """What the learner measures on the rows for validation."""
        up.crew.learners.call(method, arguments, context=method, deadline_s=BEGIN_DEADLINE_S)
        figures: Mapping[str, float] = up.crew.await_learner(method)
        if figures:
            row = {f"eval/{name}": value for name, value in figures.items()}
            up.monitor.send("record", kind="eval", values={"eval/step": self._step, **row})
            text = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
            self._say(f"validation rows at step {self._step}: {text}")
        return figures

    def _train(self, up: Started) -> None:
        self._say(f"training: {self._total_steps - self._step} steps")
        self._told_at = time.monotonic()
        while self._step < self._total_steps:
            self._order_steps(up)
            for event in up.crew.learners.poll():
                if isinstance(event, LearnerLost):
                    raise RunFailedError(event.reason, event.exit_code)
                if event.context[0] == "step":
                    self._tell(up, event.value)
            up.monitor.pump()
            for text in up.monitor.take_notices():
                self._say(f"! {text}")
            time.sleep(WAIT_S)
        up.crew.settle()
        reached("loop.finished")

    def _order_steps(self, up: Started) -> None:
        """Keep the learner in work, with a checkpoint after the steps that are to have one. A pass
        that may be the last one is waited for, and saved."""
        config = self._config
        last = self._total_steps
        if self._goal is not None and self._step < last:
            last = self._plan.end_of_pass(self._step + 1)
        while self._asked < min(self._step + STEPS_AHEAD, last):
            self._asked += 1
            up.crew.learners.call(
                "stage_step",
                {"step": self._asked, "fence": self._fence},
                context=("step", self._asked),
                deadline_s=config.learner.step_deadline_s,
            )
            if self._asked % config.checkpoint.every_steps == 0 or self._asked == last:
                up.crew.queue_save(self._asked, self._directory.checkpoints)

    def _end_if_reached(self) -> None:
        """After a pass that was good enough, the stage is over."""
        if self._goal is None or not self._step or self._step >= self._total_steps:
            return
        if self._plan.end_of_pass(self._step) != self._step:
            return
        epoch = self._plan.epoch(self._step)
        steps = [m for step, m in self._taken.items() if self._plan.epoch(step) == epoch]
        weight = sum(metrics["weight"] for metrics in steps)
        accuracy = sum(metrics["weight"] * metrics["accuracy"] for metrics in steps) / weight
        if accuracy >= self._goal:
            self._total_steps = self._step
            self._say(f"pass {epoch + 1}: accuracy {accuracy:.3f}, {self._goal:g} was asked for")

    def _tell(self, up: Started, report: StepReport) -> None:
        """A step was taken: told to others if the run is still ours."""
        reached("step.told", report.step)
        up.ledger.require_newest(self._fence)
        now = time.monotonic()
        row = {
            "train/step": report.step,
            "rollout/version": report.version,
            "time/step_s": now - self._told_at,
            "time/train_s": report.seconds,
            **{f"train/{name}": value for name, value in report.metrics.items()},
        }
        self._told_at = now
        self._step = report.step
        self._losses = {"first": report.metrics["loss"], **self._losses}
        self._losses["last"] = report.metrics["loss"]
        self._taken[report.step] = report.metrics
        self._end_if_reached()
        up.monitor.send("record", kind="train", values=row)
        self._terminal.step(row)
        self._write_status("running")

    def _summary(
        self, before: Mapping[str, float], after: Mapping[str, float], rows: StageRows
    ) -> dict[str, Any]:
        validation = {
            name: {"before": before[name], "after": after[name]} if name in before else after[name]
            for name in after
        }
        return {
            "run": self._config.run.name,
            **self._results.figures(),
            "stage": self._config.stage,
            "steps": self._total_steps,
            "rows": len(rows.rows),
            **rows.summary,
            "loss": dict(self._losses),
            **({"validation": validation} if validation else {}),
            "wall_s": round(time.monotonic() - self._started, 1),
            "peak_pss_bytes": self._footprint.peak_pss_bytes,
        }
