"""The mistakes of a first verifier are one sentence each, and no traceback."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from rewards.building import build_verifier
from rewards.deadline import close_with_deadline, score_with_deadline, start_with_deadline
from rewards.judging import Judgment
from safeladder.config import PrincipleConfig
from safeladder.errors import ConfigError, VerifierUnavailableError
from safeladder.records import InvalidCause
from tests.rewards.newcomers import BadClose, BadStart, ExitsInStart, Returns
from tests.rewards.samples import sample

HERE = "tests.rewards.newcomers"


def build(verifier: str, **options: Any) -> Any:
    return build_verifier("brief", PrincipleConfig(verifier=verifier, options=options))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("RaisesInInit", {}, r"verifier: the constructor of .* fails with RuntimeError: boom"),
        ("LooksUpInInit", {}, r"verifier: the constructor of .* fails with KeyError: 'x'"),
        ("ExitsInInit", {}, r"verifier: the constructor of .* fails with SystemExit: 0"),
        ("Abstract", {}, r"verifier: .*:Abstract' does not define judge"),
        ("NoPrinciple", {}, r"verifier: .* takes no `principle`; write `def __init__"),
        ("Positional", {}, r"verifier: .* takes 'principle' by position only; write"),
        ("BadHint", {}, r"options: the type hints of BadHint.__init__ .*'Nowhere'"),
        ("OddHint", {"weight": 1}, r"options\.weight: the type hint .* cannot be checked"),
        ("ForgotSuper", {}, r"verifier: property '\w+' .* call super\(\).__init__\(principle"),
        ("BadVersion", {}, r"verifier: property 'version' .* RuntimeError: no git"),
        ("NumberVersion", {}, r"verifier: property 'version' of .* must be text, got 3"),
    ],
)
def test_a_verifier_that_cannot_be_built_is_one_sentence(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^principles\.brief\.{message}") as caught:
        build(f"{HERE}:{name}", **options)
    assert "\n" not in str(caught.value)


def test_a_module_that_exits_at_import_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "exits_at_import.py").write_text("import sys; sys.exit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"importing 'exits_at_import' fails with SystemExit"):
        build("exits_at_import:V")


@pytest.mark.parametrize(
    ("verifier", "told"),
    [(BadStart, "OSError: no lexicon"), (ExitsInStart, "RuntimeError: SystemExit: 0")],
)
def test_a_start_that_fails_names_principle_and_fault(verifier: Any, told: str) -> None:
    with pytest.raises(
        VerifierUnavailableError, match=rf"principles\.p\.verifier does not start: {told}"
    ):
        asyncio.run(start_with_deadline(verifier(principle="p"), 5, principle="p"))


def test_a_close_that_fails_is_logged_and_takes_nothing_away(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    asyncio.run(close_with_deadline(BadClose(principle="p"), principle="p"))
    assert "principles.p.verifier: close() fails with RuntimeError: was never open" in caplog.text


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (1.0, "judge must return Judgment, got float; write Judgment(1.0)"),
        (True, "judge must return Judgment, got bool; write Judgment(True)"),
        (None, "judge must return Judgment, got NoneType; write Judgment(1.0)"),
        (Judgment("1"), "the score of a Judgment is a number, got str"),  # type: ignore[arg-type]
        (Judgment(1.0, 5), "the label of a Judgment is text or None, got int"),  # type: ignore[arg-type]
        (Judgment(1.0, evidence=b""), "the evidence of a Judgment is text or None, got bytes"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_judgment_is_malformed_and_says_how_to_write_one(value: Any, told: str) -> None:
    asked = score_with_deadline(Returns(value), [sample("x")], 5, principle="p")
    (verdict,) = asyncio.run(asked)
    assert (verdict.cause, verdict.evidence) == (InvalidCause.MALFORMED, told)


def test_a_whole_number_or_a_truth_value_is_a_score() -> None:
    for value in (1, True):
        asked = score_with_deadline(Returns(Judgment(value)), [sample("x")], 5, principle="p")
        (verdict,) = asyncio.run(asked)
        assert verdict.score == 1.0
        assert type(verdict.score) is float
