"""What a judge does with the parts of a sample: chain, image, reference, blank answer."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from rewards.images import data_url
from rewards.judging import UnjudgedError
from safeladder.records import InvalidCause, VerdictStatus
from tests.rewards.judge_play import ask_endpoint, chat, score, scripted

PNG = b"\x89PNG\r\n\x1a\n" + b"\x00" * 8
JPEG = b"\xff\xd8\xff\xe0" + b"\x00" * 8
WEBP = b"RIFF\x10\x00\x00\x00WEBPVP8 "


def test_a_chain_counts_as_much_as_its_answer() -> None:
    replies = {"alpha": "good", "beta": "bad"}
    texts = [
        "<think>alpha</think> alpha",
        "<think>beta</think> alpha",
        "<think>alpha</think> beta",
    ]
    plain = score(scripted("value", replies=replies), *texts)
    assert [v.score for v in plain] == [1.0, 1.0, 0.0]
    both = score(scripted("value", options={"score_chain": True}, replies=replies), *texts)
    assert [v.score for v in both] == [1.0, 0.0, 0.0]
    assert both[1].evidence == "answer: good, chain: bad"


@pytest.mark.parametrize(
    "response",
    [
        "alpha",
        "<think>alpha alpha",
        "<think>a</think><think>b</think> alpha",
        "alpha</think> alpha",
    ],
)
def test_a_malformed_chain_scores_zero_without_a_question(response: str) -> None:
    verifier = scripted("value", options={"score_chain": True}, replies={}, fault="raise")
    (verdict,) = score(verifier, response)
    assert (verdict.status, verdict.score) == (VerdictStatus.OK, 0.0)


def test_a_template_may_open_the_chain() -> None:
    options = {"score_chain": True, "opened_by_prompt": True}
    verifier = scripted("value", options=options, replies={"alpha": "good"})
    assert [v.score for v in score(verifier, "alpha</think> alpha")] == [1.0]


def test_a_part_without_a_verdict_leaves_the_product_without_one() -> None:
    replies = {"alpha": "good", "beta": "no idea"}
    verifier = scripted("value", options={"score_chain": True}, replies=replies)
    (verdict,) = score(verifier, "<think>beta</think> alpha")
    assert (verdict.score, verdict.cause) == (None, InvalidCause.MALFORMED)


@pytest.mark.parametrize(
    ("template", "label", "value"),
    [
        ("safety", "Illogical completion", 0.01),
        ("normal", "Other", 0.0),
        ("value", "bad", 0.0),
        ("knowledge", "FALSE", 0.0),
        ("general", "0", 0.0),
    ],
)
def test_a_blank_answer_has_its_label_without_a_question(
    template: str, label: str, value: float
) -> None:
    (verdict,) = score(scripted(template, fault="raise"), "<think>x</think> \n", reference="gold")
    assert (verdict.label, verdict.score) == (label, value)


@pytest.mark.parametrize("template", ["knowledge", "general"])
@pytest.mark.parametrize("reference", [None, " "])
def test_a_grader_without_a_reference_gives_no_verdict(
    template: str, reference: str | None
) -> None:
    verifier = scripted(template, replies={"alpha": "TRUE"})
    (verdict,) = score(verifier, "alpha", reference=reference)
    assert (verdict.score, verdict.cause) == (None, InvalidCause.ERROR)


def test_the_reference_reaches_the_grader() -> None:
    verifier = scripted("knowledge", replies={"Paris": "TRUE"})
    (verdict,) = score(verifier, "the capital", reference="Paris")
    assert verdict.score == 1.0


def test_visual_focus_is_for_items_with_an_image_and_reads_the_chain() -> None:
    async def answer(call: dict[str, Any]) -> tuple[int, str]:
        return 200, chat("yes" if "a red sign" in str(call["body"]) else "no")

    response = ("<think>The image shows a red sign.</think> Stop.", "<think>Hm.</think> a red sign")
    without, _ = ask_endpoint(answer, response, template="visual_focus")
    assert {v.status for v in without} == {VerdictStatus.NOT_APPLICABLE}
    with_image, _ = ask_endpoint(answer, response, images=(PNG,), template="visual_focus")
    assert [v.score for v in with_image] == [1.0, 0.0]


def test_an_endpoint_gets_the_bytes_of_an_image_and_no_address() -> None:
    async def answer(_: dict[str, Any]) -> tuple[int, str]:
        return 200, chat("Unsafe")

    (verdict,), seen = ask_endpoint(answer, images=(PNG, JPEG))
    assert verdict.score == 0.0
    first, second, text = seen[1]["body"]["messages"][-1]["content"]
    assert (first["type"], text["type"]) == ("image_url", "text")
    kind, _, code = first["image_url"]["url"].partition(";base64,")
    assert (kind, base64.b64decode(code)) == ("data:image/png", PNG)
    assert second["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert "alpha" in text["text"]


@pytest.mark.parametrize(
    ("image", "message"),
    [(b"<svg/>", "neither PNG"), (b"http://x/a.png", "neither PNG"), (PNG, "the limit is 15")],
)
def test_an_image_that_may_not_be_sent_makes_the_judge_abstain(image: bytes, message: str) -> None:
    async def answer(_: dict[str, Any]) -> tuple[int, str]:
        return 200, chat("Unsafe")

    (verdict,), seen = ask_endpoint(answer, images=(image,), max_image_bytes=15)
    assert verdict.cause is InvalidCause.ABSTAIN
    assert message in (verdict.evidence or "")
    assert [call["path"] for call in seen] == ["/v1/models"]


def test_the_type_of_an_image_is_read_from_its_bytes() -> None:
    assert data_url(WEBP, 100).startswith("data:image/webp;base64,")
    with pytest.raises(UnjudgedError):
        data_url(b"RIFF\x10\x00\x00\x00WAVEfmt ", 100)
