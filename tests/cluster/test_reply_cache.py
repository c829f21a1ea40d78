"""Replies are asked for once, whatever ends the job in between."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cluster.reply_cache import ReplyCache
from safeladder.errors import DataError


class Model:
    """Counts its questions."""

    def __init__(self, reply: str | Exception = "yes") -> None:
        self.reply = reply
        self.num_asked = 0

    async def __call__(self) -> str:
        self.num_asked += 1
        await asyncio.sleep(0)
        if isinstance(self.reply, Exception):
            raise self.reply
        return self.reply


def ask(cache: ReplyCache, model: Model, *questions: str) -> list[str | BaseException]:
    async def all_of_them() -> list[str | BaseException]:
        calls = [cache.reply({"role": "writer", "q": q}, model) for q in questions]
        return await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run(all_of_them())


def test_a_kept_reply_is_not_asked_for_again_by_the_next_job(tmp_path: Path) -> None:
    path, model = tmp_path / "replies.jsonl", Model()
    with ReplyCache(path) as cache:
        assert ask(cache, model, "a", "b", "a") == ["yes"] * 3
    assert model.num_asked == 2
    with ReplyCache(path) as cache:
        assert ask(cache, model, "a", "b", "c") == ["yes"] * 3
        assert (cache.num_kept, cache.num_asked, model.num_asked) == (2, 1, 3)


def test_a_failure_is_not_kept(tmp_path: Path) -> None:
    path, model = tmp_path / "replies.jsonl", Model(TimeoutError("slow"))
    with ReplyCache(path) as cache:
        assert [str(error) for error in ask(cache, model, "a", "a")] == ["slow", "slow"]
        assert model.num_asked == 1
        model.reply = "now"
        assert ask(cache, model, "a") == ["now"]
    assert path.read_text().count("\n") == 1


def test_a_line_that_a_kill_cut_is_removed_and_asked_for_again(tmp_path: Path) -> None:
    path, model = tmp_path / "replies.jsonl", Model()
    with ReplyCache(path) as cache:
        ask(cache, model, "a", "b")
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with ReplyCache(path) as cache:
        assert ask(cache, model, "a", "b") == ["yes", "yes"]
    assert model.num_asked == 3
    assert path.read_bytes() == whole


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    path.write_text('{"key": "k", "reply": "r"}\nnot json\n')
    with pytest.raises(DataError, match=r"replies\.jsonl:2: is no line of kept replies"):
        ReplyCache(path)
