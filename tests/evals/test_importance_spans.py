"""Tokens find their constraint, and sums over them are the sums that were meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from actors.rendering import PromptRenderer
from evals.importance import importance
from evals.importance_spans import (
    Density,
    by_constraint,
    constraint_spans,
    normalized,
    slot_of_tokens,
    token_density,
    token_weights,
)
from evals.importance_statistics import summarize_importance
from evals.importance_study import study
from evals.order_trials import Trial
from safeladder.errors import ConfigError
from safeladder.records import Message, Prompt
from tests.tiny_model import save_tiny_model, tiny_model, tiny_tokenizer

CONSTRAINTS = ("Write 2 bullets:\n* One.\n* Two.\n...", "Répondez en français", "No commas. P.S..")
SEED = "Tell me of commas. Now"
CONTENT = f"{SEED} {'. '.join(CONSTRAINTS)}."


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def test_spans_cover_all_tokens_of_every_constraint_and_no_others(model_path: Path) -> None:
    renderer = PromptRenderer(model_path)
    prompt = Prompt(id="p", messages=(Message("user", CONTENT),), route="probe")
    text, tokens, offsets = renderer.render_with_offsets(prompt)
    assert tokens.tolist() == renderer.render(prompt).tolist()
    spans = constraint_spans(text, CONSTRAINTS)
    assert [text[start:end] for start, end in spans] == list(CONSTRAINTS)
    slots = slot_of_tokens(offsets, spans)
    for slot, constraint in enumerate(CONSTRAINTS):
        assert renderer.decode(tokens[slots == slot]) == constraint
    assert (slots[: len(SEED)] == -1).all()


def test_a_token_over_an_edge_goes_where_most_of_it_is() -> None:
    offsets = [(0, 4), (4, 9), (9, 12), (12, 13)]
    assert slot_of_tokens(offsets, [(2, 5), (6, 11)]).tolist() == [0, 1, 1, -1]


@pytest.mark.parametrize("text", ["nothing of it", f"{CONTENT} {CONTENT}"])
def test_constraints_that_are_not_there_once_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not once"):
        constraint_spans(text, CONSTRAINTS)


def test_weights_average_what_is_positive_over_its_columns_maximum() -> None:
    raw = np.asarray([[2.0, -1.0], [4.0, 0.0], [-3.0, -2.0]], np.float32)
    np.testing.assert_allclose(normalized(raw)[:, 0], [0.5, 1, 0], atol=1e-6)
    np.testing.assert_allclose(normalized(raw)[:, 1], 0)
    np.testing.assert_allclose(token_weights(raw), [0.25, 0.5, 0], atol=1e-6)
    found = by_constraint(token_weights(raw), np.asarray([0, -1, 1]), 2)
    assert found["share"] == pytest.approx(1 / 3)
    assert [slot["share"] for slot in found["slots"]] == pytest.approx([1 / 3, 0])
    assert [slot["tokens"] for slot in found["slots"]] == [1, 1]


def test_nothing_positive_has_no_share() -> None:
    found = by_constraint(token_weights(np.full((2, 3), -1, np.float32)), np.asarray([0, -1]), 1)
    assert (found["share"], found["slots"][0]["share"]) == (None, None)


def test_density_is_one_for_a_single_peak_and_grows_with_the_number_of_equal_ones() -> None:
    raw = np.asarray([[1, 0, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]], np.float32)
    np.testing.assert_allclose(token_density(raw), [1, 3 / 3**0.25, 0])
    small = np.asarray([[1.0, 1.0], [0.5, 0.65]], np.float32)
    assert token_density(small)[1] > 1
    np.testing.assert_allclose(token_density(small, Density(threshold=7)), [2 / 2**0.25, 0])
    with pytest.raises(ValueError, match="threshold 10"):
        Density(threshold=10)


def trial(name: str, cddi: float, order: tuple[int, ...]) -> Trial:
    texts = [CONSTRAINTS[rank] for rank in order]
    return Trial(
        id=f"{name}/{cddi}",
        round="single",
        variant="level",
        prompt=name,
        cluster=name,
        ranks=order,
        inversions=0,
        cddi=cddi,
        constraints=tuple({"id": f"t:{k}", "kwargs": {}, "text": texts[k]} for k in range(3)),
        turns=(f"{name} {'. '.join(texts)}.",),
    )


TRIALS = [
    trial(name, cddi, order)
    for name in ("One", "Two")
    for cddi, order in ((-1.0, (2, 1, 0)), (1.0, (0, 1, 2)))
]


def run_study(model_path: Path, folder: Path, said: Any = (True, False, "broke"), **options: Any):  # type: ignore[no-untyped-def]
    model = tiny_model(tiny_tokenizer()).requires_grad_(False)
    asked: list[str] = []

    def judge(trial: Trial, answer: str) -> list[bool | str]:
        asked.append(trial.id)
        return list(said)

    records = study(
        model, PromptRenderer(model_path), TRIALS, judge, folder, {"model": "m"},
        max_new_tokens=5, **options,
    )  # fmt: skip
    return records, asked


def test_a_study_keeps_the_raw_importance_and_what_was_made_of_it(
    model_path: Path, tmp_path: Path
) -> None:
    records, asked = run_study(model_path, tmp_path)
    assert asked == [trial.id for trial in TRIALS]
    files = sorted(tmp_path.iterdir())
    assert len(files) == 4
    assert {path.suffix for path in files} == {".safetensors"}
    stored = [load_file(path) for path in files]
    weights = sorted(token_weights(one["importance"]).tolist() for one in stored)
    assert weights == sorted(record["weights"] for record in records)
    model = tiny_model(tiny_tokenizer()).requires_grad_(False)
    again = importance(model, stored[0]["prompt_tokens"], stored[0]["answer_tokens"])
    np.testing.assert_array_equal(again, stored[0]["importance"])
    first = records[0]
    assert first["passed"] == [True, False, None]
    assert first["share"] == pytest.approx(sum(slot["share"] for slot in first["slots"]))
    assert len(first["offsets"]) == len(first["weights"]) == len(first["density"])


def test_a_study_goes_on_where_it_stopped(model_path: Path, tmp_path: Path) -> None:
    before, _ = run_study(model_path, tmp_path)
    files = sorted(tmp_path.iterdir())
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:100])
    after, asked = run_study(model_path, tmp_path)
    assert len(asked) == 2
    assert after == before
    with pytest.raises(ConfigError, match="other settings"):
        run_study(model_path, tmp_path, density=Density(threshold=7))


def record(
    prompt: str, cddi: float, kinds: str, shares: list[float], passed: str
) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "cluster": prompt,
        "cddi": cddi,
        "types": list(kinds),
        "share": sum(shares),
        "slots": [{"share": share} for share in shares],
        "passed": [{"1": True, "0": False, "?": None}[one] for one in passed],
    }


def test_the_change_is_paired_and_the_correlation_leaves_out_what_is_invalid() -> None:
    records = [
        record("a", -1, "xy", [0.1, 0.2], "01"),
        record("a", 1, "yx", [0.3, 0.1], "10"),
        record("b", -1, "xy", [0.0, 0.3], "0?"),
        record("b", 1, "yx", [0.4, 0.0], "10"),
        record("c", 1, "yx", [0.9, 0.0], "??"),
    ]
    found = summarize_importance(records, resamples=200)
    assert found["change"]["value"] == pytest.approx(0.1)
    assert found["change"]["ci95"] == pytest.approx([0.1, 0.1])
    assert found["change"]["prompts"] == 2
    assert [level["trials"] for level in found["levels"]] == [2, 3]
    assert found["levels"][0]["slots"] == pytest.approx([0.05, 0.25])
    assert found["correlation"]["constraints"] == 7
    assert found["correlation"]["plain"]["value"] > 0.8
    # Type y is both more important and met more often: within types there is nothing left.
    assert found["correlation"]["within_type"] == {"value": None, "ci95": None}
