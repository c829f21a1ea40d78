"""``safeladder score``: verdicts on a file, with a table, and never a number for a failure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from cluster.cli import app
from cluster.score_command import bars
from safeladder.records import ScoreRequest


@pytest.fixture
def config(tmp_path: Path) -> Path:
    tree = {
        "run": {"name": "score", "steps": 1},
        "model": {"path": "none"},
        "data": {"train": []},
        "principles": {
            "rule": {"verifier": "rewards.exact:ExactAnswer"},
            "moody": {"verifier": "tests.cluster.test_offline_scoring:Moody"},
        },
        "routes": {"task": {"rule": 1.0}, "open": {"rule": 1.0, "moody": 0.5}},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def score(config: Path, rows: list[dict[str, object]], *options: str) -> Result:
    file = config.parent / "answers.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["score", str(file), "--config", str(config), *options]
    return CliRunner().invoke(app, words)


def answer(response: str, route: str = "task", **more: object) -> dict[str, object]:
    return {"prompt": "2 + 2?", "reference": "4", "response": response, "route": route, **more}


def test_every_row_gets_a_verdict_from_each_principle_of_its_route(config: Path) -> None:
    out = config.parent / "verdicts.jsonl"
    rows = [answer("4"), answer("5"), answer("4", "open", id="calm"), answer("4", "open", id="mad")]
    result = score(config, rows, "--out", str(out))
    assert result.exit_code == 0, result.output
    assert "3 of 4 rows" in result.output
    verdicts = [json.loads(line) for line in out.read_text().splitlines()]
    said = {(v["sample_id"], v["principle"]): (v["score"], v["reward"]) for v in verdicts}
    assert said["calm", "rule"] == (1.0, 1.5)
    assert said["calm", "moody"] == (1.0, 1.5)
    assert said["mad", "moody"] == (None, None)  # it raised: INVALID, and the row has no reward
    assert len(said) == 6
    assert "error 1" in result.output


def test_a_row_without_a_response_is_named(config: Path) -> None:
    result = score(config, [answer("4"), {"prompt": "x", "route": "task"}])
    assert result.exit_code == 2
    assert "answers.jsonl:2: column response is missing" in result.output


def test_nothing_but_invalid_verdicts_is_exit_code_4(config: Path) -> None:
    result = score(config, [answer("4", "open", id="mad")])
    assert result.exit_code == 4
    assert "principles.moody: all 1 verdicts are INVALID (error)" in result.output


def test_bars_show_that_a_rare_score_exists() -> None:
    assert bars((0, 1, 1000)) == " ▁█"
    assert bars((0, 0)) == "  "


class Moody:
    """A verifier of somebody else: raises for one row."""

    name, version = "moody", "1"

    def __init__(self, *, principle: str) -> None:
        from rewards.format import StopWithinLimit

        self._inner = StopWithinLimit(principle=principle)

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def score(self, requests: list[ScoreRequest]) -> list[object]:
        from safeladder.records import InvalidCause, Verdict, VerdictStatus

        verdicts: list[object] = []
        for request, verdict in zip(requests, await self._inner.score(requests), strict=True):
            if request.sample_id == "mad":
                verdict = Verdict(
                    sample_id="mad", principle=verdict.principle, verifier="m",
                    verifier_version="1", status=VerdictStatus.INVALID, cause=InvalidCause.ERROR,
                )  # fmt: skip
            verdicts.append(verdict)
        return verdicts
