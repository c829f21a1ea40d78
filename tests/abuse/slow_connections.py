"""Connections that begin and never go on: silent ones, half a preface, a call without a body."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence

from cluster.service_process import allow_open_files
from cluster.verifier_service import SERVICE

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
HEADERS_TYPE, END_STREAM = 1, 1


def _text(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


def headers_frame() -> bytes:
    """Begins a call of ``Score`` and promises a body."""
    block = b"\x83\x86\x04" + _text(f"/{SERVICE}/Score") + b"\x01" + _text("localhost")
    block += b"\x0f\x10" + _text("application/grpc") + b"\x00" + _text("te") + _text("trailers")
    return (
        struct.pack(">I", len(block))[1:] + bytes([HEADERS_TYPE, 4]) + b"\x00\x00\x00\x01" + block
    )


BEGINNINGS: dict[str, bytes] = {
    "silent": b"",
    "half a preface": PREFACE[:10],
    "no HTTP/2": b"GET / HTTP/1.1\r\nHost: x\r\n",
    "TLS to a plain port": b"\x16\x03\x01\x02\x00\x01\x00",
    "preface and no more": PREFACE,
    "a call without a body": PREFACE + SETTINGS + headers_frame(),
}


class Slow:
    """Open connections that wait for ever."""

    def __init__(self) -> None:
        self._streams: list[tuple[str, asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def connect(self, port: int, number: int, kinds: Sequence[str] = ()) -> None:
        """Open ``number`` more, of all kinds in turn."""
        allow_open_files(4 * number + 256)
        kinds = kinds or list(BEGINNINGS)
        for index in range(number):
            kind = kinds[index % len(kinds)]
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(BEGINNINGS[kind])
            self._streams.append((kind, reader, writer))

    async def num_closed(self, within_s: float) -> int:
        """How many the other side closes in this time."""
        readers = [asyncio.ensure_future(_read_to_end(reader)) for _, reader, _ in self._streams]
        done, waiting = await asyncio.wait(readers, timeout=within_s)
        for reader in waiting:
            reader.cancel()
        return len(done)

    async def frames(self, within_s: float) -> list[tuple[int, int]]:
        """(type, flags) of what the first connection is sent until a stream ends."""
        _, reader, _ = self._streams[0]
        seen: list[tuple[int, int]] = []
        async with asyncio.timeout(within_s):
            while not seen or not (seen[-1][0] == HEADERS_TYPE and seen[-1][1] & END_STREAM):
                head = await reader.readexactly(9)
                await reader.readexactly(int.from_bytes(head[:3]))
                seen.append((head[3], head[4]))
        return seen

    def close(self) -> None:
        """Let go of all."""
        for _, _, writer in self._streams:
            writer.close()


async def _read_to_end(reader: asyncio.StreamReader) -> None:
    try:
        while await reader.read(4096):
            pass
    except ConnectionError:
        pass
