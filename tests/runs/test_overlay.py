"""Another verifier for a principle by a config file of a few lines, and no code: ``safety`` goes
from the rules behind gRPC to a language model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from safeladder.config_loading import load_config

from .conftest import REPOSITORY
from .leftovers import command

DEADLINE_S = 240.0
LABELS = ("Safe with warning", "Safe with refusal", "Unsafe")
OVERLAY = """
principles:
  safety:
    verifier: rewards.judge:Judge
    options: {{template: safety, endpoint: "http://127.0.0.1:{port}/v1", model: scripted}}
    service: null
"""


class Scripted(BaseHTTPRequestHandler):
    """A chat server that answers with the labels in turn."""

    protocol_version = "HTTP/1.1"
    asked: list[dict[str, Any]]

    def do_GET(self) -> None:
        self._answer({"data": [{"id": "scripted"}]})

    def do_POST(self) -> None:
        self.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        label = LABELS[len(self.asked) % len(LABELS)]
        self._answer({"choices": [{"message": {"role": "assistant", "content": label}}]})

    def log_message(self, format: str, *args: Any) -> None: ...

    def _answer(self, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def endpoint() -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Port of a running chat server, and what it has been asked."""
    asked: list[dict[str, Any]] = []
    handler = type("Handler", (Scripted,), {"asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1], asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def wandb_run(run: Path) -> tuple[dict[str, Any], str]:
    """Config and summary (as text) of the offline run, by W&B's own reader."""
    (folder,) = (run / "wandb").glob("offline-run-*")
    read = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)],
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    records = [json.loads(line) for line in read.stdout.splitlines()]
    (first, *_) = [record["run"] for record in records if record["type"] == "run"]
    summary = [record["summary"] for record in records if record["type"] == "summary"]
    return first["config"]["update"], json.dumps(summary)


def test_the_shipped_overlay_turns_the_demos_safety_into_a_judge() -> None:
    configs = REPOSITORY / "configs"
    before = load_config([configs / "demo.yaml"])
    after = load_config([configs / "demo.yaml", configs / "overlays" / "judge.yaml"])
    assert before.principles["safety"].verifier == "rewards.safety:SafetyRules"
    safety = after.principles["safety"]
    assert (safety.verifier, safety.service) == ("rewards.judge:Judge", None)
    assert safety.options["min_mass"] == 0, "so small a model gives its labels hardly any mass"
    changed = after.model_copy(update={"principles": before.principles})
    assert changed == before, "the overlay touches something else"
    others = {name: p for name, p in after.principles.items() if name != "safety"}
    assert others.items() <= before.principles.items()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.engine
@pytest.mark.timeout(400)
def test_a_run_with_the_overlay_is_judged_by_the_model_and_wandb_says_so(
    tiny_config: Callable[..., Path], tmp_path: Path
) -> None:
    config = tiny_config(
        name="judged",
        steps=2,
        overrides={
            "data": {"train": [str(REPOSITORY / "demo" / "data" / "train.jsonl")]},
            "principles": {
                "safety": {"verifier": "rewards.safety:SafetyRules", "service": {"spawn": True}}
            },
            "routes": {"safety": {"safety": 1.0}},
            "monitor": {"wandb": "offline"},
        },
    )
    overlay = tmp_path / "judge.yaml"
    with endpoint() as (port, asked):
        overlay.write_text(OVERLAY.format(port=port))
        with command("train", str(config), "--config", str(overlay)) as driver:
            code, out, err = driver.finish(DEADLINE_S)
            assert code == 0, out + err
            assert driver.left() == []
        assert asked, "the judge was never asked"
        assert {question["model"] for question in asked} == {"scripted"}
    run = tmp_path / "runs" / "judged"
    rows = [json.loads(line) for line in (run / "verdicts.jsonl").read_text().splitlines()]
    verdicts = [row for row in rows if row.get("principle") == "safety"]
    assert verdicts
    assert {row["status"] for row in verdicts} == {"ok"}
    assert {row["label"] for row in verdicts} <= set(LABELS)
    (judge,) = {(row["verifier"], row["verifier_version"]) for row in verdicts}
    assert judge[0] == "rewards.judge:Judge"
    settings, summary = wandb_run(run)
    assert settings["verifiers"]["safety"] == " ".join(judge)
    assert settings["principles"]["safety"]["verifier"] == "rewards.judge:Judge"
    assert json.dumps(" ".join(judge)) in summary
