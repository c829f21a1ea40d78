"""Replies of models that a long job has paid for: kept on disk, never asked for twice.

A line of JSON for each reply, keyed by the digest of all that the reply depends on. A job that is
ended in the middle and started again finds its replies and asks for the rest only. Failures are
not kept. One writer.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import IO, Any, Self

from safeladder.errors import DataError
from safeladder.paths import PathError, read_bytes


def request_key(request: Mapping[str, Any]) -> str:
    """Hex SHA-256 of a request as JSON, keys sorted: equal requests, equal key."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


class ReplyCache:
    """Replies by request. Use it in a ``with`` block."""

    def __init__(self, path: Path) -> None:
        """Raises ``DataError`` for a file that is not such a cache, naming the line; a last line
        that was cut by a kill is removed."""
        self._path = path
        self._replies: dict[str, str] = {}
        self._asked: dict[str, asyncio.Future[str]] = {}
        self._file: IO[bytes] | None = None
        self.num_kept = 0
        """Replies that were there already."""
        self.num_asked = 0
        """Replies that had to be asked for."""
        self._read()

    def __enter__(self) -> Self:
        self._file = self._path.open("ab")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    async def reply(self, request: Mapping[str, Any], ask: Callable[[], Awaitable[str]]) -> str:
        """The kept reply to an equal request, or what ``ask`` returns, once it is on disk. Equal
        requests of the same moment are asked once. What ``ask`` raises, goes through."""
        key = request_key(request)
        if (kept := self._replies.get(key)) is not None:
            return kept
        if (asked := self._asked.get(key)) is not None:
            return await asyncio.shield(asked)
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._asked[key] = future
        try:
            reply = await ask()
            self._keep(key, request, reply)
        except BaseException as error:
            if isinstance(error, Exception):
                future.set_exception(error)
                future.exception()  # who else waits gets it; if nobody does, that is no mistake
            else:
                future.cancel()
            raise
        else:
            future.set_result(reply)
            return reply
        finally:
            del self._asked[key]

    def _keep(self, key: str, request: Mapping[str, Any], reply: str) -> None:
        assert self._file is not None, "the cache is not open"
        line = json.dumps({"key": key, "role": request.get("role"), "reply": reply})
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._replies[key] = reply
        self.num_asked += 1

    def _read(self) -> None:
        try:
            data = read_bytes(self._path)
        except FileNotFoundError:
            return
        except PathError as error:
            raise DataError(f"{self._path}: cannot be read ({error})") from None
        whole = data.rfind(b"\n") + 1
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                row = json.loads(line)
                self._replies[str(row["key"])] = str(row["reply"])
            except (ValueError, KeyError, TypeError):
                raise DataError(
                    f"{self._path}:{number}: is no line of kept replies; remove the line, or name "
                    "another folder"
                ) from None
        if whole < len(data):
            with self._path.open("r+b") as file:
                file.truncate(whole)
        self.num_kept = len(self._replies)
