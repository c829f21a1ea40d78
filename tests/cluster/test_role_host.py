"""Letters in, answers out, without Ray around the host."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from cluster import role_host
from cluster.role_host import Answer, Handle, Letter, RayStore, RoleFailure, RoleHost
from safeladder.errors import DataError


class Role:
    """Says what it is asked to, when it is told to."""

    def __init__(self, store: RayStore) -> None:
        self._store = store
        self._gates: dict[str, asyncio.Event] = {}

    async def say(self, text: str) -> str:
        return text

    async def keep(self, text: str) -> list[Handle]:
        return [await self._store.put(f"{text}, kept")]

    async def hold(self, name: str) -> str:
        await self._gates.setdefault(name, asyncio.Event()).wait()
        return name

    async def open(self, name: str) -> None:
        self._gates[name].set()

    async def fail(self) -> None:
        raise DataError("no such row")


def letters(*calls: tuple[str, str]) -> list[Letter]:
    """Method and argument of each; the tag is the argument's last letter, as a number."""
    arguments = {"say": "text", "keep": "text", "hold": "name", "open": "name"}
    return [
        Letter(index, method, {arguments[method]: value} if value else {})
        for index, (method, value) in enumerate(calls)
    ]


def play(scene: Callable[[RoleHost], Coroutine[Any, Any, None]]) -> None:
    """One scene with a host of its own, in bounded time."""

    async def bounded() -> None:
        async with asyncio.timeout(10):
            await scene(RoleHost(Role, {}, owner="nobody", cores=()))

    asyncio.run(bounded())


def values(answers: list[Answer]) -> list[Any]:
    return [answer.value for answer in answers]


def test_an_exchange_brings_what_is_done_and_a_later_one_the_rest() -> None:
    async def scene(host: RoleHost) -> None:
        answers, _ = await host.exchange(letters(("hold", "a"), ("say", "b")))
        assert [(answer.tag, answer.value) for answer in answers] == [(1, "b")]
        answers, _ = await host.exchange([Letter(2, "open", {"name": "a"})])
        assert {answer.tag: answer.value for answer in answers} == {0: "a", 2: None}

    play(scene)


def test_an_exchange_that_waits_ends_when_the_next_one_comes() -> None:
    async def scene(host: RoleHost) -> None:
        first = asyncio.create_task(host.exchange(letters(("hold", "a"))))
        await asyncio.sleep(0)
        second = asyncio.create_task(host.exchange([Letter(1, "open", {"name": "a"})]))
        assert await first == ([], [])
        assert sorted(map(str, values((await second)[0]))) == ["None", "a"]

    play(scene)


def test_an_actor_that_has_more_to_do_answers_for_many_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(role_host, "LINGER_S", 1e6)

    async def scene(host: RoleHost) -> None:
        host._answered_at = time.monotonic()
        asked = letters(("say", "a"), ("say", "b"), ("hold", "c"))
        exchange = asyncio.create_task(host.exchange(asked))
        _, waiting = await asyncio.wait({exchange}, timeout=0.05)
        assert waiting, "it answered a moment ago"
        next_one = asyncio.create_task(host.exchange([Letter(3, "open", {"name": "c"})]))
        assert await exchange == ([], [])
        assert sorted(map(str, values((await next_one)[0]))) == ["None", "a", "b", "c"]

    play(scene)


def test_what_a_letter_puts_lies_in_the_bundle_of_its_own_exchange() -> None:
    async def scene(host: RoleHost) -> None:
        answers, bundle = await host.exchange(letters(("keep", "a"), ("say", "b"), ("keep", "c")))
        assert bundle == ["a, kept", "c, kept"]
        for answer, text in zip(answers, ("a, kept", "", "c, kept"), strict=True):
            assert [handle.payload(bundle) for handle in answer.handles] == [text] * bool(text)
            if text:
                assert answer.value[0] is answer.handles[0], "whoever opens it fills in both"

    play(scene)


def test_what_a_role_raises_comes_back_as_data() -> None:
    async def scene(host: RoleHost) -> None:
        (answer,), _ = await host.exchange([Letter(0, "fail", {})])
        assert isinstance(answer.value, RoleFailure)
        assert (answer.value.kind, answer.value.message) == ("DataError", "no such row")
        assert answer.value.exit_code == DataError.exit_code

    play(scene)


def test_payloads_of_one_bundle_that_are_read_at_once_are_fetched_once() -> None:
    class Reference:
        """An object of Ray's, awaited."""

        reads = 0

        def __await__(self) -> Any:
            self.reads += 1
            yield
            return ["a", "b"]

    async def scene() -> None:
        reference = Reference()
        store = RayStore(owner=None)
        handles = [Handle(reference, place) for place in (1, 0, 1)]
        assert await asyncio.gather(*map(store.get, handles)) == ["b", "a", "b"]
        assert reference.reads == 1
        assert await store.get(handles[0]) == "b"
        assert reference.reads == 2, "nothing is kept that Ray could free"

    asyncio.run(scene())
