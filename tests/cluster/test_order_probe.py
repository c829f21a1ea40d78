"""A whole probe on a tiny model, through the exact engine: reports, and going on."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from actors.rollout import EngineFailedError
from actors.transformers_engine import TransformersEngine
from cluster.cli import app
from cluster.order_report import said
from cluster.probe_model import ProbeModel, fingerprint
from evals.trial_journal import Answered, TrialJournal
from safeladder.errors import ConfigError, EnvironmentUnfitError
from safeladder.records import Completion
from tests.constraint_rows import HARD, write_rows
from tests.tiny_model import CHAT, save_tiny_model

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM", "HF_HUB_OFFLINE")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put back in the end what the command sets."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "1")
    return


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def probe(model: Path, prompts: Path, out: Path, *more: str) -> tuple[int, str]:
    arguments = ["probe", "order", str(model), "--prompts", str(prompts), "--out", str(out)]
    arguments += ["--engine", "transformers", "--dtype", "float32", "--num-prompts", "3"]
    arguments += ["--max-new-tokens", "3", "--max-prompt-tokens", "400", *more]
    found = CliRunner().invoke(app, arguments)
    return found.exit_code, found.output


def test_a_probe_reports_both_rounds_and_asks_nothing_twice(
    model_path: Path, tmp_path: Path
) -> None:
    prompts, out = write_rows(tmp_path / "rows.jsonl", num_seeds=6), tmp_path / "out"
    code, text = probe(model_path, prompts, out, "--rotations")
    assert code == 0, text
    report = json.loads((out / "report.json").read_text())
    assert set(report["rounds"]) == {"single", "multi"}
    for found in report["rounds"].values():
        assert [level["answers"] for level in found["levels"]] == [3] * 4
        assert [level["cddi"] for level in found["levels"]] == pytest.approx([-1, -1 / 3, 1 / 3, 1])
        assert {level["invalid"] for level in found["levels"]} == {0}
        # A tiny random model writes no commas, no rain and no quotes.
        assert [level["cla"] for level in found["levels"]] == pytest.approx([1 / 3] * 4)
        assert len(found["rotations"]) == 2
        assert found["regression"]["interacting"]["cddi"]["value"] == pytest.approx(0, abs=1e-6)
        assert "rises" not in " ".join(said(found))
    assert report["difficulty"]["source"] == "first pass"
    assert report["difficulty"]["hard_to_easy"][-1] == "punctuation:no_comma"
    assert report["generation"]["answers"] == 3 + 2 * 3 * (4 + 4)
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 4
    assert "single round, 3 prompts" in text
    lines = (out / "trials.jsonl").read_text().splitlines()

    code, text = probe(model_path, prompts, out, "--rotations")
    assert code == 0, text
    again = json.loads((out / "report.json").read_text())
    assert again["rounds"] == report["rounds"]
    assert again["generation"]["answers"] == 0
    assert (out / "trials.jsonl").read_text().splitlines() == lines

    same = ("--rotations", "--difficulty", str(out / "difficulty.json"))
    code, text = probe(model_path, prompts, out, *same, "--num-prompts", "4")
    assert code == 0, text
    wider = json.loads((out / "report.json").read_text())
    assert wider["rounds"]["single"]["prompts"] == 4
    assert wider["generation"]["answers"] == 2 * (4 + 4)

    code, text = probe(model_path, prompts, out, "--max-new-tokens", "4")
    assert code == 2
    assert "max_new_tokens 3, and now it is 4" in text.replace("\n", " ")


def test_a_difficulty_file_spares_the_first_pass(model_path: Path, tmp_path: Path) -> None:
    prompts, out = write_rows(tmp_path / "rows.jsonl"), tmp_path / "out"
    file = tmp_path / "hard.json"
    file.write_text(json.dumps(HARD))
    code, text = probe(model_path, prompts, out, "--difficulty", str(file), "--rounds", "single")
    assert code == 0, text
    report = json.loads((out / "report.json").read_text())
    assert report["difficulty"]["hard_to_easy"] == list(HARD["types"])
    assert report["difficulty"]["source"] == "hard.json"
    assert report["generation"]["answers"] == 3 * 4
    assert list(report["rounds"]) == ["single"]
    assert json.loads((out / "difficulty.json").read_text()) == HARD


def test_prompts_that_are_too_long_give_no_number(model_path: Path, tmp_path: Path) -> None:
    prompts, out = write_rows(tmp_path / "rows.jsonl"), tmp_path / "out"
    file = tmp_path / "hard.json"
    file.write_text(json.dumps(HARD))
    options = ("--difficulty", str(file), "--max-prompt-tokens", "20")
    code, text = probe(model_path, prompts, out, *options)
    assert code == 3
    assert 'no trial has a verdict ({"prompt_too_long": 24})' in text.replace("\n", " ")
    assert not (out / "report.json").exists()
    code, text = probe(model_path, prompts, tmp_path / "other", *options[2:])
    assert code == 3
    assert 'no trial has a verdict ({"prompt_too_long"' in text.replace("\n", " ")


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--rounds", "double"), 2, "'double' is neither single nor multi"),
        (("--num-prompts", "99"), 2, "the file has 4 rows"),
        (("--difficulty", "nowhere.json"), 2, "nowhere.json: there is no such file"),
    ],
)
def test_a_wrong_option_is_named_before_anything_is_loaded(
    model_path: Path, tmp_path: Path, options: tuple[str, ...], code: int, message: str
) -> None:
    found = probe(model_path, write_rows(tmp_path / "rows.jsonl"), tmp_path / "out", *options)
    assert found[0] == code
    assert message in found[1].replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_a_sentence_claims_no_more_than_interval_and_chance_allow() -> None:
    found: dict[str, Any] = {
        "clusters": 8,
        "slope": {"value": 0.1, "ci95": [0.05, 0.2], "p": 0.01},
        "spread": {"value": 0.1, "ci95": None, "p": 0.5, "by_chance": 0.1},
        "change_cla": {"change": 0.1, "ci95": None},
        "change_ila": {"change": None, "ci95": None},
        "regression": {"interacting": None},
    }
    assert said(found)[0].endswith(": rises")
    assert said(found | {"clusters": 7})[0].endswith("too few seeds to tell")
    by_chance = found["slope"] | {"p": 0.4}
    assert said(found | {"slope": by_chance})[0].endswith("not told apart from none")
    rounding = found["slope"] | {"ci95": [-2e-17, -1e-17]}
    assert said(found | {"slope": rounding})[0].endswith("not told apart from none")


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    prompts = write_rows(tmp_path / "rows.jsonl")
    code, text = probe(tmp_path / "nowhere", prompts, tmp_path / "out")
    assert code == 3
    assert "there is no such folder" in text
    (tmp_path / "empty").mkdir()
    code, text = probe(tmp_path / "empty", prompts, tmp_path / "out")
    assert code == 3
    assert "its tokenizer cannot be read" in text.replace("\n", " ")


def test_an_interrupted_probe_ends_with_the_figures_of_one_that_was_not(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, single = write_rows(tmp_path / "rows.jsonl"), ("--rounds", "single")
    assert probe(model_path, prompts, tmp_path / "whole", *single)[0] == 0
    append = TrialJournal.append

    def dies(journal: TrialJournal, answered: Answered) -> None:
        if len(journal.answered) == 9:
            raise EnvironmentUnfitError("the disk is full")
        append(journal, answered)

    with monkeypatch.context() as patch:
        patch.setattr(TrialJournal, "append", dies)
        code, text = probe(model_path, prompts, tmp_path / "cut", *single)
    assert code == 3
    assert "the disk is full" in text
    journal = tmp_path / "cut/trials.jsonl"
    assert len(journal.read_text().splitlines()) == 1 + 9
    journal.write_bytes(journal.read_bytes()[:-7])
    assert probe(model_path, prompts, tmp_path / "cut", *single)[0] == 0
    whole, cut = (
        json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "cut")
    )
    assert cut["rounds"] == whole["rounds"]
    assert cut["difficulty"] == whole["difficulty"]
    assert cut["generation"]["answers"] == whole["generation"]["answers"] - 8


def test_a_broken_engine_says_that_the_same_command_goes_on(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaks(*_: Any) -> AsyncIterator[Completion]:
        raise EngineFailedError("the engine process is dead")
        yield

    prompts = write_rows(tmp_path / "rows.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(TransformersEngine, "generate", breaks)
        code, text = probe(model_path, prompts, tmp_path / "out")
    assert code == 1
    assert "the engine process is dead; the same command goes on" in text
    assert probe(model_path, prompts, tmp_path / "out")[0] == 0


@pytest.mark.engine
def test_vllm_gives_the_figures_of_the_exact_engine(model_path: Path, tmp_path: Path) -> None:
    prompts = write_rows(tmp_path / "rows.jsonl")
    vllm = ("--engine", "vllm", "--cpu-kv-cache-gib", "0.25")
    assert probe(model_path, prompts, tmp_path / "exact")[0] == 0
    code, text = probe(model_path, prompts, tmp_path / "vllm", *vllm)
    assert code == 0, text
    exact, other = (
        json.loads((tmp_path / name / "report.json").read_text()) for name in ("exact", "vllm")
    )
    assert other["rounds"] == exact["rounds"]
    assert other["samples"] == exact["samples"]


def test_a_system_prompt_of_the_template_is_told(model_path: Path, tmp_path: Path) -> None:
    assert ProbeModel(path=model_path).template_adds() == ""
    template = tmp_path / "own.jinja"
    template.write_text("<|im_start|>system\nBe brief.<|im_end|>\n" + CHAT)
    assert ProbeModel(path=model_path, chat_template=template).template_adds() == (
        "system\nBe brief."
    )
    with pytest.raises(ConfigError, match="cannot be read"):
        ProbeModel(path=model_path, chat_template=tmp_path / "none").template_adds()


def test_other_weights_have_another_fingerprint(model_path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    copy.mkdir()
    for path in model_path.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert fingerprint(copy) == fingerprint(model_path)
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert fingerprint(copy) != fingerprint(model_path)
