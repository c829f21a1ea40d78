"""Attacks with time, processes, memory, files and output; each returns 0.5 if it gets that far."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
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
from pathlib import Path
from typing import Any

from tests.abuse.attack_registry import Info, attack

# --- time --------------------------------------------------------------------------------------


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


# --- processes ---------------------------------------------------------------------------------


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


# --- endings -----------------------------------------------------------------------------------


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


# --- memory, files, output ---------------------------------------------------------------------


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
