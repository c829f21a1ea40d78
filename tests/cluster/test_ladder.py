"""Climbing with played runs: what is on disk when a climber dies, and what the next one does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster import carry_over, ladder, ladder_directory, lineage, run_directory
from cluster.ladder import Climb, Runner, climb, require_unfinished
from cluster.ladder_directory import LadderDirectory
from cluster.run_directory import RunDirectory, Status, write_json
from learners.checkpoints import (
    CheckpointManifest,
    commit_checkpoint,
    newest_valid,
    write_durably,
)
from safeladder.config import Config
from safeladder.constraint_config import ConstraintConfig
from safeladder.errors import (
    ChecksumError,
    DivergedError,
    NotResumableError,
    RunExistsError,
)
from safeladder.ladder_config import ladder_of

NAMES = ("sft", "kg", "joint")


class Killed(BaseException):
    """The process is gone."""


def make_ladder(tmp_path: Path) -> LadderDirectory:
    model = tmp_path / "base"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"base")
    rungs = [{"name": name, "exit": {"steps": 2}} for name in NAMES]
    tree = {
        "run": {"name": "up", "root": str(tmp_path / "runs")},
        "model": {"path": str(model)},
        "data": {"train": []},
        "principles": {"safety": {"verifier": "rewards.safety:SafetyRules"}},
        "routes": {"safety": {"safety": 1.0}},
        "ladder": rungs,
    }
    return LadderDirectory.create(ladder_of(tree))


class Runs:
    """Plays whole runs: two steps, a checkpoint after each. ``die_at`` is the number of the durable
    thing, counted over everything, at which the process goes."""

    def __init__(self, die_at: int | None = None) -> None:
        self.die_at = die_at
        self.done = 0
        self.steps: list[str] = []
        """Run and step of each step that was taken, in order."""
        self.started_from: dict[str, str] = {}

    def tick(self) -> None:
        self.done += 1
        if self.done == self.die_at:
            raise Killed

    def write_json(self, path: Path, value: Any) -> None:
        self.tick()
        write_json(path, value)
        self.tick()

    def train(self, config: Config) -> int:
        self.tick()
        run = RunDirectory.create(config)
        self.started_from[config.run.name] = str(config.model.path)
        return self._go_on(run, config, 0)

    def resume(self, path: Path) -> int:
        run = RunDirectory.open(path)
        _, manifest, _ = newest_valid(run.checkpoints)
        return self._go_on(run, run.config(), manifest.step if manifest else 0)

    def _go_on(self, run: RunDirectory, config: Config, step: int) -> int:
        weights = (config.model.path / "model.safetensors").read_bytes()
        for number in range(step + 1, config.run.steps + 1):
            self.tick()
            self.steps.append(f"{config.run.name}/{number}")
            save(run, number, weights + f"+{config.run.name}/{number}".encode())
        self.tick()
        run.write_status(Status(state="finished", pid=1, step=config.run.steps, exit_code=0))
        self.tick()
        return 0

    def newest(self, run: RunDirectory) -> Path | None:
        return newest_valid(run.checkpoints)[0]

    @property
    def runner(self) -> Runner:
        return Runner(self.train, self.resume, self.newest)


def save(run: RunDirectory, step: int, weights: bytes) -> Path:
    manifest = CheckpointManifest(
        step=step, version=step, fence=1, num_updates=0, dtype="float32", config_sha256=""
    )

    def write(folder: Path) -> dict[str, str]:
        return {"model.safetensors": write_durably(folder / "model.safetensors", weights)}

    return commit_checkpoint(run.checkpoints, manifest, write, keep=9)


def climb_with(directory: LadderDirectory, runs: Runs) -> int:
    return climb(directory, runs.runner, lambda text: None)


def weights_of(directory: LadderDirectory) -> list[bytes]:
    """Of each rung that has ended."""
    ends = [record.end for record in directory.read_lineage().rungs]
    return [
        (end.folder(directory.path) / "model.safetensors").read_bytes()
        for end in ends
        if end is not None
    ]


WHOLE = [f"{i:02d}-{name}/{step}" for i, name in enumerate(NAMES, start=1) for step in (1, 2)]


def test_each_rung_starts_from_the_last_checkpoint_of_the_one_before(tmp_path: Path) -> None:
    directory, runs = make_ladder(tmp_path), Runs()
    assert climb_with(directory, runs) == 0
    assert runs.steps == WHOLE
    rungs = directory.path / "rungs"
    assert runs.started_from == {
        "01-sft": str(tmp_path / "base"),
        "02-kg": str(rungs / "01-sft/checkpoints/step-2"),
        "03-joint": str(rungs / "02-kg/checkpoints/step-2"),
    }
    status = directory.status()
    assert status is not None
    assert (status.state, status.exit_code, status.rung) == ("finished", 0, "03-joint")


def test_lineage_says_of_each_rung_from_what_with_what_and_why(tmp_path: Path) -> None:
    directory = make_ladder(tmp_path)
    climb_with(directory, Runs())
    sft, kg, joint = directory.read_lineage().rungs
    assert sft.start.path == str(tmp_path / "base")
    assert not sft.start.is_checkpoint
    assert kg.start == sft.end
    assert joint.start == kg.end
    assert [(r.steps, r.exit) for r in (sft, kg, joint)] == [(2, {"reason": "steps"})] * 3
    assert len({r.config_sha256 for r in (sft, kg, joint)}) == 3
    assert "packages" in sft.host


def test_a_summary_says_why_a_rung_ended_and_what_its_probes_were(tmp_path: Path) -> None:
    directory, runs = make_ladder(tmp_path), Runs()
    told = {"exit": {"reason": "target", "probe": "safety"}, "probes": {"safety": 0.9}}

    def train(config: Config) -> int:
        runs.train(config)
        write_json(config.run.directory / "summary.json", told)
        return 0

    climb(directory, Runner(train, runs.resume, runs.newest), lambda text: None)
    record = directory.read_lineage().rungs[0]
    assert (record.exit, record.probes) == (told["exit"], told["probes"])


def skip_host_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking git and the installed packages takes longer than all that is played here."""
    for module in (ladder, run_directory):
        monkeypatch.setattr(module, "host_facts", lambda: {"packages": {}})


def play_writes(monkeypatch: pytest.MonkeyPatch, runs: Runs) -> None:
    for module in (lineage, ladder_directory):
        monkeypatch.setattr(module, "write_json", runs.write_json)


def test_a_climber_that_dies_anywhere_loses_nothing_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_host_facts(monkeypatch)
    (tmp_path / "whole").mkdir()
    directory = make_ladder(tmp_path / "whole")
    runs = Runs()
    play_writes(monkeypatch, runs)
    climb_with(directory, runs)
    whole, expected = runs.done, weights_of(directory)
    assert whole > 30
    for die_at in range(1, whole + 1):
        (place := tmp_path / str(die_at)).mkdir()
        directory = make_ladder(place)
        runs = Runs(die_at)
        play_writes(monkeypatch, runs)
        with pytest.raises(Killed):
            climb_with(directory, runs)
        status = directory.status()
        if status is not None and status.state == "finished":
            with pytest.raises(NotResumableError, match="already climbed all of its rungs"):
                require_unfinished(directory)
        else:
            assert climb_with(directory, runs) == 0
        assert runs.steps == WHOLE, f"killed at {die_at}"
        assert weights_of(directory) == expected


def test_a_climber_that_dies_twice_in_one_rung_goes_on_in_it(tmp_path: Path) -> None:
    directory, runs = make_ladder(tmp_path), Runs(die_at=3)
    for _ in range(2):
        with pytest.raises(Killed):
            climb_with(directory, runs)
        runs.die_at = runs.done + 3
    runs.die_at = None
    climb_with(directory, runs)
    assert runs.steps == WHOLE


@pytest.mark.parametrize("spoil", ["a byte", "the manifest", "all of it"])
def test_no_rung_starts_from_a_checkpoint_that_is_not_what_the_lineage_says(
    tmp_path: Path, spoil: str
) -> None:
    directory, runs = make_ladder(tmp_path), Runs()
    normal_train = runs.train

    def train(config: Config) -> int:
        if config.run.name == "02-kg":
            raise Killed
        return normal_train(config)

    with pytest.raises(Killed):
        climb(directory, Runner(train, runs.resume, runs.newest), lambda text: None)
    checkpoint = directory.path / "rungs/01-sft/checkpoints/step-2"
    if spoil == "all of it":
        shutil.rmtree(checkpoint)
    elif spoil == "a byte":
        (checkpoint / "model.safetensors").write_bytes(b"other")
    else:
        (checkpoint / "model.safetensors").write_bytes(b"other")
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        digest = write_durably(checkpoint / "model.safetensors", b"other")
        manifest["files"]["model.safetensors"] = digest
        (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    kind, told = ChecksumError, "step-2"
    if spoil == "all of it":
        kind, told = NotResumableError, "step-2, .*, is not there any more; restore it"
    with pytest.raises(kind, match=told):
        climb_with(directory, runs)
    assert "02-kg" not in runs.started_from


def test_a_base_model_that_has_changed_is_noticed(tmp_path: Path) -> None:
    directory, runs = make_ladder(tmp_path), Runs(die_at=2)
    with pytest.raises(Killed):
        climb_with(directory, runs)
    (tmp_path / "base" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ChecksumError, match="is not what the lineage says"):
        climb_with(directory, runs)


def test_a_run_that_fails_ends_the_climb_with_its_reason_and_is_resumed_later(
    tmp_path: Path,
) -> None:
    directory, runs = make_ladder(tmp_path), Runs()

    def train(config: Config) -> int:
        if config.run.name == "02-kg":
            RunDirectory.create(config)
            raise DivergedError("the loss is nan")
        return runs.train(config)

    with pytest.raises(DivergedError):
        climb(directory, Runner(train, runs.resume, runs.newest), lambda text: None)
    status = directory.status()
    assert status is not None
    assert (status.state, status.exit_code, status.rung) == ("failed", 5, "02-kg")
    assert status.reason == "DivergedError: the loss is nan"
    assert climb_with(directory, runs) == 0
    assert runs.steps == WHOLE


def test_two_climbers_do_not_meet(tmp_path: Path) -> None:
    directory = make_ladder(tmp_path)
    with (
        directory.climbed_by_this_process(),
        pytest.raises(RunExistsError, match="is being climbed by another process"),
    ):
        climb_with(directory, Runs())


def test_a_folder_that_is_taken_is_refused(tmp_path: Path) -> None:
    directory = make_ladder(tmp_path)
    with pytest.raises(RunExistsError, match="safeladder resume"):
        LadderDirectory.create(directory.ladder())


def test_a_driver_that_dies_while_it_makes_the_folder_is_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(path: Path, value: Any) -> None:
        raise Killed

    (tmp_path / "killed").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(lineage, "write_json", dies)
        with pytest.raises(Killed):
            make_ladder(tmp_path / "killed")
    (tmp_path / "killed" / "base").rename(tmp_path / "other")
    assert climb_with(make_ladder(tmp_path / "killed"), Runs()) == 0


def test_a_finished_run_without_a_checkpoint_is_no_rung(tmp_path: Path) -> None:
    directory, runs = make_ladder(tmp_path), Runs()
    nothing: Callable[[RunDirectory], Path | None] = lambda run: None  # noqa: E731
    with pytest.raises(NotResumableError, match="has finished and left no checkpoint"):
        Climb(directory, Runner(runs.train, runs.resume, nothing)).to_the_top()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '{"ladder": "up", "rungs": [{"number": 2}]}',
        '{"ladder": "up", "rungs": [{"number": 1, "name": "kg", "run": "01-kg", "stage": "rl",'
        ' "config_sha256": "", "started_unix_s": 1, "start": {"path": 3, "sha256": "",'
        ' "is_checkpoint": false}}]}',
    ],
)
def test_a_damaged_lineage_ends_in_one_sentence(tmp_path: Path, text: str) -> None:
    directory = make_ladder(tmp_path)
    directory.lineage.write_text(text)
    with pytest.raises(NotResumableError, match=r"lineage\.json cannot be read"):
        climb_with(directory, Runs())


def test_a_rung_starts_with_the_constraint_weights_that_the_one_before_ended_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = {"bound": 0.7, "gone": 0.3}
    monkeypatch.setattr(carry_over, "last_weights", lambda run: ends)
    config = make_ladder(tmp_path).ladder().rungs[1].config
    constraint = ConstraintConfig.model_validate(
        {"weighs": "safety", "rate": {"principle": "safety", "below": 0.5}, "bound": 0.1}
    )
    config = config.model_copy(update={"constraints": {"bound": constraint}})
    before = RunDirectory(tmp_path / "before")
    taken = carry_over.with_last_weights(config, before)
    assert taken.constraints["bound"].start == 0.7
    ends["bound"] = 9.0
    taken = carry_over.with_last_weights(config, before)
    assert taken.constraints["bound"].start == 1.0, "its own limit holds"
