"""The child side of a sandbox: three generations of processes, each trusting the next one less.

::

    guard    started by the parent; runs no foreign code; adopts every orphan and ends them all
    └─ host  first process of the namespaces; imports the function; owns the line to the parent
       └─ runner  forked for one call; runs the function; killed with all it started

The parent writes one setup line, then one job a line; the host answers each with the nonce of the
job. A runner does not hold that line: it has one pipe, and the first line on it is its answer. What
it patches, opens or leaves in memory is gone with it, so a call can spoil its own score and no
other. Code at the top level of the function's module runs in the host, before any sample is seen:
whoever wrote it decides the scores anyway.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import select
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TextIO

from rewards.adapters import isolation
from rewards.adapters.shapes import RewardFunction, UnusableError, call_function
from rewards.adapters.syscalls import deny_dangerous_calls

MAX_REPLY_BYTES = 2**20
DETAIL_CHARS = 200
TICK_S = 0.05
"""How often a running call is weighed."""
_BWRAP = (
    *("--unshare-user", "--unshare-pid", "--unshare-uts", "--unshare-ipc", "--die-with-parent"),
    *("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--as-pid-1", "--cap-drop", "ALL"),
)


def main(arguments: list[str]) -> None:
    """``guard`` or ``host``, then: descriptor of the channel, mode, network (0 or 1), scratch."""
    role, channel, mode, network, scratch = arguments
    if role == "host":
        _host(int(channel), mode, scratch)
    else:
        _guard(int(channel), mode, network == "1", scratch)


def _guard(channel: int, mode: str, network: bool, scratch: str) -> NoReturn:
    """Start the host and wait. SIGTERM, or the end of the parent, ends everything."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    isolation.die_with_parent(signal.SIGTERM)
    isolation.adopt_orphans()
    if mode == "namespaces":
        isolation.leave_system(network)
    try:
        if (host := os.fork()) == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            isolation.die_with_parent(signal.SIGKILL)
            if mode == "bwrap":
                os.set_inheritable(channel, True)
                command = [*_bwrap(network, scratch), str(channel), mode, "0", scratch]
                os.execvp(command[0], command)
            _host(channel, mode, scratch)
        os.close(channel)
        os.waitpid(host, 0)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        isolation.end_descendants()
        shutil.rmtree(scratch, ignore_errors=True)  # the parent may be gone
    os._exit(0)


def _bwrap(network: bool, scratch: str) -> list[str]:
    """The bubblewrap command up to the host's own arguments."""
    net = [] if network else ["--unshare-net"]
    user, group = os.geteuid() or isolation.NOBODY, os.getegid() or isolation.NOBODY
    ids = ["--uid", str(user), "--gid", str(group)]
    python = [sys.executable, "-P", "-m", "rewards.adapters.worker", "host"]
    return ["bwrap", *_BWRAP, *ids, *net, "--tmpfs", scratch, "--chdir", scratch, "--", *python]


def _host(channel: int, mode: str, scratch: str) -> NoReturn:
    """Import the function, then answer jobs until the parent hangs up."""
    isolation.adopt_orphans()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the first process of a namespace ignores it then
    with socket.socket(fileno=channel) as line:
        jobs = line.makefile("r", encoding="utf-8")
        replies = line.makefile("w", encoding="utf-8")
        try:
            setup = json.loads(jobs.readline())
            if mode == "namespaces":
                isolation.seal_files(scratch, setup["file_mb"])
                isolation.cap_process_ids(setup["processes"])
                isolation.seal_kernel_settings()
            isolation.drop_privileges()
        except BaseException as error:  # noqa: BLE001 - the parent must know why it can not start
            _send(replies, {"error": _describe(error)})
            os._exit(1)
        try:
            host = _Host(channel, mode, scratch, setup, _load(setup["function"]))
        except BaseException as error:  # noqa: BLE001 - SystemExit too; whoever wrote it must know
            _send(replies, {"import_error": _describe(error)})
            os._exit(1)
        _send(replies, {"ready": True})
        for text in jobs:
            job = json.loads(text)
            _send(replies, {"nonce": job["nonce"], **host.run(job)})
    os._exit(0)


@dataclass(frozen=True, slots=True)
class _Host:
    """The imported function and how its calls are confined."""

    channel: int
    mode: str
    scratch: str
    setup: Mapping[str, Any]
    function: RewardFunction

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """One call in a process of its own, and the end of all it started."""
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        runner = os.fork()
        if runner == 0:
            try:
                os.close(reader)
                _write(writer, self._answer(job))
            finally:
                os._exit(1)
        os.close(writer)
        try:
            return _collect(reader, runner, self.setup)
        finally:
            os.close(reader)
            if not isolation.end_descendants():
                os._exit(1)  # something can not be killed; the guard and the parent take over
            if self.mode == "limits":
                _empty(self.scratch)

    def _answer(self, job: dict[str, Any]) -> str:
        try:
            self._confine()
            value = call_function(job["convention"], self.function, job["job"])
            return json.dumps({"value": value})
        except UnusableError as error:
            return json.dumps(_failed("malformed", _describe(error)))
        except BaseException as error:  # noqa: BLE001 - SystemExit and friends are answers too
            return json.dumps(_failed("error", _describe(error)))

    def _confine(self) -> None:
        """Become a runner. Files that the module opened on import stay open; the line does not."""
        isolation.die_with_parent(signal.SIGKILL)
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2, self.channel):
            os.dup2(nothing, descriptor)
        os.close(nothing)
        if self.mode != "limits":
            isolation.open_scratch(self.scratch, self.setup["file_mb"])
        if self.mode == "bwrap":  # it leaves /proc/sys to root
            isolation.seal_kernel_settings()
        isolation.drop_privileges()
        isolation.set_limits(
            self.setup["timeout_s"],
            self.setup["memory_mb"],
            self.setup["file_mb"],
            self.setup["processes"],
            own_count=self.mode != "limits",
        )
        deny_dangerous_calls(self.setup["network"])
        os.chdir(self.scratch)


def _load(path: str) -> RewardFunction:
    """``package.module:name`` or ``folder/file.py:name``."""
    place, _, name = path.rpartition(":")
    if place.endswith(".py"):
        spec = importlib.util.spec_from_file_location("reward_function_file", place)
        if spec is None or spec.loader is None:
            raise ImportError(f"{place} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(place)
    function = getattr(module, name)
    if not callable(function):
        raise TypeError(f"{path} is not a function")
    return function  # type: ignore[no-any-return]


def _write(writer: int, text: str) -> None:
    data = text.encode() + b"\n"
    while data:
        data = data[os.write(writer, data) :]


def _collect(reader: int, runner: int, setup: Mapping[str, Any]) -> dict[str, Any]:
    """The first line that the runner writes, or why there is none."""
    deadline = time.monotonic() + setup["timeout_s"]
    data = b""
    status: int | None = None
    own_bytes = isolation.resident_bytes(os.getpid())
    while time.monotonic() < deadline:
        if status is None:  # before reading: all that an ended runner wrote is in the pipe
            pid, ending = os.waitpid(runner, os.WNOHANG)
            status = ending if pid else None
        chunk = _take(reader, TICK_S if status is None else 0)
        data += chunk
        if b"\n" in data:
            return _read(data.partition(b"\n")[0])
        if len(data) > MAX_REPLY_BYTES:
            return _failed("malformed", f"the answer is longer than {MAX_REPLY_BYTES} bytes")
        if chunk:
            continue
        if status is not None:
            return _failed("error", f"ended without an answer ({_ending(status)})")
        if excess := _excess(setup, own_bytes):
            return _failed("error", excess)
    return _failed("timeout", f"not decided within {setup['timeout_s']:g} s; the call was killed")


def _take(reader: int, wait_s: float) -> bytes:
    if not select.select([reader], [], [], wait_s)[0]:
        return b""
    chunk = os.read(reader, 65536)
    if not chunk:
        time.sleep(wait_s)  # its end is closed, but it may go on
    return chunk


def _excess(setup: Mapping[str, Any], own_bytes: int) -> str | None:
    """What all processes of the call together have too much of."""
    running = list(isolation.descendants(os.getpid()))
    if len(running) > setup["processes"]:
        return f"more than {setup['processes']} processes"
    grown = sum(max(0, isolation.resident_bytes(pid) - own_bytes) for pid in running)
    return f"more than {setup['memory_mb']} MiB" if grown > setup["memory_mb"] * 2**20 else None


def _read(line: bytes) -> dict[str, Any]:
    try:
        reply = json.loads(line)
    except (ValueError, RecursionError):
        reply = None
    if isinstance(reply, dict):
        if set(reply) == {"value"}:
            return reply
        if set(reply) == {"cause", "detail"} and reply["cause"] in ("malformed", "error"):
            return _failed(reply["cause"], str(reply["detail"])[:DETAIL_CHARS])
    return _failed("malformed", "something else than an answer was written to the answer's pipe")


def _failed(cause: str, detail: str) -> dict[str, Any]:
    return {"cause": cause, "detail": detail}


def _ending(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def _describe(error: BaseException) -> str:
    try:
        text = f"{type(error).__name__}: {error}"
    except BaseException:  # noqa: BLE001 - its own __str__ may do anything
        text = type(error).__name__
    return text[:DETAIL_CHARS]


def _empty(scratch: str) -> None:
    """Without a file system of its own, a call would leave its files to the next one."""
    os.chdir("/")
    shutil.rmtree(scratch, ignore_errors=True)
    Path(scratch).mkdir(mode=0o700, exist_ok=True)


def _send(stream: TextIO, reply: Mapping[str, Any]) -> None:
    stream.write(json.dumps(reply) + "\n")
    stream.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
