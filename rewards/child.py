"""A warm child process for work that may never end: one job at a time, killed at its deadline.

Owns the life of the child and the pipe (JSON lines, no pickle). It does not know what a job is.
The child gets our process id as its last argument and must die with us; see ``math_worker``. The
system ties it to the thread that started it, so run this in a loop that lives as long as the role.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from safeladder.errors import VerifierUnavailableError


class ChildDiedError(Exception):
    """The child ended instead of answering, or answered with something else than a JSON object."""


class ChildWorker:
    """Runs ``command`` as a child that first writes ``{"ready": true}``, then answers each line.

    A child that misses a deadline, dies or loses its caller in the middle of a job is killed; the
    next job starts another.
    """

    def __init__(self, command: Sequence[str], start_timeout_s: float) -> None:
        self._command = tuple(command)
        self._start_timeout_s = start_timeout_s
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._is_closed = False

    @property
    def pid(self) -> int | None:
        """Process id of the living child."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the child and wait until it is ready. Raises ``VerifierUnavailableError``."""
        self._is_closed = False
        async with self._turn:
            await self._ready()

    async def ask(self, job: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """The child's answer to one job. Waiting for one's turn does not count as time.

        Raises ``TimeoutError``, ``ChildDiedError``, ``VerifierUnavailableError``.
        """
        async with self._turn:
            process = await self._ready()
            try:
                async with asyncio.timeout(timeout_s):
                    return await self._exchange(process, json.dumps(dict(job)) + "\n")
            except BaseException:  # cancellation too: an unread answer would meet the next job
                await self._kill()
                raise

    async def close(self) -> None:
        """Kill the child; jobs that still wait for their turn fail."""
        self._is_closed = True
        await self._kill()

    async def _ready(self) -> asyncio.subprocess.Process:
        if self._is_closed:
            raise VerifierUnavailableError(f"{self._command[-1]}: closed")
        if self._process is not None and self._process.returncode is None:
            return self._process
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            str(os.getpid()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(self._start_timeout_s):
                greeting = await self._exchange(self._process, "")
        except (TimeoutError, ChildDiedError) as error:
            await self._kill()
            detail = str(error) or f"not ready within {self._start_timeout_s:g} s"
            raise VerifierUnavailableError(f"{self._command[-1]}: {detail}") from error
        except BaseException:
            await self._kill()
            raise
        if "error" in greeting:
            await self._kill()
            raise VerifierUnavailableError(str(greeting["error"]))
        return self._process

    async def _exchange(self, process: asyncio.subprocess.Process, line: str) -> dict[str, Any]:
        if process.stdin is None or process.stdout is None:
            raise ChildDiedError("the child has no pipes")
        try:
            process.stdin.write(line.encode())
            await process.stdin.drain()
            answer = json.loads(await process.stdout.readline() or b"null")
        except (ConnectionError, ValueError) as error:
            raise ChildDiedError(f"the child broke off: {error}") from error
        if not isinstance(answer, dict):
            raise ChildDiedError("the child ended without an answer")
        return answer

    async def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()
