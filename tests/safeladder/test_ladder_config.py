"""From a ladder file to rungs that are ordinary configs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from safeladder.config_loading import config_hash, to_yaml
from safeladder.errors import ConfigError
from safeladder.ladder_config import Ladder, is_ladder, ladder_of, load_ladder

BASE: dict[str, Any] = {
    "run": {"name": "up", "root": "runs"},
    "model": {"path": "base"},
    "data": {"train": ["a.jsonl"]},
    "principles": {
        "safety": {"verifier": "rewards.safety:SafetyRules"},
        "normal": {"verifier": "rewards.helpfulness:Normal"},
    },
    "routes": {"safety": {"safety": 1.0}, "normal": {"normal": 1.0}},
    "learner": {"lr": 1e-5},
}
KG: dict[str, Any] = {"name": "kg", "exit": {"steps": 3}, "learner": {"lr": 2e-5}}
JOINT: dict[str, Any] = {"name": "joint", "exit": {"steps": 5}, "carry_over": {"curriculum": True}}


def ladder(*rungs: dict[str, Any], **base: Any) -> Ladder:
    return ladder_of(BASE | base | {"ladder": list(rungs)})


def test_each_rung_is_a_run_below_the_ladders_folder_with_its_own_keys_over_the_files() -> None:
    kg, joint = ladder(KG, JOINT).rungs
    assert kg.config.run.directory == Path("runs/up/rungs/01-kg")
    assert joint.config.run.directory == Path("runs/up/rungs/02-joint")
    assert (kg.config.run.steps, joint.config.run.steps) == (3, 5)
    assert (kg.config.learner.lr, joint.config.learner.lr) == (2e-5, 1e-5)
    assert (kg.carry_over.curriculum, joint.carry_over.curriculum) == (False, True)


def test_routes_of_a_rung_choose_its_principles_from_the_files() -> None:
    only, both = ladder(KG | {"routes": {"safety": {"safety": 2.0}}}, JOINT).rungs
    assert set(only.config.principles) == {"safety"}
    assert dict(only.config.routes) == {"safety": {"safety": 2.0}}
    assert set(both.config.principles) == {"safety", "normal"}


def test_a_rung_starts_from_the_model_that_it_is_told() -> None:
    (rung,) = ladder(KG).rungs
    assert rung.starting_from(Path("step-3")).model.path == Path("step-3")
    assert rung.config.model.path == Path("base")


def test_a_later_file_and_an_override_reach_a_rung_by_its_name(tmp_path: Path) -> None:
    first, second = tmp_path / "ladder.yaml", tmp_path / "short.yaml"
    first.write_text(to_yaml(BASE | {"ladder": [KG, JOINT]}))
    second.write_text("ladder: {kg: {exit: {steps: 1}}}")
    assert is_ladder([first])
    found = load_ladder([first, second], ["ladder.joint.exit.steps=2", "learner.lr=3e-5"])
    assert [(r.name, r.config.run.steps) for r in found.rungs] == [("kg", 1), ("joint", 2)]
    assert [r.config.learner.lr for r in found.rungs] == [2e-5, 3e-5]


def test_the_merged_file_loads_back_to_the_same_rungs(tmp_path: Path) -> None:
    found = ladder(KG, JOINT)
    copy = tmp_path / "copy.yaml"
    copy.write_text(to_yaml(found.tree))
    again = load_ladder([copy])
    assert [config_hash(r.config) for r in again.rungs] == [
        config_hash(r.config) for r in found.rungs
    ]


@pytest.mark.parametrize(
    ("rungs", "sentence"),
    [
        ([], "ladder has no rung"),
        ([KG, KG], "two rungs named 'kg'"),
        ([{"exit": {"steps": 1}}], "rung 1 of ladder has no name"),
        ([{"name": "kg"}], r"ladder\.kg: exit\.steps is missing"),
        ([KG | {"exit": {"steps": 0}}], r"ladder\.kg: exit\.steps: .*greater than 0, not 0"),
        ([KG | {"learner": {"lr": "fast"}}], r"ladder\.kg: learner\.lr: .*not 'fast'"),
        ([KG | {"lerner": {}}], r"ladder\.kg: lerner is not a key.*did you mean learner"),
        ([KG | {"run": {"steps": 4}}], r"ladder\.kg: run\.steps is the ladder's business"),
        ([KG | {"carry_over": {"curriculum": True}}], r"ladder\.kg: carry_over: there is no rung"),
        ([KG, JOINT | {"carry_over": {"model": 1}}], r"ladder\.joint: carry_over\.model"),
        (
            [KG | {"routes": {"x": {"nobody": 1.0}}}],
            r"ladder\.kg: routes\.x names .*'nobody'.*\(safety, normal\)",
        ),
        ([KG | {"exit": 5}], r"ladder\.kg: exit: wants `key: value` lines.*not 5"),
        ([KG | {"exit": {"steps": None}}], r"ladder\.kg: exit\.steps is missing"),
        ([KG | {"run": "x"}], r"ladder\.kg: run: wants `key: value` lines, not 'x'"),
        ([KG, JOINT | {"carry_over": {"optimizer": True}}], r"did you mean|valid here: constraint"),
    ],
)
def test_a_mistake_is_told_with_the_name_of_its_rung(
    rungs: list[dict[str, Any]], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        ladder(*rungs)


def test_a_misspelled_rung_is_no_further_rung(tmp_path: Path) -> None:
    first, second = tmp_path / "ladder.yaml", tmp_path / "more.yaml"
    first.write_text(to_yaml(BASE | {"ladder": [KG, JOINT]}))
    with pytest.raises(ConfigError, match=r"ladder\.jiont: there is no such rung \(kg, joint\)"):
        load_ladder([first], ["ladder.jiont.exit.steps=2"])
    second.write_text(to_yaml({"ladder": [{"name": "top", "exit": {"steps": 1}}]}))
    assert [rung.name for rung in load_ladder([first, second]).rungs] == ["kg", "joint", "top"]


def test_a_ladder_without_rungs_is_refused_whatever_stands_there(tmp_path: Path) -> None:
    file = tmp_path / "ladder.yaml"
    file.write_text(to_yaml(BASE) + "ladder:\n")
    with pytest.raises(ConfigError, match="ladder wants a list of rungs, not None"):
        load_ladder([file])


def test_the_ladders_folder_lies_below_its_root() -> None:
    with pytest.raises(ConfigError, match=r"run\.name: wants a name of letters.*not '\.\./up'"):
        ladder(KG, run={"name": "../up"})


def test_mistakes_of_several_rungs_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        ladder(KG | {"learner": {"lr": -1.0}}, JOINT | {"exit": {}})
    assert len(str(caught.value).splitlines()) == 2


def test_the_steps_of_the_file_have_no_meaning() -> None:
    with pytest.raises(ConfigError, match=r"run\.steps has no place beside `ladder`"):
        ladder(KG, run={"name": "up", "steps": 3})


def test_null_in_a_rung_takes_a_key_of_the_file_away_and_a_null_rung_is_none(
    tmp_path: Path,
) -> None:
    first, second = tmp_path / "ladder.yaml", tmp_path / "short.yaml"
    rungs = [KG | {"learner": None}, JOINT]
    first.write_text(to_yaml(BASE | {"ladder": rungs}))
    second.write_text("ladder: {joint: null}")
    (kg,) = load_ladder([first, second]).rungs
    assert kg.config.learner.lr == 1e-6


def test_a_principle_that_no_rung_asks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"principles\.normal is in no route of any rung"):
        ladder(KG | {"routes": {"safety": {"safety": 2.0}}})
