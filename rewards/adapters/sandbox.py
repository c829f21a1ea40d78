"""The parent side of a sandbox: a function in a child process, one call at a time, always bounded.

Owns the life of the child, the line to it (JSON over a socket pair, no pickle) and the match of
answer and call by a nonce. It does not know what a call means; see ``worker`` for what the child
does. An answer that does not fit its call ends the child, and the next call starts another.

Three modes, the first that the machine has: ``bwrap`` (bubblewrap), ``namespaces`` (the kernel's
own, see ``isolation``), ``limits``. The last one holds a function that is slow, greedy or broken,
but not one that is hostile: it may signal processes of the same user, write the user's files and
use the network.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt

from rewards.judging import UnjudgedError
from safeladder.config_section import PositiveFloat, Section
from safeladder.errors import VerifierUnavailableError
from safeladder.records import InvalidCause

Mode = Literal["bwrap", "namespaces", "limits"]

_GRACE_S = 3.0
"""The child keeps the deadline itself; after this much more, it is taken for lost."""
_END_S = 10.0
_MAX_LINE_BYTES = 2**21
"""Above the longest answer that a worker sends."""
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "VIRTUAL_ENV", "LD_LIBRARY_PATH")


class FunctionError(VerifierUnavailableError):
    """The child is well, but its function cannot be imported."""


class SandboxOptions(Section):
    """How a function is confined."""

    mode: Literal["auto", "bwrap", "namespaces", "limits"] = "auto"
    """``auto`` takes the strongest that this machine has; a named one is required."""
    timeout_s: PositiveFloat = 10.0
    """A call that takes longer is killed."""
    start_timeout_s: PositiveFloat = 120.0
    """Longest wait for the import of the function."""
    memory_mb: PositiveInt = 1024
    """What a call may add to the memory of the imported function, its processes taken together."""
    processes: PositiveInt = 32
    """Processes and threads of one call."""
    file_mb: PositiveInt = 64
    """Size of one file, and of the scratch folder if it is in memory."""
    network: bool = False
    """Leave the network reachable, for a function that asks a judge."""
    env: tuple[str, ...] = ()
    """Names of environment variables to pass on. Others stay out, keys above all."""
    workers: PositiveInt = 1
    """Child processes, and so calls at the same time."""


def choose_mode(wanted: Literal["auto", "bwrap", "namespaces", "limits"]) -> Mode:
    """The mode to use. Raises ``ValueError`` if a named one is not to be had."""
    if wanted in ("auto", "bwrap") and shutil.which("bwrap") is not None:
        return "bwrap"
    if wanted == "bwrap":
        raise ValueError("sandbox.mode: bwrap is not on the PATH; install bubblewrap")
    if wanted in ("auto", "namespaces") and has_namespaces():
        return "namespaces"
    if wanted == "namespaces":
        raise ValueError("sandbox.mode: no user namespaces here; see docs/adapters.md")
    return "limits"


@functools.cache
def has_namespaces() -> bool:
    """Whether this machine grants us all that mode ``namespaces`` needs; asked once."""
    command = [sys.executable, "-P", "-m", "rewards.adapters.isolation"]
    try:
        done = subprocess.run(command, env=_environment((), "/"), capture_output=True, timeout=60)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


class Sandbox:
    """One child process around one function. The system ties the child to the thread that starts
    it, so run this in a loop that lives as long as the role."""

    def __init__(self, function: str, convention: str, options: SandboxOptions, mode: Mode) -> None:
        self._function = function
        self._convention = convention
        self._options = options
        self._mode = mode
        self._turn = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._line: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._scratch: str | None = None
        self._is_closed = False

    @property
    def pid(self) -> int | None:
        """Process id of the living child."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the child and import the function. Raises ``VerifierUnavailableError``, and of
        these ``FunctionError`` if the import is at fault."""
        self._is_closed = False
        async with self._turn:
            await self._ready()

    async def call(self, job: Mapping[str, Any]) -> Any:
        """What the function returned, as JSON values. Waiting for one's turn is not timed.

        Raises ``UnjudgedError`` for every way in which a call can go wrong.
        """
        async with self._turn:
            line = await self._ready()
            try:
                reply = await self._exchange(line, job)
            except BaseException:  # cancellation too: an unread answer would meet the next call
                await self._end()
                raise
            if "cause" in reply and self._mode == "limits":
                await self._end()  # nothing but a new child is known to be clean
        if "cause" in reply:
            raise UnjudgedError(InvalidCause(reply["cause"]), str(reply["detail"]))
        return reply["value"]

    async def close(self) -> None:
        """End the child and all it started."""
        self._is_closed = True
        await self._end()

    async def _exchange(
        self, line: tuple[asyncio.StreamReader, asyncio.StreamWriter], job: Mapping[str, Any]
    ) -> dict[str, Any]:
        nonce = secrets.token_hex(16)
        call = {"nonce": nonce, "convention": self._convention, "job": dict(job)}
        try:
            async with asyncio.timeout(self._options.timeout_s + _GRACE_S):
                reply = await _ask(line, call)
        except TimeoutError:
            detail = f"no answer within {self._options.timeout_s + _GRACE_S:g} s; child killed"
            raise UnjudgedError(InvalidCause.TIMEOUT, detail) from None
        except (ConnectionError, ValueError) as error:
            detail = f"the child broke off ({error or type(error).__name__})"
            raise UnjudgedError(InvalidCause.ERROR, detail) from error
        if not isinstance(reply, dict) or reply.get("nonce") != nonce:
            raise UnjudgedError(InvalidCause.ERROR, "the child answered something else")
        if "value" not in reply and reply.get("cause") not in set(InvalidCause):
            raise UnjudgedError(InvalidCause.MALFORMED, "the child's answer lacks a value")
        return reply

    async def _ready(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._is_closed:
            raise VerifierUnavailableError(f"{self._function}: closed")
        if self._line is not None and self._process is not None and self.pid is not None:
            if self._process.returncode is None:
                return self._line
            await self._end()
        try:
            async with asyncio.timeout(self._options.start_timeout_s):
                return await self._spawn()
        except BaseException as error:
            await self._end()
            if isinstance(error, TimeoutError):
                limit = f"{self._options.start_timeout_s:g} s (sandbox.start_timeout_s)"
                detail = f"not imported within {limit}"
            elif isinstance(error, ConnectionError | ValueError):
                detail = str(error)
            else:
                raise
            raise VerifierUnavailableError(f"{self._function}: {detail}") from error

    async def _spawn(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        options = self._options
        ours, theirs = socket.socketpair()
        self._scratch = scratch = tempfile.mkdtemp(prefix="safeladder-")
        network = "1" if options.network else "0"
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "rewards.adapters.worker", "guard"),
                *(str(theirs.fileno()), self._mode, network, scratch),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                cwd=scratch,
                env=_environment(options.env, scratch),
            )
            self._line = line = await asyncio.open_connection(sock=ours, limit=_MAX_LINE_BYTES)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        setup = options.model_dump(
            include={"timeout_s", "memory_mb", "processes", "file_mb", "network"}
        )
        greeting = await _ask(line, {"function": self._function, **setup})
        if not isinstance(greeting, dict) or greeting.get("ready") is not True:
            if isinstance(greeting, dict) and "import_error" in greeting:
                told = " ".join(str(greeting["import_error"]).split())
                raise FunctionError(f"importing {self._function} fails with {told}")
            reason = greeting.get("error") if isinstance(greeting, dict) else "no greeting"
            raise ValueError(f"does not start: {reason}")
        return line

    async def _end(self) -> None:
        """The guard ends all processes before itself; it is killed only if it does not end."""
        process, self._process = self._process, None
        line, self._line = self._line, None
        scratch, self._scratch = self._scratch, None
        if line is not None:
            line[1].close()
        if process is not None:
            if process.returncode is None:
                process.terminate()
            try:
                async with asyncio.timeout(_END_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
            finally:
                _kill_group(process.pid)
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


async def _ask(
    line: tuple[asyncio.StreamReader, asyncio.StreamWriter], message: Mapping[str, Any]
) -> Any:
    reader, writer = line
    writer.write(json.dumps(message).encode() + b"\n")
    await writer.drain()
    answer = await reader.readline()
    if not answer:
        raise ConnectionResetError("it ended without an answer")
    return json.loads(answer)


def _kill_group(pid: int) -> None:
    """Whoever is left in the child's process group, if the guard could not end it."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _environment(names: tuple[str, ...], scratch: str) -> dict[str, str]:
    passed = {name: os.environ[name] for name in (*_PASSED_ON, *names) if name in os.environ}
    path = os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)
    ours = {"PYTHONPATH": path, "HOME": scratch, "TMPDIR": scratch}
    return dict.fromkeys(_ONE_THREAD, "1") | passed | ours
