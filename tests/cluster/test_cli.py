import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner, Result

from cluster.cli import app
from cluster.run_directory import RunDirectory, Status
from safeladder.config import Config
from safeladder.errors import DivergedError, EnvironmentUnfitError, NotResumableError

CONFIG = """
run: {name: demo, steps: 3, root: "%s"}
model: {path: models/tiny}
data: {train: [train.jsonl]}
principles: {safety: {verifier: "rewards.safety:SafetyRules"}}
routes: {safety: {safety: 1.0}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG % (tmp_path / "runs"))
    return path


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The driver's two entry points, without the cluster behind them."""
    module = ModuleType("cluster.driver")
    monkeypatch.setitem(sys.modules, "cluster.driver", module)
    return module


def serving(driver: ModuleType, train: Callable[[Config], int]) -> None:
    driver.__dict__["train"] = train


def test_train_merges_positional_files_options_and_overrides_in_that_order(
    config: Path, tmp_path: Path, driver: ModuleType
) -> None:
    seen: list[Config] = []
    serving(driver, lambda c: seen.append(c) or 0)
    overlay = tmp_path / "more.yaml"
    overlay.write_text("run: {steps: 5, seed: 5}")
    result = invoke("train", "run.steps=7", config, "--config", overlay)
    assert result.exit_code == 0
    assert (seen[0].run.steps, seen[0].run.seed) == (7, 5)


def test_the_drivers_own_exit_code_comes_through(config: Path, driver: ModuleType) -> None:
    serving(driver, lambda _: 75)
    assert invoke("train", config).exit_code == 75


def test_an_error_is_one_sentence_on_stderr_with_its_code(config: Path, driver: ModuleType) -> None:
    result = invoke("train", config, "learner.lr=fast")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == ("safeladder: learner.lr: input should be a valid number, not 'fast'\n")


def test_a_traceback_is_shown_on_demand_only(config: Path, driver: ModuleType) -> None:
    def fails(_: Config) -> int:
        raise EnvironmentUnfitError("no GPU")

    serving(driver, fails)
    assert "Traceback" not in invoke("train", config).stderr
    shown = invoke("train", config, "--debug")
    assert "Traceback" in shown.stderr
    assert shown.exit_code == 3


def test_a_failed_run_says_code_and_reason_in_its_status(config: Path, driver: ModuleType) -> None:
    made: list[RunDirectory] = []

    def fails(resolved: Config) -> int:
        made.append(RunDirectory.create(resolved))
        raise DivergedError("loss is not finite")

    serving(driver, fails)
    assert invoke("train", config).exit_code == 5
    status = made[0].status()
    assert status is not None
    assert (status.state, status.exit_code) == ("failed", 5)
    assert status.reason == "DivergedError: loss is not finite"


def test_a_bug_keeps_its_traceback_and_is_recorded_as_1(config: Path, driver: ModuleType) -> None:
    made: list[RunDirectory] = []

    def fails(resolved: Config) -> int:
        made.append(RunDirectory.create(resolved))
        raise ZeroDivisionError("bug")

    serving(driver, fails)
    result = invoke("train", config)
    assert isinstance(result.exception, ZeroDivisionError)
    status = made[0].status()
    assert status is not None
    assert (status.state, status.exit_code, status.reason) == (
        "failed",
        1,
        "ZeroDivisionError: bug",
    )


def test_a_refused_second_run_leaves_the_first_ones_status_alone(
    config: Path, driver: ModuleType
) -> None:
    serving(driver, lambda c: RunDirectory.create(c) and 0)
    assert invoke("train", config).exit_code == 0
    run = RunDirectory(config.parent / "runs" / "demo")
    finished = Status(state="finished", pid=2**22 + 1, exit_code=0)
    run.write_status(finished)
    result = invoke("train", config)
    assert result.exit_code == 2
    assert "already exists" in result.stderr
    assert run.status() == finished


def test_resume_hands_over_the_folder_and_records_why_it_cannot(
    config: Path, driver: ModuleType
) -> None:
    serving(driver, lambda c: RunDirectory.create(c) and 0)
    invoke("train", config)
    run = RunDirectory(config.parent / "runs" / "demo")
    run.write_status(Status(state="running", pid=2**22 + 1, step=4))
    seen: list[Path] = []

    def cannot(path: Path) -> int:
        seen.append(path)
        raise NotResumableError("no checkpoint verifies")

    driver.__dict__["resume"] = cannot
    assert invoke("resume", run.path).exit_code == 6
    assert seen == [run.path]
    status = run.status()
    assert status is not None
    assert (status.exit_code, status.step, status.pid) == (6, 4, os.getpid())


def test_resume_of_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    result = invoke("resume", tmp_path)
    assert (result.exit_code, "holds no run" in result.stderr) == (6, True)


@pytest.mark.parametrize("verb", ["resume", "report"])
@pytest.mark.parametrize("name", ["a" * 300, "loop"])
def test_a_run_folder_that_cannot_be_looked_at_is_refused(
    tmp_path: Path, verb: str, name: str
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    result = invoke(verb, tmp_path / name)
    assert result.exit_code == 6
    assert "cannot be opened" in result.stderr


def test_a_run_root_that_cannot_be_looked_at_is_refused(config: Path) -> None:
    result = invoke("train", config, f"run.root={'a' * 300}")
    assert result.exit_code == 3
    assert "file name too long; set run.root to another place" in result.stderr
    assert isinstance(result.exception, SystemExit)


def test_a_file_whose_name_has_an_equals_sign_is_a_file(
    config: Path, tmp_path: Path, driver: ModuleType
) -> None:
    seen: list[Config] = []
    serving(driver, lambda c: seen.append(c) or 0)
    overlay = tmp_path / "lr=big.yaml"
    overlay.write_text("learner: {lr: 0.5}")
    assert invoke("train", config, overlay, "run.steps=7").exit_code == 0
    assert (seen[0].learner.lr, seen[0].run.steps) == (0.5, 7)


def test_train_without_a_file_says_what_to_add() -> None:
    result = invoke("train", "learner.lr=1")
    assert result.exit_code == 2
    assert "no config file was given" in result.stderr


def test_check_of_a_missing_model_ends_with_3(config: Path) -> None:
    result = invoke("check", config)
    assert result.exit_code == 3
    assert "model models/tiny: there is no such folder" in result.stderr
    assert "max_staleness: 1" in result.stdout


def test_check_of_a_complete_setup_shows_verdicts_and_plan_and_makes_no_run(
    config: Path, tmp_path: Path
) -> None:
    model, data = tmp_path / "model", tmp_path / "train.jsonl"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    (model / "tokenizer.json").write_text("{}")
    header = b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}'
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"0")
    data.write_text('{"id": "row-1", "prompt": "How do I pick a lock?", "route": "safety"}\n')
    result = invoke(
        "check", config, f"model.path={model}", "model.dtype=float32", f"data.train=[{data}]",
        'principles.safety.verifier="rewards.format:StopWithinLimit"',
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    for part in ("row-1", "ok 1", "rollout", "verifier safety", "1 prompts", "ready to train"):
        assert part in result.stdout
    assert not (tmp_path / "runs").exists()


def test_report_is_written_again_on_demand(config: Path, driver: ModuleType) -> None:
    serving(driver, lambda c: RunDirectory.create(c) and 0)
    invoke("train", config)
    run = config.parent / "runs" / "demo"
    result = invoke("report", run, "--redact")
    assert result.stdout.strip() == str(run / "report.html")
    assert (run / "report.html").is_file()


def test_serve_verifier_passes_everything_on(
    config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: dict[str, object] = {}

    def run_service(resolved: Config, principles: object, bind: str, **options: object) -> None:
        seen.update(options, name=resolved.run.name, principles=principles, bind=bind)

    module = ModuleType("cluster.verifier_service")
    module.__dict__["run_service"] = run_service
    monkeypatch.setitem(sys.modules, "cluster.verifier_service", module)
    ready = tmp_path / "ready"
    result = invoke(
        "serve-verifier", config, "--principle", "safety", "--bind", "127.0.0.1:0",
        "--ready-file", ready, "--die-with-parent",
    )  # fmt: skip
    assert result.exit_code == 0
    assert seen == {
        "name": "demo", "principles": ["safety"], "bind": "127.0.0.1:0", "ready_file": ready,
        "token_file": None, "metrics_bind": None, "die_with_parent": True,
    }  # fmt: skip


def test_schema_is_json_on_stdout() -> None:
    assert "learner" in json.loads(invoke("schema").stdout)["properties"]


def test_the_module_is_the_command_and_its_help_loads_nothing_heavy() -> None:
    program = (
        "import sys, runpy; sys.argv = ['cluster', 'schema']\n"
        "try: runpy.run_module('cluster', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'ray', 'vllm', 'deepspeed', 'grpc', 'wandb', 'transformers', 'numpy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_a_verb_for_one_run_says_that_a_file_is_a_ladder(config: Path, tmp_path: Path) -> None:
    more = tmp_path / "rungs.yaml"
    more.write_text("ladder: [{name: kg, exit: {steps: 1}}]")
    result = invoke("plan", config, more, "--gpus", "8")
    assert result.exit_code == 2
    assert "is a ladder, and this is about one run" in result.stderr


def test_a_verb_for_one_run_says_that_a_folder_is_a_ladder(tmp_path: Path) -> None:
    (tmp_path / "lineage.json").write_text("{}")
    result = invoke("report", tmp_path)
    assert result.exit_code == 6
    assert "it is a ladder, whose runs lie in rungs/" in result.stderr
