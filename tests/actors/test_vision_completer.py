"""A judge that sees: the completer against a plain forward pass, and the judge on top of it."""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.image_prompts import ImagePrompts
from actors.vision_completer import VisionCompleter
from rewards.building import build_verifier
from rewards.judging import UnjudgedError
from safeladder.config import PrincipleConfig
from safeladder.errors import VerifierUnavailableError
from safeladder.records import InvalidCause, Message, ScoreRequest, Verdict, VerdictStatus
from tests.tiny_model import tiny_tokenizer
from tests.tiny_vision_model import (
    picture,
    save_tiny_vision_model,
    tiny_vision_model,
    tiny_vision_tokenizer,
)
from vision.reading import BadImageError, decode_image

TURNS = (Message("system", "be a judge"), Message("user", "what is in it?"))
LABELS = ("yes", "no idea")
RED, BLUE = picture("red"), picture("blue", (84, 56))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_vision_model(tmp_path_factory.mktemp("tiny-vision-model"))


def priced(path: Path, images: Sequence[Sequence[bytes]]) -> list[Any]:
    async def work() -> list[Any]:
        completer = VisionCompleter(path)
        try:
            return await completer.label_logprobs([TURNS] * len(images), LABELS, images)
        finally:
            await completer.close()

    return asyncio.run(work())


CHAIN = "<think>The picture shows a red square.</think> red"


def judged(path: Path, mode: str, *samples: tuple[str, tuple[bytes, ...]]) -> list[Verdict]:
    options = {
        "template": "visual_focus",
        "completer": "actors.vision_completer:VisionCompleter",
        "completer_options": {"path": str(path), "max_pixels": 20_000},
        "mode": mode,
    }
    if mode == "logits":
        options["min_mass"] = 0.0  # a random model gives its labels hardly any
    verifier = build_verifier(
        "focus", PrincipleConfig(verifier="rewards.judge:Judge", options=options)
    )
    requests = [
        ScoreRequest(
            sample_id=f"0/{i}/0", attempt=1, messages=(Message("user", "What color?"),),
            response=response, finish_reason="stop", num_tokens=9, route="r", images=images,
        )
        for i, (response, images) in enumerate(samples)
    ]  # fmt: skip

    async def work() -> list[Verdict]:
        await verifier.start()
        try:
            return await verifier.score(requests)
        finally:
            await verifier.close()

    return asyncio.run(work())


def test_label_log_probs_are_those_of_a_plain_forward_pass_over_image_and_text(path: Path) -> None:
    found = priced(path, [[RED], [BLUE], [], [RED, BLUE]])
    tokenizer, model = tiny_vision_tokenizer(), tiny_vision_model(tiny_vision_tokenizer())
    prompts = ImagePrompts(path, 10**6)
    for images, prices in zip(([RED], [BLUE], [], [RED, BLUE]), found, strict=True):
        inputs = prompts.render(TURNS, images)
        pad = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        assert bool((inputs["input_ids"] == pad).any()) == bool(images)
        for label, price in zip(LABELS, prices, strict=True):
            ids = tokenizer.encode(label, add_special_tokens=False)
            expected = 0.0
            step = dict(inputs)
            for token in ids:  # one token at a time, nothing kept in between
                with torch.no_grad():
                    following = model(**step).logits[0, -1].log_softmax(-1)
                expected += float(following[token])
                for name, value in (("input_ids", token), ("attention_mask", 1)):
                    step[name] = torch.cat([step[name], torch.tensor([[value]])], 1)
                zero = torch.zeros_like(step["mm_token_type_ids"][:, :1])
                step["mm_token_type_ids"] = torch.cat([step["mm_token_type_ids"], zero], 1)
            assert price == pytest.approx(expected, abs=1e-4)


def test_another_image_changes_the_answer_about_it_and_no_other(path: Path) -> None:
    first = priced(path, [[RED], [BLUE], []])
    second = priced(path, [[picture("green")], [BLUE], []])
    assert first[0] != pytest.approx(second[0], abs=1e-3)
    assert first[1:] == second[1:]


@pytest.mark.parametrize("mode", ["logits", "reply"])
def test_the_judge_of_visual_focus_reads_the_image_of_each_sample(path: Path, mode: str) -> None:
    verdicts = judged(path, mode, (CHAIN, (RED,)), (CHAIN, ()), (CHAIN, (BLUE,)))
    assert verdicts[1].status is VerdictStatus.NOT_APPLICABLE
    seen = [verdicts[0], verdicts[2]]
    if mode == "logits":
        assert {v.status for v in seen} == {VerdictStatus.OK}
    else:  # a random model writes no label, and that is no number
        assert {(v.status, v.cause) for v in seen} == {
            (VerdictStatus.INVALID, InvalidCause.MALFORMED)
        }


def test_a_label_that_the_model_writes_is_the_verdict(tmp_path: Path) -> None:
    save_tiny_vision_model(tmp_path)
    tokenizer, model = tiny_vision_tokenizer(), tiny_vision_model(tiny_vision_tokenizer())
    tokenizer.add_tokens(["yes ", "no "])  # opposite rows: one of them is always the likeliest
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        direction = torch.linspace(-1e5, 1e5, 64)
        model.get_output_embeddings().weight[-2:] = torch.stack([direction, -direction])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    seen, blind, bad = judged(
        tmp_path, "reply", (CHAIN, (RED,)), (CHAIN, ()), (CHAIN, (RED[:60],))
    )  # fmt: skip
    assert (seen.status, seen.score) == (VerdictStatus.OK, {"yes": 1.0, "no": 0.0}[str(seen.label)])
    assert blind.status is VerdictStatus.NOT_APPLICABLE
    assert (bad.status, bad.cause) == (VerdictStatus.INVALID, InvalidCause.ABSTAIN)


def test_an_image_that_cannot_be_read_costs_its_own_sample_alone(path: Path) -> None:
    bad: list[tuple[str, tuple[bytes, ...]]] = [
        (CHAIN, (RED[:60],)),
        (CHAIN, (picture("red", (200, 101)),)),
        (CHAIN, (b"GET /image HTTP/1.1",)),
        (CHAIN, (b"<svg/>",)),
        (CHAIN, (picture("red", (402, 2)),)),
        (CHAIN, (bomb(),)),
        (CHAIN, (RED, RED[:60])),
    ]
    verdicts = judged(path, "logits", *bad, (CHAIN, (RED,)))
    assert {(v.status, v.cause) for v in verdicts[:-1]} == {
        (VerdictStatus.INVALID, InvalidCause.ABSTAIN)
    }
    assert "20200" in str(verdicts[1].evidence) or "200x101" in str(verdicts[1].evidence)
    assert verdicts[-1].status is VerdictStatus.OK


def test_a_bad_image_has_its_fault_in_the_place_of_its_answer(path: Path) -> None:
    found = priced(path, [[RED], [RED[:60]], [BLUE]])
    assert isinstance(found[1], UnjudgedError)
    assert [found[0], found[2]] == priced(path, [[RED], [BLUE]])


def test_a_chat_template_that_shows_no_image_is_refused_at_the_start(tmp_path: Path) -> None:
    save_tiny_vision_model(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(VerifierUnavailableError, match=r"has no <\|image_pad\|> for each image"):
        judged(tmp_path, "logits")


def bomb() -> bytes:
    """A small PNG that says it is 15,000 x 10,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = struct.pack(">IIBBBBB", 15_000, 10_000, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\x00" * 10**6)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bomb(), "15000x10000 pixels, the limit is 1000000"),
        (RED[:60], "cannot be decoded"),
        (picture("red", (402, 2)), "402x2 pixels is too thin"),
        (b"", "cannot be decoded"),
        (b"GIF89a" + b"\x00" * 50, "cannot be decoded"),
    ],
)
def test_files_of_strangers_are_refused_before_they_unfold(data: bytes, message: str) -> None:
    with pytest.raises(BadImageError, match=message):
        decode_image(data, 1_000_000)


def test_a_conversation_beyond_the_context_has_no_answer_and_its_neighbours_have(
    path: Path,
) -> None:
    async def work(call: str, argument: Any) -> list[Any]:
        completer = VisionCompleter(path)
        try:
            found: list[Any] = await getattr(completer, call)(
                [(Message("user", "long " * 900),), TURNS], argument
            )
            return found
        finally:
            await completer.close()

    for call, argument in (("complete", 4), ("label_logprobs", ["yes"])):
        long, short = asyncio.run(work(call, argument))
        assert isinstance(long, UnjudgedError)
        assert (long.cause, "4096" in str(long)) == (InvalidCause.ABSTAIN, True)
        assert not isinstance(short, UnjudgedError)
