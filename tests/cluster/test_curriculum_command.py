"""``safeladder curriculum``: what was asked and why, and the state for another run."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cluster.cli import app
from cluster.curriculum_command import read_curriculum
from cluster.curriculum_state import (
    check_carry_over,
    curriculum_state,
    starting_from_state,
    write_curriculum_state,
)
from cluster.data_checks import check_data, stage_lines
from cluster.ladder import Runner, climb
from cluster.ladder_directory import LadderDirectory
from cluster.ledger import Ledger
from cluster.run_directory import RunDirectory
from curricula.prompts import PromptOrder
from curricula.sampler import Sampler
from curricula.training_prompts import prompt_source
from safeladder.config import Config
from safeladder.config_loading import config_hash
from safeladder.errors import ConfigError, DataError, NotResumableError
from safeladder.ladder_config import ladder_of
from tests.cluster.coordinator_play import make_config
from tests.cluster.run_on_disk import DriverOnDisk
from tests.cluster.test_ladder import Runs

CURRICULUM = {
    "schedule": "staged",
    "bucket_by": "num_constraints",
    "boundaries": [3.0],
    "stage_steps": 2,
    "rehearsal": 0.25,
}


def configured(tmp_path: Path, **sections: dict[str, Any]) -> Config:
    rows = [
        {"id": f"p{n}", "prompt": f"q{n}", "route": "safety", "meta": {"num_constraints": n % 5}}
        for n in range(30)
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return make_config(
        **{
            "run": {"name": "books", "root": str(tmp_path), "steps": 6},
            "data": {"train": [str(data)]},
            "curriculum": CURRICULUM,
            **sections,
        }
    )


@pytest.fixture
def played(tmp_path: Path) -> RunDirectory:
    """Two steps, a kill, and steps 2 and 3 from the checkpoint of step 1."""
    config = configured(tmp_path)
    run = RunDirectory.create(config)
    with Ledger.open(run.ledger, "books", prompt_source(config).digest) as ledger:
        DriverOnDisk(run, config, ledger, prompts=prompt_source(config)).train(until=2)
        DriverOnDisk(run, config, ledger, step=1, prompts=prompt_source(config)).train(until=3)
    return run


def invoke(run: RunDirectory, verb: str, *options: str) -> Result:
    return CliRunner().invoke(app, [verb, str(run.path), *options])


def test_the_books_of_a_run_with_a_curriculum_are_sound(played: RunDirectory) -> None:
    told = invoke(played, "ledger")
    assert told.exit_code == 0, told.output


def test_the_report_adds_up_and_says_why_each_prompt_was_asked(played: RunDirectory) -> None:
    report = read_curriculum(played)
    assert report.step == 3
    asked = Counter({row.bucket: row.asked for row in report.buckets})
    with Ledger.open(played.ledger, "books") as ledger:
        assert asked.total() == sum(ledger.counts().values())
    assert [(row.label, row.bucket) for row in report.buckets] == [
        ("safety", "to 3"),
        ("safety", "above 3"),
    ]
    newest = report.newest[0]
    late = [draw for draw in report.newest if draw.version >= 2]
    assert {draw.bucket for draw in late if draw.why == "focus"} == {"above 3"}
    told = invoke(played, "curriculum").output
    assert "above 3" in told
    assert newest.prompt in told
    row = json.loads(invoke(played, "curriculum", "--json").output)
    assert sum(bucket["asked"] for bucket in row["buckets"]) == asked.total()


def test_the_state_of_a_run_is_the_start_of_the_next(played: RunDirectory, tmp_path: Path) -> None:
    told = invoke(played, "curriculum", "--state")
    assert json.loads(told.output) == curriculum_state(played)
    carried = tmp_path / "carried.json"
    carried.write_text(told.output)
    following = configured(tmp_path, curriculum=CURRICULUM | {"carried": str(carried)})
    source = prompt_source(following)
    assert isinstance(source, Sampler)
    assert source.dump() == curriculum_state(played) | {"version": 0}
    file = tmp_path / "folder" / "other.json"
    write_curriculum_state(played, file)
    other = starting_from_state(configured(tmp_path), file)
    assert prompt_source(other).digest == source.digest, "but for the name of the file"
    assert source.digest != prompt_source(configured(tmp_path)).digest
    carried.write_text("{")
    with pytest.raises(ConfigError, match=r"carried.json: cannot be read .* `curriculum.carried`"):
        check_data(following)
    carried.unlink()
    with pytest.raises(ConfigError, match=r"there is no such file; check `curriculum.carried`"):
        prompt_source(following)


def test_a_rung_of_a_ladder_carries_over_what_the_one_before_knows(tmp_path: Path) -> None:
    config = configured(tmp_path)
    (base := tmp_path / "base").mkdir()
    (base / "model.safetensors").write_bytes(b"base")
    tree = config.model_dump(mode="json", include={"data", "principles", "routes", "curriculum"})
    rungs = [{"name": "low", "exit": {"steps": 2}}, {"name": "high", "exit": {"steps": 2}}]
    rungs[1]["carry_over"] = {"curriculum": True}
    where = {"run": {"name": "up", "root": str(tmp_path)}, "model": {"path": str(base)}}
    rollout = {"rollout": {"group_size": 2}, "schedule": {"groups_per_step": 2}}
    ladder = ladder_of({**tree, **where, **rollout, "ladder": rungs})
    check_carry_over(ladder)
    plain = ladder_of({**tree, **where, "curriculum": {}, "ladder": rungs})
    with pytest.raises(ConfigError, match=r"ladder.high: carry_over.curriculum: the rung low has"):
        check_carry_over(plain)
    runs, started = Runs(), []

    def train(config: Config) -> int:
        started.append(config)
        runs.train(config)
        run = RunDirectory.open(config.run.directory)
        source = prompt_source(config)
        with Ledger.open(run.ledger, config.run.name, source.digest) as ledger:
            DriverOnDisk(run, config, ledger, prompts=source).train(until=2)
        return 0

    directory = LadderDirectory.create(ladder)
    climb(directory, Runner(train, runs.resume, runs.newest), lambda text: None)
    low, high = started
    assert low.curriculum.carried is None
    carried = json.loads(high.curriculum.carried.read_text())
    assert carried == curriculum_state(RunDirectory.open(low.run.directory))
    records = directory.read_lineage().rungs
    assert [record.config_sha256 for record in records] == [config_hash(low), config_hash(high)]


def test_a_run_in_a_plain_order_has_nothing_to_show(tmp_path: Path) -> None:
    config = configured(tmp_path, curriculum={})
    assert isinstance(prompt_source(config), PromptOrder)
    run = RunDirectory.create(config)
    with Ledger.open(run.ledger, "books") as ledger:
        DriverOnDisk(run, config, ledger).train(until=1)
    told = invoke(run, "curriculum")
    assert told.exit_code == 2
    assert "nothing was drawn" in told.output
    assert "its order is plain" in invoke(run, "curriculum", "--state").output


def test_a_resume_with_another_curriculum_is_refused(played: RunDirectory, tmp_path: Path) -> None:
    other = configured(tmp_path, curriculum=CURRICULUM | {"stage_steps": 3})
    with pytest.raises(NotResumableError, match=r"curriculum or run.seed are not what the run"):
        Ledger.open(played.ledger, "books", prompt_source(other).digest)


def test_a_row_without_a_place_is_named_by_file_and_line_before_the_start(tmp_path: Path) -> None:
    config = configured(tmp_path)
    (path,) = config.data.train
    assert isinstance(path, Path)
    path.write_text(path.read_text() + '{"prompt": "x", "route": "safety"}\n')
    with pytest.raises(DataError, match=r"data.jsonl:31: column num_constraints: some rows of"):
        check_data(config)


def test_check_says_what_there_is_to_ask(tmp_path: Path) -> None:
    config = configured(tmp_path)
    assert list(stage_lines(config)) == ["safety: 30 prompts (24 to 3, 6 above 3)"]
    mixed = configured(
        tmp_path, data={**config.data.model_dump(mode="json"), "mix": {"safety": 2.0}}
    )
    (line,) = stage_lines(mixed)
    assert line.endswith("6 above 3), 100% of the groups")
    assert list(stage_lines(configured(tmp_path, curriculum={}))) == []


def test_weights_and_a_mixture_need_a_sampler(tmp_path: Path) -> None:
    path = str(configured(tmp_path).data.train[0])
    for data in (
        {"train": [{"path": path, "weight": 2.0}]},
        {"train": [path], "mix": {"safety": 1.0}},
    ):
        assert isinstance(prompt_source(configured(tmp_path, data=data, curriculum={})), Sampler)
    with pytest.raises(ValueError, match=r"data.mix names 'math', which is not in `routes`"):
        configured(tmp_path, data={"train": [path], "mix": {"math": 1.0}})
    with pytest.raises(ValueError, match=r"curriculum.principles names 'x', which is not in"):
        configured(tmp_path, curriculum={"principles": ["x"]})
