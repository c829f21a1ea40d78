"""A thousand connections that never go on do not keep good callers from being served."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cluster import service_process, verifier_service
from cluster.verifier_client import GrpcVerifier
from cluster.verifier_service import VerifierServer
from safeladder.errors import EnvironmentUnfitError
from tests.abuse.slow_connections import END_STREAM, HEADERS_TYPE, Slow
from tests.cluster.verifier_fakes import LengthVerifier, make_request

pytestmark = pytest.mark.process

NUMBER = 1000


def beside_slow(scenario: Callable[[int, Slow], Awaitable[None]], **options: Any) -> None:
    async def run() -> None:
        server = VerifierServer({"safety": LengthVerifier()}, **options)
        port = await server.start("127.0.0.1:0")
        slow = Slow()
        try:
            await asyncio.wait_for(scenario(port, slow), 120)
        finally:
            slow.close()
            await server.stop(0)

    asyncio.run(run())


def test_good_callers_are_served_beside_a_thousand_slow_connections() -> None:
    async def scenario(port: int, slow: Slow) -> None:
        before = GrpcVerifier("safety", f"127.0.0.1:{port}", 20)
        await before.start()
        await slow.connect(port, NUMBER)
        after = GrpcVerifier("safety", f"127.0.0.1:{port}", 20)
        await after.start()
        slowest_s = 0.0
        for number in range(100):
            for client in (before, after):
                started_s = time.monotonic()
                (verdict,) = await client.score([make_request(number, "x" * 50)])
                assert verdict.score == 0.5
                slowest_s = max(slowest_s, time.monotonic() - started_s)
        assert slowest_s < 2, "not one call waited for the slow ones"
        await before.close()
        await after.close()

    beside_slow(scenario)


def test_connections_that_do_not_say_what_they_want_are_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quick = [(k, 1000 if "handshake" in k else v) for k, v in verifier_service._OPTIONS]
    monkeypatch.setattr(verifier_service, "_OPTIONS", tuple(quick))

    async def scenario(port: int, slow: Slow) -> None:
        await slow.connect(port, 40, ["silent", "half a preface", "preface and no more"])
        assert await slow.num_closed(within_s=10) == 40

    beside_slow(scenario)


def test_more_connections_than_allowed_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier_service, "MAX_CONNECTIONS", 150)

    async def scenario(port: int, slow: Slow) -> None:
        client = GrpcVerifier("safety", f"127.0.0.1:{port}", 20)
        await client.start()
        await slow.connect(port, 200, ["silent"])
        assert await slow.num_closed(within_s=3) >= 50
        assert (await client.score([make_request(0, "x" * 50)]))[0].score == 0.5
        await client.close()

    beside_slow(scenario)


def test_a_stranger_cannot_hold_a_call_open_by_keeping_its_body_back() -> None:
    async def scenario(port: int, slow: Slow) -> None:
        await slow.connect(port, 1, ["a call without a body"])
        frames = await slow.frames(within_s=5)
        assert any(kind == HEADERS_TYPE and flags & END_STREAM for kind, flags in frames)

    beside_slow(scenario, token="secret")


def test_a_limit_of_files_that_leaves_no_room_is_said_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 100))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    with pytest.raises(EnvironmentUnfitError, match=r"100 files.*ulimit -n 5000"):
        service_process.allow_open_files(5000)
    assert asked == [(100, 100)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    assert service_process.allow_open_files(3000) == 3000
    assert asked[-1] == (3000, 4096)
    assert service_process.allow_open_files(9000) == 4096
