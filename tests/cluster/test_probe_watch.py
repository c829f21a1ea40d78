"""From rounds of probes to what follows, and what a resumed run reads of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.probe_log import ProbeLog, Round, Ruling, last_values
from cluster.probe_watch import ruling_on
from safeladder.config import Config

from .coordinator_play import make_config

SETS = {"safe": {"data": ["s.jsonl"], "principle": "safety"}}


def config(**sections: dict[str, Any]) -> Config:
    tree: dict[str, dict[str, Any]] = {
        "probes": {"every_steps": 10, "sets": SETS},
        "checkpoint": {"every_steps": 10, "keep": 5},
    }
    return make_config(**(tree | sections))


def rounds(*values: float | None) -> list[Round]:
    return [
        Round(step=10 * i, values={} if v is None else {"safe": v}, prompts={"safe": 8})
        for i, v in enumerate(values)
    ]


def tripwire(action: str, **bound: float) -> Config:
    return config(tripwires={"wire": {"probe": "safe", "action": action, **bound}})


@pytest.mark.parametrize("bound", [{"at_least": 0.5}, {"max_drop": 0.3}])
@pytest.mark.parametrize(
    ("action", "kind"), [("pause", "pause"), ("rollback", "rollback"), ("fail", "fail")]
)
def test_a_fall_below_the_bound_trips(bound: dict[str, float], action: str, kind: str) -> None:
    wire = tripwire(action, **bound)
    assert ruling_on(wire, rounds(0.8, 0.9, 0.5)) is None
    ruling = ruling_on(wire, rounds(0.8, 0.9, 0.49))
    assert ruling is not None
    assert (ruling.kind, ruling.step, ruling.reason) == (kind, 20, "wire")
    assert "probe safe is at 0.490 at step 20, below its bound of 0.500" in ruling.text


def test_a_rollback_goes_behind_the_fall_not_to_the_start() -> None:
    ruling = ruling_on(tripwire("rollback", at_least=0.5), rounds(0.8, 0.6, 0.1))
    assert ruling is not None
    assert ruling.to == 10


def test_a_second_fall_pauses() -> None:
    ruling = ruling_on(tripwire("rollback", at_least=0.5), rounds(0.8, 0.1), num_rollbacks=1)
    assert ruling is not None
    assert ruling.kind == "pause"
    assert "again after a rollback" in ruling.text


def test_what_was_never_above_its_bound_has_nothing_to_go_back_to() -> None:
    ruling = ruling_on(tripwire("rollback", at_least=0.5), rounds(0.1, 0.2))
    assert ruling is not None
    assert ruling.kind == "pause"


def test_a_round_without_a_value_is_no_number() -> None:
    assert ruling_on(tripwire("fail", at_least=0.5), rounds(0.8, None)) is None
    assert ruling_on(tripwire("fail", max_drop=0.1), rounds(None, 0.2)) is None


def test_a_target_ends_the_run() -> None:
    target = config(exit={"target": {"probe": "safe", "at_least": 0.9}})
    assert ruling_on(target, rounds(0.5, 0.89)) is None
    ruling = ruling_on(target, rounds(0.5, 0.9))
    assert ruling is not None
    assert (ruling.kind, ruling.reason, ruling.value) == ("exit", "target", 0.9)


def test_a_plateau_is_so_many_rounds_in_a_row_without_a_better_value() -> None:
    plateau = config(exit={"plateau": {"probe": "safe", "patience": 2, "min_delta": 0.05}})
    assert ruling_on(plateau, rounds(0.0, 0.0)) is None
    assert ruling_on(plateau, rounds(0.5, 0.55, 0.6)) is None, "0.6 is better than 0.5"
    ruling = ruling_on(plateau, rounds(0.5, 0.6, 0.62, 0.64))
    assert ruling is not None
    assert (ruling.kind, ruling.reason) == ("exit", "plateau")


def test_a_tripwire_goes_before_an_exit() -> None:
    both = config(
        tripwires={"wire": {"probe": "safe", "at_least": 0.9, "action": "pause"}},
        exit={"target": {"probe": "safe", "at_least": 0.1}},
    )
    ruling = ruling_on(both, rounds(0.5))
    assert ruling is not None
    assert ruling.kind == "pause"


RULING = Ruling(
    kind="rollback", step=30, to=10, text="it fell", reason="wire", probe="safe", value=0.1
)


def test_what_a_driver_went_back_behind_is_no_history_and_its_checkpoints_are_forbidden(
    tmp_path: Path,
) -> None:
    log = ProbeLog(tmp_path / "probes.jsonl")
    log.start(1, 0)
    for one in rounds(0.8, 0.9, 0.5, 0.1):
        log.add(1, one)
    log.rule(1, RULING)
    again = ProbeLog(tmp_path / "probes.jsonl")
    assert again.rounds == rounds(0.8, 0.9, 0.5, 0.1)
    assert again.num_rollbacks == 1
    assert again.forbids(1, 10) is None
    assert again.forbids(1, 20) == "it is later than step 10, and it fell"
    again.start(2, 10)
    assert [one.step for one in again.rounds] == [0, 10]
    assert again.forbids(2, 20) is None, "the driver that went back may go on"
    assert [one.step for one in ProbeLog(tmp_path / "probes.jsonl").rounds] == [0, 10]


def test_what_a_replaced_driver_still_writes_does_not_count(tmp_path: Path) -> None:
    zombie = ProbeLog(tmp_path / "probes.jsonl")
    zombie.start(1, 0)
    ProbeLog(tmp_path / "probes.jsonl").start(2, 0)
    zombie.add(1, rounds(0.1)[0])
    zombie.rule(1, RULING)
    again = ProbeLog(tmp_path / "probes.jsonl")
    assert (again.rounds, again.rulings) == ([], [])


def test_a_line_that_a_killed_driver_left_half_written_is_passed_over(tmp_path: Path) -> None:
    log = ProbeLog(tmp_path / "probes.jsonl")
    log.start(1, 0)
    log.add(1, rounds(0.5)[0])
    with (tmp_path / "probes.jsonl").open("a") as file:
        file.write('{"event": "round", "fen')
    again = ProbeLog(tmp_path / "probes.jsonl")
    again.add(1, Round(step=10, values={"safe": 0.6}, prompts={"safe": 8}))
    assert last_values(ProbeLog(tmp_path / "probes.jsonl").rounds) == {"safe": 0.6}


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"exit": {"target": {"probe": "x", "at_least": 0.5}}}, r"exit\.target\.probe names 'x'"),
        ({"tripwires": {"w": {"probe": "x", "at_least": 0.5}}}, r"tripwires\.w\.probe names 'x'"),
        ({"tripwires": {"w": {"probe": "safe"}}}, "give one bound"),
        (
            {"probes": {"sets": {"safe": {"data": ["s"], "principle": "gone"}}}},
            r"probes\.sets\.safe\.principle names 'gone'",
        ),
        (
            {
                "tripwires": {"w": {"probe": "safe", "at_least": 0.5, "action": "rollback"}},
                "checkpoint": {"every_steps": 4, "keep": 3},
            },
            r"checkpoint\.keep: 3 is too few .* with checkpoint\.every_steps: 4 keep 4",
        ),
    ],
)
def test_a_probe_that_is_none_or_a_rollback_without_room_is_refused(
    sections: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValidationError, match=sentence):
        config(**sections)
