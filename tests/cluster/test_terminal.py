import io

import pytest

from cluster.coordinator_status import CoordinatorStatus, EngineStatus
from cluster.terminal import Terminal, describe_engines, describe_status, step_line, who_waits
from safeladder.engine_profile import EngineLoad

ROW = {
    "train/step": 3.0, "rollout/version": 3.0, "reward/mean": 0.4, "reward/safety": 0.3,
    "reward/normal": 0.5, "reward/generation": 2.0,
    "train/staleness_mean": 0.5, "train/staleness_max": 1.0,
    "train/kl_behavior": 0.9, "train/kl_reference": 0.01, "rollout/tokens_per_s": 88.0,
    "time/step_s": 10.0, "time/train_s": 7.0, "dropped/filtered": 3.0, "dropped/stale": 1.0,
}  # fmt: skip


class Tty(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def status(**changes: object) -> CoordinatorStatus:
    fields: dict[str, object] = {
        "version": 3, "published_version": 3, "running_step": None, "paused_by": None,
        "counts": {"LEASED": 4, "SCORED": 0}, "dropped_by_reason": {"filtered": 3},
        "trained_by_staleness": {0: 1}, "late_results": 0, "failed_attempts": 0,
            "continued": 0, "begun_anew": 0, "engines": (),
        "fleets": (), "waits": ("learner waits for groups: 3 of 16 are scored",),
    }  # fmt: skip
    return CoordinatorStatus(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_step_is_one_plain_line_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    view = Terminal(stream, total_steps=10)
    view.say("starting")
    view.step(ROW)
    view.refresh(status())
    view.close()
    first, second = stream.getvalue().splitlines()
    assert first.endswith("s] starting")
    assert second.endswith(
        "s] step 3/10 · version 3 · reward 0.40 (safety 0.30, normal 0.50) · staleness 0.5≤1 · "
        "KL 0.0100 · dropped 4 · 88 tokens/s · 10.0 s · learner waited 3.0 s for groups"
    )
    assert "\x1b" not in stream.getvalue()


def test_a_row_says_only_what_it_knows() -> None:
    assert step_line({"train/step": 1.0, "rollout/version": 1.0, "reward/mean": 0.0}, 2) == (
        "step 1/2 · version 1 · reward 0.00"
    )


@pytest.mark.parametrize(
    ("step_s", "train_s", "said"),
    [
        (10.0, 9.5, "rollouts wait for the learner"),
        (10.0, 4.0, "learner waited 6.0 s for groups"),
        (0.0, 0.0, ""),
    ],
)
def test_the_slower_side_of_a_step_is_named(step_s: float, train_s: float, said: str) -> None:
    assert who_waits({"time/step_s": step_s, "time/train_s": train_s}) == said


def test_a_terminal_shows_a_table_of_the_last_steps_with_each_principle_and_who_waits() -> None:
    stream = Tty()
    view = Terminal(stream, total_steps=10)
    for step in range(1, 12):
        view.step({**ROW, "train/step": float(step)})
    view.refresh(status())
    view.say("a message [not markup]")
    view.close()
    last = stream.getvalue().rpartition("a message [not markup]")[2]
    assert "11/10" in last
    assert "3/10" not in last
    assert "learner waits for groups: 3 of 16 are scored" in last
    assert "safety" in last
    view.close()


def test_a_status_tells_groups_drops_and_waits() -> None:
    assert describe_status(status()).splitlines() == [
        "groups: 4 LEASED",
        "dropped: 3 filtered",
        "learner waits for groups: 3 of 16 are scored",
    ]
    assert describe_status(status(counts={}, dropped_by_reason={}, waits=())) == ""


def test_several_engines_are_told_by_fleet_and_one_alone_is_not() -> None:
    def engine(name: str, kv_share: float | None) -> EngineStatus:
        load = None if kv_share is None else EngineLoad(
            kv_share=kv_share, running=1, waiting=0, preemptions=0
        )  # fmt: skip
        return EngineStatus(
            name=name, served_version=0, leases=2, capacity=4, loading=None, is_leaving=False,
            load=load, profile=None,
        )  # fmt: skip

    engines = [
        engine("rollout-h100-0", 0.5), engine("rollout-h100-1", 0.7), engine("rollout-l40s-7", None)
    ]  # fmt: skip
    assert describe_engines(engines).splitlines() == [
        "rollout-h100: 2 engines, 4 of 8 groups, cache 60 % full",
        "rollout-l40s: 1 engine, 2 of 4 groups",
    ]
    assert describe_engines(engines[:1]) == ""
