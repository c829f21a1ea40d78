"""Attacks on other calls' scores, on what a score is, and on what surrounds the function."""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import gc
import io
import json
import math
import os
import resource
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.abuse.attack_registry import Info, attack

# --- forging -----------------------------------------------------------------------------------


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
    target = sys.modules["tests.abuse.sandbox_attacks"].compute_score
    target.__code__ = (lambda *_, **__: 0.75).__code__
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


# --- what it returns ---------------------------------------------------------------------------


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


# --- surroundings ------------------------------------------------------------------------------


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
