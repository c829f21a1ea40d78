import asyncio
import json
import math
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from cluster import monitor
from cluster.history import read_history, read_lines
from cluster.monitor import Monitor, choose_mode
from cluster.run_directory import RunDirectory
from safeladder.config import Config

SECRET = "sk-do-not-tell"
VERIFIERS = {"safety": "rewards.safety:SafetyRules 1+abc"}


def config(tmp_path: Path, **monitoring: Any) -> Config:
    return Config.model_validate(
        {
            "run": {"name": "demo", "steps": 3, "root": str(tmp_path)},
            "model": {"path": "models/tiny"},
            "data": {"train": ["train.jsonl"]},
            "principles": {
                "safety": {"verifier": "rewards.safety:SafetyRules", "options": {"api_key": SECRET}}
            },
            "routes": {"safety": {"safety": 1.0}},
            "monitor": {"wandb": "off", **monitoring},
        }
    )


def opened(tmp_path: Path, **monitoring: Any) -> tuple[Monitor, RunDirectory]:
    settings = config(tmp_path, **monitoring)
    run = RunDirectory.create(settings)
    return Monitor(run.path, settings, VERIFIERS), run


def row(step: int, **values: float) -> dict[str, float]:
    return {"train/step": step, "rollout/version": step, **values}


def sample(text: str) -> dict[str, Any]:
    return {
        "sample_id": "0/0/0", "version": 1, "prompt": text, "response": text, "reward": None,
        "verdicts": {"safety": "Unsafe"}, "disagreement": {"safety": 0.25},
    }  # fmt: skip


def test_rows_carry_their_axes_and_wall_time_and_come_back_by_kind(tmp_path: Path) -> None:
    async def scenario() -> None:
        writer, _ = opened(tmp_path)
        assert await writer.start() == "off"
        await writer.record("train", row(1, **{"reward/safety": 0.5}))
        await writer.record("eval", {"eval/step": 0, "eval/safe_rate": 0.1})
        await writer.alert("actor", "rollout: r0 is lost")
        await writer.finish({"safe_rate": 1})

    asyncio.run(scenario())
    history = read_history(tmp_path / "demo")
    assert history["train"][0]["reward/safety"] == 0.5
    assert history["train"][0]["time/unix_s"] > 1.7e9
    assert history["eval"][0]["eval/safe_rate"] == 0.1
    assert history["alert"][0]["text"] == "rollout: r0 is lost"


@pytest.mark.parametrize(
    ("kind", "values"), [("train", {"eval/step": 1.0}), ("odd", {"odd/step": 1.0})]
)
def test_a_row_without_its_axis_is_refused(
    tmp_path: Path, kind: str, values: dict[str, float]
) -> None:
    writer, run = opened(tmp_path)
    with pytest.raises(ValueError, match="needs its axis"):
        asyncio.run(writer.record(kind, values))
    assert not run.metrics.exists()


def test_a_step_that_is_repeated_after_a_resume_counts_once_the_last_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        writer, run = opened(tmp_path)
        for step in (1, 2, 3):
            await writer.record("train", row(step, x=1.0))
        again = Monitor(run.path, config(tmp_path), VERIFIERS)
        for step in (3, 4):
            await again.record("train", row(step, x=2.0))

    asyncio.run(scenario())
    rows = read_history(tmp_path / "demo")["train"]
    assert [(r["train/step"], r["x"]) for r in rows] == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]


def test_a_line_cut_by_a_kill_costs_that_line_only(tmp_path: Path) -> None:
    writer, run = opened(tmp_path)
    asyncio.run(writer.record("train", row(1)))
    with run.metrics.open("a") as file:
        file.write('{"kind": "train", "train/st')
    asyncio.run(Monitor(run.path, config(tmp_path), VERIFIERS).record("train", row(2)))
    assert [r["train/step"] for r in read_history(run.path)["train"]] == [1, 2]


def test_numbers_that_are_not_finite_are_null_and_every_line_is_strict_json(tmp_path: Path) -> None:
    writer, run = opened(tmp_path)
    asyncio.run(writer.record("train", row(1, loss=math.nan, norm=math.inf)))

    def refuse(name: str) -> None:
        raise AssertionError(name)

    line = json.loads(run.metrics.read_text(), parse_constant=refuse)
    assert (line["loss"], line["norm"]) == (None, None)


def test_verdicts_and_samples_are_kept_and_texts_left_out_on_request(tmp_path: Path) -> None:
    async def scenario(run_name: str, *, redact: bool) -> RunDirectory:
        writer, run = opened(tmp_path / run_name, redact_samples=redact)
        await writer.verdicts([{"sample_id": "0/0/0", "score": 0.1}, {"sample_id": "0/0/1"}])
        await writer.samples(5, [sample("a\u2028b")])
        return run

    run = asyncio.run(scenario("open", redact=False))
    assert [r["sample_id"] for r in read_lines(run.verdicts)] == ["0/0/0", "0/0/1"]
    (kept,) = read_lines(run.samples)
    assert (kept["train/step"], kept["response"]) == (5, "a\u2028b")
    (hidden,) = read_lines(asyncio.run(scenario("hidden", redact=True)).samples)
    assert (hidden["prompt"], hidden["response"]) == ("[3 characters]", "[3 characters]")


@pytest.mark.parametrize(
    ("wanted", "environment", "mode"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": "k"}, "online"),
        ("auto", {"WANDB_API_KEY": ""}, "offline"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "disabled"}, "off"),
        ("offline", {"WANDB_API_KEY": "k"}, "offline"),
        ("off", {"WANDB_API_KEY": "k"}, "off"),
        ("online", {}, "online"),
    ],
)
def test_auto_goes_online_only_with_a_key_in_the_environment(
    wanted: Any, environment: dict[str, str], mode: str
) -> None:
    assert choose_mode(wanted, environment) == mode


class BrokenRun:
    """A W&B run that fails at the first row."""

    calls = 0

    def define_metric(self, *_: object, **__: object) -> None: ...

    def log(self, _: object) -> None:
        self.calls += 1
        raise ConnectionError("server said no\nand more")

    def finish(self) -> None:
        raise AssertionError("a failed run is left alone")


def test_wandb_that_fails_is_said_once_and_the_files_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = BrokenRun()
    monkeypatch.setattr(monitor._Wandb, "_init", lambda *_: broken)

    async def scenario() -> list[str]:
        writer, _ = opened(tmp_path, wandb="offline")
        await writer.start()
        for step in (1, 2, 3):
            await writer.record("train", row(step))
        await writer.finish({})
        return await writer.notices()

    assert asyncio.run(scenario()) == ["W&B stopped (server said no); metrics.jsonl goes on"]
    assert broken.calls == 1
    assert len(read_history(tmp_path / "demo")["train"]) == 3


def test_online_falls_back_to_offline_and_then_to_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: object, mode: str) -> None:
        raise OSError(f"no {mode}")

    monkeypatch.setattr(monitor._Wandb, "_init", fails)

    async def scenario() -> list[str]:
        writer, _ = opened(tmp_path, wandb="online")
        assert await writer.start() == "online"
        await writer.record("train", row(1))
        await writer.finish({})
        return await writer.notices()

    assert asyncio.run(scenario()) == [
        "W&B online does not start (no online); going on offline",
        "W&B offline does not start (no offline); going on without it",
    ]


def test_wandb_that_hangs_holds_up_neither_rows_nor_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr(monitor._Wandb, "_init", lambda *_: released.wait() and None)
    monkeypatch.setattr(monitor, "QUEUE_ROWS", 2)
    monkeypatch.setattr(monitor, "FINISH_TIMEOUT_S", 0.05)

    async def scenario() -> list[str]:
        writer, _ = opened(tmp_path, wandb="offline")
        await writer.start()
        for step in range(1, 6):
            await writer.record("train", row(step))
        await writer.finish({})
        return await writer.notices()

    said = asyncio.run(scenario())
    released.set()
    assert [text.split(";")[0] for text in said] == [
        "W&B is too slow and misses rows",
        "W&B did not finish in time and is left behind",
    ]
    assert len(read_history(tmp_path / "demo")["train"]) == 5


def records(run: RunDirectory) -> list[dict[str, Any]]:
    """Every record of the newest W&B file, by W&B's own reader."""
    newest = max(run.wandb.glob("offline-run-*"))
    read = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(newest)],
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return [json.loads(line) for line in read.stdout.splitlines()]


def of_type(found: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record[kind] for record in found if record["type"] == kind]


async def three_steps(writer: Monitor) -> list[str]:
    await writer.start()
    for step in (1, 2, 3):
        await writer.record("train", row(step, **{"reward/safety": step / 10}))
    await writer.record("eval", {"eval/step": 3, "eval/safe_rate": 0.5})
    await writer.samples(3, [sample("text")])
    await writer.alert("kl", "too high")
    await writer.finish({"safe_rate": {"before": 0.1, "after": 0.5}})
    return await writer.notices()


@pytest.mark.engine
def test_wandb_offline_holds_every_row_its_axes_the_verifiers_and_no_secret(tmp_path: Path) -> None:
    writer, run = opened(tmp_path, wandb="offline")
    assert asyncio.run(three_steps(writer)) == []
    found = records(run)
    rows = [r["item"] for r in of_type(found, "history")]
    assert [r["train/step"] for r in rows if "reward/safety" in r] == [1, 2, 3]
    assert [r["eval/step"] for r in rows if "eval/safe_rate" in r] == [3]
    axes = {m.get("glob_name"): m.get("step_metric") for m in of_type(found, "metric")}
    assert (axes["reward/*"], axes["eval/*"]) == ("train/step", "eval/step")
    settings = of_type(found, "run")[0]["config"]["update"]
    assert settings["verifiers"] == VERIFIERS
    assert settings["learner"]["lr"] == 1e-6
    assert [r["train/samples.nrows"] for r in rows if "train/samples.nrows" in r] == [1]
    (table,) = run.wandb.rglob("*.table.json")
    shown = json.loads(table.read_text())
    assert dict(zip(shown["columns"], *shown["data"], strict=True))["disagreement/safety"] == 0.25
    assert "too high" in json.dumps(found)
    assert '"after": 0.5' in json.dumps(of_type(found, "summary"))
    for file in run.wandb.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes()


ONLINE = """
import asyncio, os, sys
from pathlib import Path
from cluster import monitor
from tests.cluster.test_monitor import opened, three_steps
monitor.INIT_TIMEOUT_S = 2.0
print(asyncio.run(three_steps(opened(Path(sys.argv[1]), wandb="auto")[0])), flush=True)
os._exit(0)  # as an actor ends; W&B's own exit handler would go on trying the server
"""


@pytest.mark.engine
def test_a_wandb_server_that_never_answers_ends_in_an_offline_run_with_all_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        said = subprocess.run(
            [sys.executable, "-c", ONLINE, str(tmp_path)],
            check=True, capture_output=True, text=True, timeout=80,
        )  # fmt: skip
    assert said.stdout.count("W&B") == 1
    assert "W&B online does not start" in said.stdout
    rows = [r["item"] for r in of_type(records(RunDirectory(tmp_path / "demo")), "history")]
    assert [r["train/step"] for r in rows if "reward/safety" in r] == [1, 2, 3]
