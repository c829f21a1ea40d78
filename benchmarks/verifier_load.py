"""Who calls in ``benchmarks/verifier_service.py``: good clients, and an attack beside them."""

from __future__ import annotations

import asyncio
import json
import os
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc
from msgspec.structs import replace

from benchmarks.verifier_servers import CLIENT_NAME, PRINCIPLE, SERVICE, tls_of
from cluster import service_process, wire
from cluster.protos import verifier_pb2
from cluster.verifier_credentials import open_channel
from safeladder.records import Message, ScoreRequest

CLIENTS = 16
BODY_BYTES = 4096
SLOW_CONNECTIONS = 1000
HOSTILE_PER_S = 10
CALL_S = 30.0
_OPTIONS = [("grpc.use_local_subchannel_pool", 1)]  # a connection for each client


@dataclass(frozen=True)
class Round:
    """What the good clients saw in one round."""

    per_s: float
    p99_ms: float


def make_body() -> bytes:
    """One well-formed sample, as long as the benchmark says."""
    request = ScoreRequest(
        sample_id="0/0/0",
        attempt=1,
        messages=(Message("user", "a question"),),
        response="",
        finish_reason="stop",
        num_tokens=900,
        route="r",
    )
    empty = len(wire.join_requests([wire.pack_request(request)]))
    thought = "reason " * BODY_BYTES
    text = f"<think>{thought[: BODY_BYTES - empty - 40]}</think> an answer"
    return wire.join_requests([wire.pack_request(replace(request, response=text))])


def _channel(port: int, folder: Path | None) -> grpc.aio.Channel:
    tls = None if folder is None else tls_of(folder, CLIENT_NAME)
    return open_channel(f"127.0.0.1:{port}", tls, False, "tls", _OPTIONS)


class Load:
    """Clients that call one method, each as soon as its last call was answered."""

    def __init__(self, port: int, method: str, folder: Path | None) -> None:
        self._port, self._method, self._folder = port, method, folder
        self._body = make_body()
        self._channels: list[grpc.aio.Channel] = []
        self._replies: list[bytes] = []
        self._num_calls = 0

    async def __aenter__(self) -> Self:
        self._channels = [_channel(self._port, self._folder) for _ in range(CLIENTS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for channel in self._channels:
            await channel.close()

    async def run(self, seconds: float) -> Round:
        """One round. A call that fails ends the benchmark."""
        latencies: list[float] = []
        started_s = time.perf_counter()
        until_s = started_s + seconds
        await asyncio.gather(*(self._client(c, until_s, latencies) for c in self._channels))
        took_s = time.perf_counter() - started_s
        latencies.sort()
        return Round(len(latencies) / took_s, 1000 * latencies[int(0.99 * len(latencies))])

    def check_answers(self) -> None:
        """The last answers of every client are whole, and right."""
        for raw in self._replies:
            reply = verifier_pb2.Envelope.FromString(raw)
            answer = wire.unpack_answer(reply.payload, PRINCIPLE)
            if answer.verdicts[0].score != 1.0:
                raise RuntimeError(f"a wrong answer: {answer}")

    async def _client(
        self, channel: grpc.aio.Channel, until_s: float, latencies: list[float]
    ) -> None:
        call: Any = channel.unary_unary(self._method)
        envelope = verifier_pb2.Envelope(
            schema_version=wire.SCHEMA_VERSION, principle=PRINCIPLE, payload=self._body
        )
        reply = b""
        while (sent_s := time.perf_counter()) < until_s:
            self._num_calls += 1
            envelope.request_id = envelope.idempotency_key = f"{self._num_calls:064d}"
            reply = await call(envelope.SerializeToString(), timeout=CALL_S)
            latencies.append(time.perf_counter() - sent_s)
        self._replies.append(reply)


class Attack:
    """An attacking process, which begins and ends at a word."""

    def __init__(self, port: int, folder: Path) -> None:
        self._command = [sys.executable, "-m", "benchmarks.verifier_load", str(port), str(folder)]
        self._process: asyncio.subprocess.Process | None = None
        self.connections = 0
        self.hostile_sent = 0
        self.hostile_refused = 0

    async def __aenter__(self) -> Self:
        pipe = subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=pipe, stdout=pipe
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        await self._process.wait()

    async def begin(self) -> None:
        """Returns once the connections stand and the first bodies are sent."""
        await self._say("begin")

    async def end(self) -> None:
        """Returns once all is quiet."""
        for name, number in (await self._say("end")).items():
            setattr(self, name, getattr(self, name) + number)
        self.connections = SLOW_CONNECTIONS

    async def _say(self, word: str) -> dict[str, int]:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{word}\n".encode())
        answer: dict[str, int] = json.loads(await self._process.stdout.readline())
        return answer


def hostile_bodies() -> list[bytes]:
    """Bombs of several kinds, up to the size of a message."""
    meta = make_body()[:-1]  # up to the map of free values
    wide = b"\x81\xa1a\xdd" + struct.pack(">I", 1_000_000)
    return [
        b"\x91" * 100_000,
        b"\xdd" + struct.pack(">I", 1_000_000) + b"\x90" * 1_000_000,
        meta + wide + b"\x90" * 1_000_000,
        meta + b"\x81\xa1a" + b"\x91" * 100_000,
        meta + b"\xdf\xff\xff\xff\xff" * 1000,
        meta + b"\x81\xa1a\xdc\x0f\xff" + b"\x81\xa1b\xc0" * 4095,
        b"\x81\xa8requests\xdc\x10\x00" + b"\x80" * 4096,
        b"\x00" * wire.MAX_BODY_BYTES,
    ]


async def _attack(port: int, folder: Path) -> None:
    """Begin at a line of stdin, end at the next, and so on.

    At the lowest priority: an attacker's own work would not run on the service's machine.
    """
    os.nice(19)
    service_process.allow_open_files(SLOW_CONNECTIONS + 128)
    while await asyncio.to_thread(sys.stdin.readline):
        writers = await _connect_slowly(port)
        counts = {"hostile_sent": 0, "hostile_refused": 0}
        sending = asyncio.create_task(_send_hostile(port, folder, counts))
        while not counts["hostile_sent"] and not sending.done():  # noqa: ASYNC110 - a count, no event
            await asyncio.sleep(0.01)
        print("{}", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        for writer in writers:
            writer.close()
        print(json.dumps(counts), flush=True)


async def _connect_slowly(port: int) -> list[asyncio.StreamWriter]:
    """Connections that say nothing, or the beginning of something."""
    beginnings = (b"", b"\x16\x03", b"\x16\x03\x01\x02\x00\x01", b"PRI * HTTP/2.0\r\n")
    writers = []
    for number in range(SLOW_CONNECTIONS):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(beginnings[number % len(beginnings)])
        writers.append(writer)
    return writers


async def _send_hostile(port: int, folder: Path, counts: dict[str, int]) -> None:
    calls = [
        verifier_pb2.Envelope(
            schema_version=wire.SCHEMA_VERSION, principle=PRINCIPLE, payload=body
        ).SerializeToString()
        for body in hostile_bodies()
    ]
    async with _channel(port, folder) as channel:
        call: Any = channel.unary_unary(SERVICE)
        while True:
            sent = calls[counts["hostile_sent"] % len(calls)]
            next_s = time.monotonic() + 1 / HOSTILE_PER_S
            try:
                await call(sent, timeout=CALL_S)
                refused = False
            except grpc.aio.AioRpcError as error:
                refused = error.code() is grpc.StatusCode.INVALID_ARGUMENT
            counts["hostile_sent"] += 1
            counts["hostile_refused"] += refused
            await asyncio.sleep(max(0.0, next_s - time.monotonic()))


if __name__ == "__main__":
    asyncio.run(_attack(int(sys.argv[1]), Path(sys.argv[2])))
