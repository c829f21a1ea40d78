"""``safeladder score``: verdicts on a file, with a table, and never a number for a failure."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
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
    said = "principles.moody: all 1 verdicts are INVALID (error): row mad: in a bad mood"
    assert said in result.output


def test_each_cause_is_printed_with_its_first_reason(config: Path) -> None:
    rows = [answer("4", "open", id="calm"), answer("4", "open", id="mad")]
    result = score(config, rows)
    assert result.exit_code == 0, result.output
    assert "  INVALID (error), such as row mad: in a bad mood\n" in result.output


@pytest.mark.parametrize("image", ["nowhere.png", "folder", "a\0b"])
def test_an_image_that_cannot_be_read_is_named_by_line(config: Path, image: str) -> None:
    (config.parent / "folder").mkdir()
    path = f"{config.parent}/{image}"
    result = score(config, [answer("4"), answer("4", images=[path], id="seen")])
    assert result.exit_code == 2, result.output
    assert f"answers.jsonl:2: column images: {path} cannot be read (" in result.stderr


@pytest.mark.parametrize("out", ["folder", "nowhere/out.jsonl", "answers.jsonl", "f" * 999])
def test_a_place_where_nothing_can_be_written_is_refused_before_scoring(
    config: Path, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object) -> None:
        raise AssertionError("scored")

    monkeypatch.setattr("cluster.score_command.score_file", never)
    (config.parent / "folder").mkdir()
    result = score(config, [answer("4")], "--out", str(config.parent / out))
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("safeladder: --out ")


def test_a_misspelled_verifier_is_refused_before_another_one_is_asked(config: Path) -> None:
    swap = "principles.moody.verifier=rewards.fromat:X"
    result = score(config, [answer("4", "open", id="calm")], swap)
    assert result.exit_code == 2
    assert result.stderr.startswith("safeladder: principles.moody.verifier: no module")


def test_overrides_are_taken_as_other_verbs_take_them(config: Path) -> None:
    result = score(config, [answer("4")], "routes.task.rule=3.5")
    assert result.exit_code == 0, result.output
    assert "reward: mean 3.500 on 1 of 1 rows\n" in result.output
    result = score(config, [answer("4")], "routes.task.rule=1e308")
    assert result.exit_code == 2
    assert "routes.task.rule: input should be less than or equal to 1000000" in result.stderr
    result = CliRunner().invoke(app, ["score", str(config)])
    assert (result.exit_code, "no config file was given" in result.stderr) == (2, True)


def test_decoupled_rewards_of_a_file_are_said_to_be_weighted_sums(config: Path) -> None:
    result = score(config, [answer("4")], "reward.combine=decoupled")
    assert "1 of 1 rows, as weighted sums: z-scores need siblings" in " ".join(
        result.output.split()
    )


def test_a_route_without_principles_is_refused_as_check_refuses_it(config: Path) -> None:
    result = score(config, [answer("4")], "routes.idle={}")
    assert result.exit_code == 2
    assert "routes.idle names no principle" in result.stderr


def test_evidence_that_is_no_text_is_written_as_json(config: Path) -> None:
    out = config.parent / "verdicts.jsonl"
    row = answer("4", "open", id="odd")
    assert score(config, [row, answer("4")], "--out", str(out)).exit_code == 0
    (odd,) = [v for v in map(json.loads, out.read_text().splitlines()) if v["label"] == "odd"]
    assert odd["evidence"] == "\ud800"


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
                    evidence="in a bad\n  mood",
                )  # fmt: skip
            if request.sample_id == "odd":
                verdict = msgspec.structs.replace(verdict, label="odd", evidence="\ud800")
            verdicts.append(verdict)
        return verdicts
