"""The same on vLLM and DeepSpeed: the engine's own process is killed, and the driver dies at three
points between a step and the moment when an engine serves it."""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos import deaths, kills
from tests.chaos.driven import driven
from tests.chaos.kills import Kill
from tests.chaos.outcome import Case, Report
from tests.runs.conftest import Tree

POINTS = ("optimizer.stepped:2", "checkpoint.synced:2", "load_weights.sent:2")
KILLS = (
    Kill("engine process", "idle", "VLLM::EngineCore"),
    Kill("engine process", "serving", "VLLM::EngineCore", at=("generate.sent", "rollout")),
)
ENGINE: Tree = {"rollout": {"engine": "vllm", "max_new_tokens": 16}}


def run(report: Report) -> Iterator[Case]:
    """One run, killed at the points, then in its engine."""
    with driven(report.folder, report.model(), "vllm", 60, ENGINE) as run:
        for order in POINTS:
            yield deaths.die(run, order)
        run.resume()
        run.await_point("trained.committed")
        yield from kills.one_run(run, KILLS, report)
