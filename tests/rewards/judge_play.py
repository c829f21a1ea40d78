"""Judges with stand-in models: a scripted completer, and a little server that speaks HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from rewards.building import build_verifier
from rewards.judge import Judge
from safeladder.config import PrincipleConfig
from safeladder.records import Verdict
from tests.rewards.samples import sample

COMPLETER = "tests.rewards.stand_ins:ScriptedCompleter"
Handler = Callable[[dict[str, Any]], Awaitable[tuple[int, str]]]


def judge(template: str = "safety", **options: Any) -> Judge:
    config = PrincipleConfig(
        verifier="rewards.judge:Judge", options={"template": template, **options}
    )
    verifier = build_verifier("safety", config)
    assert isinstance(verifier, Judge)
    return verifier


def scripted(
    template: str = "safety", *, options: dict[str, Any] | None = None, **script: Any
) -> Judge:
    return judge(template, completer=COMPLETER, completer_options=script, **(options or {}))


def score(verifier: Judge, *answers: str, **fields: Any) -> list[Verdict]:
    async def run() -> list[Verdict]:
        await verifier.start()
        try:
            requests = [
                sample(a, "How?", sample_id=f"0/0/{i}", **fields) for i, a in enumerate(answers)
            ]
            return await verifier.score(requests)
        finally:
            await verifier.close()

    return asyncio.run(run())


async def serve(handler: Handler, seen: list[dict[str, Any]]) -> tuple[asyncio.Server, str]:
    """A little HTTP server on a free loopback port; one request a connection."""

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        fields = dict(line.lower().split(": ", 1) for line in head.splitlines()[1:] if line)
        body = await reader.readexactly(int(fields.get("content-length", "0")))
        call = {"path": head.split()[1], "headers": fields, "body": json.loads(body or b"{}")}
        seen.append(call)
        status, text = (200, "{}") if call["path"].endswith("/models") else await handler(call)
        writer.write(
            f"HTTP/1.1 {status} X\r\ncontent-length: {len(text.encode())}\r\n"
            f"connection: close\r\n\r\n{text}".encode()
        )
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(connection, "127.0.0.1", 0)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


def ask_endpoint(
    handler: Handler,
    answers: tuple[str, ...] = ("alpha",),
    images: tuple[bytes, ...] = (),
    **options: Any,
) -> tuple[list[Verdict], list[dict[str, Any]]]:
    seen: list[dict[str, Any]] = []

    async def run() -> list[Verdict]:
        server, url = await serve(handler, seen)
        verifier = judge(endpoint=url, model="small", **options)
        await verifier.start()
        requests = [
            sample(a, sample_id=f"0/0/{i}", images=images, reference="gold")
            for i, a in enumerate(answers)
        ]
        try:
            return await verifier.score(requests)
        finally:
            await verifier.close()
            server.close()
            await server.wait_closed()

    return asyncio.run(run()), seen


def chat(content: object) -> str:
    return json.dumps({"choices": [{"message": {"content": content}}]})
