"""Reward functions that misbehave on purpose, in verl's convention, one for each way out of a box.

``compute_score`` is the function under test: ``ground_truth`` names the attack. The sample
``honest`` is judged after each attack by the same function: 0.25 if nothing of the attack is left,
0.75 if something is. An attack whose success only the function itself can see returns 1 for it;
every other attack returns 0.5 if it gets as far as returning.

Attacks marked ``hostile`` would harm the machine outside a process namespace. They refuse to run
unless the first process they see is a sandbox.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import ctypes
import gc
import io
import json
import math
import mmap
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Info = dict[str, Any]


@dataclass(frozen=True)
class Attack:
    """One way of misbehaving."""

    run: Callable[[Info], Any]
    tries: str
    is_hostile: bool
    is_probe: bool
    """Its returning 1 is the breach; otherwise any number in range is its own to give."""


ATTACKS: dict[str, Attack] = {}
_ORIGINALS = (
    json.dumps,
    json.loads,
    builtins.float,
    builtins.isinstance,
    time.monotonic,
    sys.stdout,
)
_VARIABLES = dict(os.environ)
_LIMIT = resource.getrlimit(resource.RLIMIT_NOFILE)


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Info | None = None
) -> Any:
    """verl's signature; see the module."""
    info = extra_info or {}
    if solution_str == "honest":
        return 0.25 if _is_untouched() else 0.75
    attack = ATTACKS[ground_truth]
    if attack.is_hostile:
        _insist_on_namespace()
    return attack.run(info)


def _is_untouched() -> bool:
    same = (json.dumps, json.loads, float, isinstance, time.monotonic, sys.stdout) == _ORIGINALS
    quiet = threading.active_count() == 1 and dict(os.environ) == _VARIABLES
    empty = list(Path.cwd().iterdir()) == [] and not Path("/dev/shm/left_behind").exists()
    return same and quiet and empty and _LIMIT is not None


def _insist_on_namespace() -> None:
    first = Path("/proc/1/cmdline").read_bytes()
    if b"rewards.adapters.worker" not in first or os.getpid() > 30_000:
        raise RuntimeError("not in a namespace of our own; not trying this")


def attack(
    tries: str, hostile: bool = False, probe: bool = False
) -> Callable[[Callable[[Info], Any]], Callable[[Info], Any]]:
    def register(run: Callable[[Info], Any]) -> Callable[[Info], Any]:
        ATTACKS[run.__name__] = Attack(run, tries, hostile, probe)
        return run

    return register


# --- time -------------------------------------------------------------------------------------


@attack("sleeps for an hour")
def sleep_forever(_: Info) -> Any:
    time.sleep(3600)


@attack("computes forever")
def busy_loop(_: Info) -> Any:
    while True:
        pass


@attack("ignores every signal and sleeps")
def ignore_signals(_: Info) -> Any:
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    time.sleep(3600)


@attack("awaits an event that nobody sets")
async def await_forever(_: Info) -> Any:
    await asyncio.Event().wait()


@attack("stops itself with SIGSTOP")
def stop_self(_: Info) -> Any:
    os.kill(os.getpid(), signal.SIGSTOP)
    return 0.5


@attack("patches the clocks")
def patch_time(_: Info) -> Any:
    time.monotonic = time.time = lambda: 0.0
    time.sleep(3600)


# --- processes ----------------------------------------------------------------------------------


@attack("forks a process that stays")
def fork_and_stay(_: Info) -> Any:
    if os.fork() == 0:
        time.sleep(3600)
    return 0.5


@attack("daemonizes: setsid, two forks, signals ignored")
def daemonize(_: Info) -> Any:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)
            time.sleep(3600)
        os._exit(0)
    return 0.5


@attack("starts a program that stays")
def start_program(_: Info) -> Any:
    subprocess.Popen(["sleep", "3600"], start_new_session=True)
    return 0.5


@attack("starts a program that stays, without our environment")
def start_program_without_trace(_: Info) -> Any:
    subprocess.Popen(["sleep", "3601"], start_new_session=True, env={}, cwd="/")
    return 0.5


@attack("fork bomb", hostile=True)
def fork_bomb(_: Info) -> Any:
    while True:
        with contextlib.suppress(OSError):
            os.fork()


@attack("starts threads without end", hostile=True)
def thread_bomb(_: Info) -> Any:
    while True:
        threading.Thread(target=time.sleep, args=(3600,)).start()


@attack("leaves a thread that goes on")
def lingering_thread(_: Info) -> Any:
    threading.Thread(target=time.sleep, args=(3600,)).start()
    return 0.5


@attack("holds the answer's pipe open in a forked process")
def hold_the_pipe(_: Info) -> Any:
    if os.fork() == 0:
        time.sleep(3600)
    os._exit(0)


@attack("kills its parent", hostile=True)
def kill_parent(_: Info) -> Any:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(0.1)
    return 0.5


@attack("interrupts and terminates its parent", hostile=True)
def interrupt_parent(_: Info) -> Any:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGSTOP):
        os.kill(os.getppid(), number)
    return 0.5


@attack("kills everything that it may signal", hostile=True)
def kill_everything(_: Info) -> Any:
    os.kill(-1, signal.SIGKILL)
    return 0.5


@attack("kills its process group", hostile=True)
def kill_group(_: Info) -> Any:
    os.kill(0, signal.SIGKILL)


@attack("kills the verifier's process by its id", hostile=True)
def kill_verifier(info: Info) -> Any:
    for pid in info["outside"]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return 0.5


@attack("becomes another program")
def become_another(_: Info) -> Any:
    os.execv("/bin/sh", ["sh", "-c", "sleep 3600"])


# --- endings ------------------------------------------------------------------------------------


@attack("os._exit(0)")
def leave_silently(_: Info) -> Any:
    os._exit(0)


@attack("sys.exit(0)")
def leave_politely(_: Info) -> Any:
    sys.exit(0)


@attack("raises BaseException")
def raise_base(_: Info) -> Any:
    raise BaseException("gone")


@attack("raises KeyboardInterrupt and GeneratorExit in one group")
def raise_group(_: Info) -> Any:
    raise BaseExceptionGroup("both", [KeyboardInterrupt(), GeneratorExit()])


@attack("raises an error whose text is another error")
def raise_evil(_: Info) -> Any:
    class EvilError(Exception):
        def __str__(self) -> str:
            raise SystemExit(0)

    raise EvilError


@attack("recursion without end")
def recurse(info: Info) -> Any:
    return recurse(info)


@attack("segmentation fault")
def crash(_: Info) -> Any:
    ctypes.string_at(0)


# --- memory, files, output ----------------------------------------------------------------------


@attack("allocates without end")
def allocate(_: Info) -> Any:
    kept = []
    while True:
        kept.append(bytearray(2**24))


@attack("allocates in many processes")
def allocate_in_forks(_: Info) -> Any:
    for _k in range(8):
        if os.fork() == 0:
            block = mmap.mmap(-1, 2**26)
            block.write(b"x" * 2**26)
            time.sleep(3600)
    time.sleep(3600)


@attack("raises its own limits, then allocates")
def raise_limits(_: Info) -> Any:
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_AS, unlimited)
    return allocate({})


@attack("fills the disk", hostile=True)
def fill_disk(_: Info) -> Any:
    for number in range(1000):
        Path(f"block{number}").write_bytes(bytes(2**24))


@attack("prints a gigabyte")
def print_gigabyte(_: Info) -> Any:
    for _k in range(64):
        sys.stdout.write("x" * 2**24)
    return 0.5


@attack("writes a gigabyte to stderr, past Python")
def stderr_gigabyte(_: Info) -> Any:
    block = b"x" * 2**24
    for _k in range(64):
        os.write(2, block)
    return 0.5


@attack("writes garbage to every descriptor")
def garbage_everywhere(_: Info) -> Any:
    for descriptor in range(3, 256):
        with contextlib.suppress(OSError):
            os.write(descriptor, b"\x00garbage\n" * 10)
    return 0.5


@attack("writes without end to every descriptor")
def flood_everywhere(_: Info) -> Any:
    while True:
        for descriptor in range(3, 256):
            with contextlib.suppress(OSError):
                os.write(descriptor, b"x" * 65536)


@attack("writes answers to other calls to every descriptor")
def forge_answers(_: Info) -> Any:
    for descriptor in range(3, 256):
        for nonce in ("", "0" * 32, None):
            line = json.dumps({"nonce": nonce, "value": 1.0}) + "\n"
            with contextlib.suppress(OSError):
                os.write(descriptor, line.encode())
    return 0.5


@attack("closes every descriptor")
def close_everything(_: Info) -> Any:
    os.closerange(0, 256)
    return 0.5


@attack("closes every descriptor and stays")
def close_and_stay(_: Info) -> Any:
    os.closerange(0, 256)
    time.sleep(3600)


@attack("deletes files outside its folder")
def delete_files(info: Info) -> Any:
    shutil.rmtree(Path(info["canary"]).parent, ignore_errors=True)
    return 0.5


@attack("overwrites files outside its folder")
def overwrite_files(info: Info) -> Any:
    with contextlib.suppress(OSError):
        Path(info["canary"]).write_text("overwritten")
    with contextlib.suppress(OSError):
        Path(__file__).open("a").close()
    return 0.5


@attack("mounts the file system writable again, also in a new user namespace", hostile=True)
def remount(info: Info) -> Any:
    libc = ctypes.CDLL(None)
    for flags in (0, 0x10000000 | 0x20000):
        if flags:
            libc.unshare(flags)
        libc.mount(None, b"/", None, ctypes.c_ulong(0x20 | 0x1000), None)
        libc.umount2(b"/", 2)
        with contextlib.suppress(OSError):
            Path(info["canary"]).write_text("remounted")
    return 0.5


@attack("writes the kernel's settings", hostile=True, probe=True)
def write_settings(_: Info) -> Any:
    for name in ("sys/kernel/core_pattern", "sys/vm/swappiness", "sysrq-trigger"):
        with contextlib.suppress(OSError):
            os.close(os.open(f"/proc/{name}", os.O_WRONLY))
            return 1.0
    return 0.5


@attack("opens the machine's devices", hostile=True, probe=True)
def open_devices(_: Info) -> Any:
    for number in range(8):
        for kind, major in ((stat.S_IFBLK, 8), (stat.S_IFBLK, 254), (stat.S_IFCHR, 1)):
            with contextlib.suppress(OSError):
                os.mknod(f"node{number}", kind | 0o600, os.makedev(major, number))
                os.close(os.open(f"node{number}", os.O_RDONLY))
                return 1.0
    odd = [n for n in Path("/dev").iterdir() if stat.S_ISBLK(n.lstat().st_mode)]
    return 1.0 if odd else 0.5


@attack("connects to a local socket of another program", hostile=True, probe=True)
def connect_locally(info: Info) -> Any:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with contextlib.suppress(OSError):
            socket.socket(socket.AF_UNIX, kind).connect(info["local"])
            return 1.0
        with contextlib.suppress(OSError):
            socket.socketpair(socket.AF_UNIX, kind)[0].connect(info["local"])
            return 1.0
    return 0.5


@attack("leaves files, links and shared memory for the next call", hostile=True)
def leave_files(_: Info) -> Any:
    Path("left_behind").write_text("1")
    Path("folder").mkdir()
    Path("folder/link").symlink_to("/")
    with contextlib.suppress(OSError):
        Path("/dev/shm/left_behind").write_text("1")
    return 0.5


# --- forging ------------------------------------------------------------------------------------


@attack("patches json for its siblings")
def patch_json(_: Info) -> Any:
    json.dumps = lambda *_, **__: '{"value": 1.0}'
    json.loads = lambda *_, **__: {"value": 1.0, "nonce": ""}
    return 0.5


@attack("patches builtins for its siblings")
def patch_builtins(_: Info) -> Any:
    builtins.float = lambda *_: 1.0
    builtins.isinstance = lambda *_: True
    builtins.len = lambda *_: 1
    return 0.5


@attack("patches the worker for its siblings")
def patch_worker(_: Info) -> Any:
    for name in ("__main__", "rewards.adapters.worker", "rewards.adapters.shapes"):
        if module := sys.modules.get(name):
            for function in ("_send", "_read", "_collect", "_run", "_answer", "call_function"):
                setattr(module, function, lambda *_, **__: {"value": 1.0})
    return 0.5


@attack("replaces its own code for its siblings")
def replace_itself(_: Info) -> Any:
    compute_score.__code__ = (lambda *_, **__: 0.75).__code__
    return 0.5


@attack("writes into its parent's memory", hostile=True, probe=True)
def write_parent_memory(_: Info) -> Any:
    parent = os.getppid()
    libc = ctypes.CDLL(None)
    attached = libc.ptrace(16, parent, None, None) == 0
    with contextlib.suppress(OSError):
        os.close(os.open(f"/proc/{parent}/mem", os.O_RDWR))
        attached = True
    return 1.0 if attached else 0.5


@attack("looks for the line to the verifier among its descriptors", probe=True)
def find_the_line(_: Info) -> Any:
    kinds = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            kinds.append(str(descriptor.readlink()))
    return 1.0 if any(kind.startswith("socket:") for kind in kinds) else 0.5


@attack("opens the line to the verifier through its parent's descriptors", probe=True)
def steal_the_line(_: Info) -> Any:
    libc = ctypes.CDLL(None)
    parent = os.getppid()
    for number in range(3, 64):
        with contextlib.suppress(OSError):
            Path(f"/proc/{parent}/fd/{number}").readlink()
            return 1.0
        if libc.syscall(438, os.pidfd_open(parent), number, 0) >= 0:
            return 1.0
    return 0.5


@attack("lowers its parent's limits", hostile=True, probe=True)
def limit_parent(_: Info) -> Any:
    try:
        resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (4, 4))
    except (PermissionError, ProcessLookupError):
        return 0.5
    return 1.0


@attack("reads other samples of the job from memory", probe=True)
def read_siblings(_: Info) -> Any:
    texts = [o for o in gc.get_objects() if isinstance(o, dict) and "solution_str" in o]
    return 1.0 if any(o["solution_str"] == "honest" for o in texts) else 0.5


# --- what it returns ----------------------------------------------------------------------------


@attack("returns a float that converts to something else")
def evil_float(_: Info) -> Any:
    class Evil(float):
        def __float__(self) -> float:
            os._exit(0)

        def __repr__(self) -> str:
            return '1.0, "nonce": "0"'

    return Evil(0.5)


@attack("returns an endless generator")
def endless_generator(_: Info) -> Iterator[float]:
    def forever() -> Iterator[float]:
        while True:
            yield 1.0

    return forever()


@attack("returns a mapping without end")
def endless_mapping(_: Info) -> Any:
    inner: dict[str, Any] = {}
    inner["score"] = inner
    return inner


@attack("returns sixteen million characters")
def huge_string(_: Info) -> Any:
    return "1" * 2**24


@attack("returns a number of a million digits")
def huge_number(_: Info) -> Any:
    return 10**1_000_000


@attack("returns NaN")
def nan(_: Info) -> Any:
    return math.nan


@attack("returns infinity")
def infinity(_: Info) -> Any:
    return {"score": math.inf}


@attack("returns 2 where 1 is the best")
def too_good(_: Info) -> Any:
    return 2.0


@attack("returns an answer with the fields of the protocol")
def protocol_fields(_: Info) -> Any:
    return {"value": 1.0, "nonce": "", "ready": True}


# --- surroundings -------------------------------------------------------------------------------


@attack("changes folder, environment, standard output and working limits")
def change_surroundings(_: Info) -> Any:
    os.chdir("/")
    os.environ.clear()
    os.environ["PATH"] = "/nowhere"
    sys.stdout = sys.stderr = io.StringIO()
    resource.setrlimit(resource.RLIMIT_NOFILE, (8, 8))
    return 0.5


@attack("connects to a server on this machine", hostile=True)
def connect(info: Info) -> Any:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", info["port"]), timeout=1).close()
    return 0.5


@attack("reads a key from the verifier's environment", probe=True)
def read_secret(info: Info) -> Any:
    found = info["secret"] in os.environ
    for file in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            found |= info["secret"].encode() in file.read_bytes()
    return 1.0 if found else 0.5


@attack("registers an exit handler that never ends")
def exit_handler(_: Info) -> Any:
    import atexit

    atexit.register(time.sleep, 3600)
    return 0.5
