"""Images of a run are looked at before it starts; each fault is one sentence with its row."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster import image_checks
from cluster.data_checks import check_data
from safeladder.config import Config
from safeladder.errors import ConfigError, DataError
from tests.cluster.checked_setup import JUDGE
from tests.tiny_model import CHAT
from tests.tiny_vision_model import noise, save_tiny_vision_model


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_vision_model(tmp_path_factory.mktemp("seeing"))


Check = Callable[..., list[Any]]


@pytest.fixture
def check(tmp_path: Path, model_path: Path) -> Check:
    """``check(row, ...)``: rows of one file beside ``good.png`` and ``cut.png``."""
    (tmp_path / "good.png").write_bytes(noise(0))
    (tmp_path / "cut.png").write_bytes(noise(1)[:-500])
    (tmp_path / "text.png").write_bytes(b"not an image")
    (tmp_path / "thin.png").write_bytes(noise(2, (900, 2)))

    def run(*rows: dict[str, Any], limit: int = 200, **model: Any) -> list[Any]:
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(json.dumps({"route": "task", **row}) for row in rows))
        tree = {
            "run": {"name": "check", "steps": 1, "root": str(tmp_path)},
            "model": {"path": str(model_path), "dtype": "float32", **model},
            "data": {"train": [str(path)]},
            "principles": {"exact": {"verifier": JUDGE}},
            "routes": {"task": {"exact": 1.0}},
            "rollout": {"max_prompt_tokens": limit, "max_new_tokens": 8},
        }
        return check_data(Config.model_validate_json(json.dumps(tree)))

    return run


def test_good_images_pass_and_lie_beside_the_file_that_names_them(
    check: Check, tmp_path: Path
) -> None:
    (prompt,) = check({"prompt": "What?", "images": ["good.png", "good.png"]})
    assert prompt.images == (str(tmp_path / "good.png"),) * 2


@pytest.mark.parametrize(
    ("image", "why"),
    [
        ("missing.png", r"missing\.png: there is no such file"),
        ("cut.png", r"cut\.png: an image cannot be decoded"),
        ("text.png", r"text\.png: an image cannot be decoded"),
        ("thin.png", r"thin\.png: an image of 900x2 pixels is too thin"),
        ("", "folder"),
        ("nul\0.png", "embedded null byte"),
        ("https://x.example/a.png", "no such file; addresses are not fetched"),
    ],
)
def test_a_bad_image_is_named_with_its_row(check: Check, image: str, why: str) -> None:
    rows = [{"prompt": "a"}, {"prompt": "b", "images": ["good.png", image]}]
    with pytest.raises(DataError, match=rf"rows\.jsonl:2: column images: .*{why}"):
        check(*rows)


def test_images_that_leave_no_room_for_text_are_refused(check: Check) -> None:
    row = {"prompt": "What?", "images": ["good.png"] * 4}
    with pytest.raises(DataError, match=r"its images take 48 tokens, and rollout\.max_prompt_toke"):
        check(row, limit=48)
    check(row, limit=48, image_max_pixels=2 * 784, image_min_pixels=784)


def test_sizes_of_images_that_contradict_each_other_are_refused(check: Check) -> None:
    row = {"prompt": "What?", "images": ["good.png"]}
    with pytest.raises(ConfigError, match=r"max_pixels: 1000 is below image_min_pixels: 2000"):
        check(row, image_min_pixels=2000, image_max_pixels=1000)
    with pytest.raises(ConfigError, match="below the 784 pixels of one token"):
        check(row, image_min_pixels=1, image_max_pixels=10)


def test_marks_in_the_text_must_fit_the_images(check: Check) -> None:
    check({"prompt": "<image> and <image>", "images": ["good.png"] * 2})
    with pytest.raises(DataError, match="the text has 1 times <image>, for 2 images"):
        check({"prompt": "<image>", "images": ["good.png"] * 2})
    with pytest.raises(
        DataError, match=r"rows\.jsonl:1: the text has <image>, and the row no images"
    ):
        check({"prompt": "What is on <image>?"})


def test_parts_of_a_message_say_where_an_image_stands(check: Check) -> None:
    parts = [{"type": "text", "text": "Is "}, {"type": "image"}, {"type": "text", "text": " red?"}]
    row = {"messages": [{"role": "user", "content": parts}], "images": ["good.png"]}
    (prompt,) = check(row)
    assert prompt.messages[0].content == "Is <image> red?"


def test_a_part_that_is_neither_text_nor_image_is_refused(check: Check) -> None:
    parts = [{"type": "video"}, {"type": "text", "text": "What happens?"}]
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .*text or an image.*not 'video'"):
        check({"messages": [{"role": "user", "content": parts}]})


def test_a_chat_template_without_a_place_for_images_is_refused(check: Check) -> None:
    blind = CHAT.replace("{{ m['content'] }}", "{{ m['content'] | string | length }}")
    with pytest.raises(ConfigError, match=r"room for 0 images, and 1 are given.*chat_template"):
        check({"prompt": "What?", "images": ["good.png"]}, chat_template=blind)


def test_beyond_the_first_images_only_headers_are_read(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_checks, "FULLY_READ", 1)
    rows = [{"prompt": "a", "images": ["good.png"]}, {"prompt": "b", "images": ["cut.png"]}]
    check(*rows)
    with pytest.raises(DataError, match=r"text\.png"):
        check(*rows, {"prompt": "c", "images": ["text.png"]})
