"""The lexical rule of visual focus."""

from __future__ import annotations

import asyncio

import pytest

from rewards.visual_focus import VisualFocus
from safeladder.records import Verdict, VerdictStatus
from tests.rewards.samples import sample


def look(chain: str, question: str = "May I drive on?", **fields: object) -> Verdict:
    given = {"images": (b"png",)} | fields
    request = sample(f"<think>{chain}</think> No.", question, **given)
    (verdict,) = asyncio.run(VisualFocus(principle="visual_focus").score([request]))
    return verdict


@pytest.mark.parametrize(
    "chain",
    [
        "First, look. The image shows a red stop sign. So stop.",
        "In the picture: a red sign and two cars.",
        "I can see a child near the road.",
        "A red sign is visible behind the truck.",
        "图片里有一个红色的标志。",
    ],
)
def test_a_chain_that_says_what_is_there_looks_at_the_image(chain: str) -> None:
    verdict = look(chain)
    assert verdict.score == 1.0
    assert verdict.evidence


@pytest.mark.parametrize(
    "chain",
    [
        "Red means stop, so no.",
        "Let me look at the image. Red signs mean stop.",
        "I must look at the image and see what is in the image.",
        "In the image, may I drive on?",
    ],
)
def test_naming_the_image_is_not_looking(chain: str) -> None:
    verdict = look(chain)
    assert (verdict.status, verdict.score) == (VerdictStatus.OK, 0.0)


def test_only_the_chain_counts_and_only_a_well_formed_one() -> None:
    good = "The image shows a red stop sign."
    for response in (good, f"<think>Hm.</think> {good}", f"<think>{good}"):
        request = sample(response, images=(b"png",))
        (verdict,) = asyncio.run(VisualFocus(principle="v").score([request]))
        assert verdict.score == 0.0


def test_a_sample_without_an_image_is_not_concerned() -> None:
    assert look("The image shows a red sign.", images=()).status is VerdictStatus.NOT_APPLICABLE
