"""What the driver of a stage orders and tells, with a learner that answers at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.crew import Crew
from cluster.execution import Started
from cluster.learner_group import LearnerLost, LearnerReply
from cluster.resume_point import ResumePoint
from cluster.run_directory import RunDirectory
from cluster.stage_run import STEPS_AHEAD, StageRun
from safeladder.config import Config
from safeladder.errors import RunFailedError
from safeladder.records import StepReport
from tests.tiny_model import save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


class Learners:
    """Answers one operation a poll, in order; dies at a step if it is told to."""

    def __init__(self, dies_at: int | None = None, is_resumed: bool = False) -> None:
        self._before = {} if is_resumed else {"loss": 3.0}
        self.open: list[tuple[str, dict[str, Any], Any]] = []
        self.asked: list[str] = []
        self.most_open = 0
        self._dies_at = dies_at

    def call(self, method: str, arguments: dict[str, Any], **how: Any) -> None:
        self.open.append((method, arguments, how["context"]))
        self.asked.append(f"{method} {arguments['step']}" if "step" in arguments else method)
        steps = sum(one[0] == "stage_step" for one in self.open)
        self.most_open = max(self.most_open, steps)

    def poll(self) -> list[LearnerReply | LearnerLost]:
        if not self.open:
            return []
        method, arguments, context = self.open.pop(0)
        step = arguments.get("step", 0)
        if step and step == self._dies_at:
            return [LearnerLost(context=context, reason="learner rank 0: killed", exit_code=1)]
        value: Any = self._before if method == "begin_stage" else {"loss": 1.0}
        if method == "stage_step":
            metrics = {"loss": 2.0 / step, "epoch": 0.0}
            value = StepReport(step=step, version=step, metrics=metrics, seconds=0.1)
        return [LearnerReply(context=context, value=value)]

    @property
    def is_idle(self) -> bool:
        return not self.open


class FakeCrew:
    """The part of a crew that a stage without held-out prompts asks for."""

    await_learner, settle, queue_save = Crew.await_learner, Crew.settle, Crew.queue_save

    def __init__(self, config: Config, learners: Learners) -> None:
        self._config, self._fence, self.learners = config, 1, learners


class Monitor:
    def __init__(self) -> None:
        self.rows: list[tuple[str, dict[str, Any]]] = []

    def send(self, method: str, **arguments: Any) -> None:
        self.rows.append((arguments["kind"], arguments["values"]))

    def pump(self) -> None: ...

    def flush(self) -> None: ...

    def take_notices(self) -> list[str]:
        return []


class Ours:
    def require_newest(self, fence: int) -> None: ...


def begin(
    tmp_path: Path, model: Path, step: int = 0, dies_at: int | None = None
) -> tuple[StageRun, Started, Learners, Monitor]:
    """A run of 6 steps with a checkpoint after every second one, at ``step``."""
    data = tmp_path / "sft.jsonl"
    rows = ({"prompt": f"Say {i}", "response": f"{i}"} for i in range(24))
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = Config.model_validate(
        {
            "stage": "sft",
            "run": {"name": "sft", "root": str(tmp_path / "runs")},
            "model": {"path": str(model), "dtype": "float32"},
            "sft": {"data": [str(data)], "epochs": 2, "batch_size": 8},
            "checkpoint": {"every_steps": 2},
        }
    )
    folder = config.run.directory
    directory = RunDirectory(folder) if folder.exists() else RunDirectory.create(config)
    point = ResumePoint(
        checkpoint=folder / "checkpoints" / f"step-{step}" if step else None, initial=model
    )
    learners, monitor = Learners(dies_at, step > 0), Monitor()
    crew: Any = FakeCrew(config, learners)
    parts: dict[str, Any] = {"ledger": Ours(), "services": None, "crew": crew, "monitor": monitor}
    run = StageRun(config, directory, point)
    run._ledger = parts["ledger"]
    return run, Started(config=config, **parts), learners, monitor


def test_steps_are_ordered_ahead_and_each_checkpoint_right_after_its_step(
    tmp_path: Path, model: Path
) -> None:
    run, up, learners, monitor = begin(tmp_path, model)
    before = run._begin(up)
    run._train(up)
    assert before == {"loss": 3.0}
    assert learners.asked == [
        "begin_stage", "stage_step 1", "stage_step 2", "save_checkpoint 2", "stage_step 3",
        "stage_step 4", "save_checkpoint 4", "stage_step 5", "stage_step 6", "save_checkpoint 6",
    ]  # fmt: skip
    assert learners.most_open == STEPS_AHEAD
    told = [values["train/step"] for kind, values in monitor.rows if kind == "train"]
    assert told == [1, 2, 3, 4, 5, 6]
    assert run._directory.status().step == 6  # type: ignore[union-attr]


def test_a_learner_that_dies_ends_the_run_with_its_reason(tmp_path: Path, model: Path) -> None:
    run, up, _, _ = begin(tmp_path, model, dies_at=4)
    run._begin(up)
    with pytest.raises(RunFailedError, match="rank 0: killed"):
        run._train(up)
    assert run._directory.status().step == 3  # type: ignore[union-attr]


def test_a_resumed_run_tells_what_a_killed_driver_could_not(tmp_path: Path, model: Path) -> None:
    first, *_ = begin(tmp_path, model)
    directory = first._directory
    rows = [
        {"kind": "eval", "eval/step": 0, "eval/loss": 3.0, "time/unix_s": 1.0},
        {"kind": "train", "train/step": 1, "train/loss": 2.0},
    ]
    directory.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    steps = [
        {"kind": "step", "step": step, "fence": 1, "metrics": {"loss": 2.0 / step}}
        for step in (1, 2, 3)
    ]
    directory.steps.write_text("".join(json.dumps(row) + "\n" for row in steps))
    run, up, learners, monitor = begin(tmp_path, model, step=2)
    before = run._begin(up)
    (train,) = [values for kind, values in monitor.rows if kind == "train"]
    assert (train["train/step"], train["train/loss"]) == (2, 1.0), "1 was told, 3 is taken again"
    run._train(up)
    assert learners.asked[1:3] == ["stage_step 3", "stage_step 4"]
    assert before == {"loss": 3.0}, "as it was measured at step 0"
