"""A seccomp filter: system calls that no reward function needs and an escape would. Child only.

Denied calls fail with EPERM. Without a network grant no socket can be made, so neither a network
nor a local service (a container engine, an object store) can be reached; ``socketpair``, which
event loops need, stays. Limits and scheduling of other processes are out of reach, one's own are
not. On a processor that is not in the table there is no filter.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
_ALLOW, _DENY = 0x7FFF0000, 0x00050000 | errno.EPERM
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_X32 = 0x40000000
_COLUMN = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

_ALWAYS = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "io_uring_setup": (425, 425),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
}
_WITHOUT_NETWORK = {"socket": (41, 198), "connect": (42, 203)}
_ONLY_ON_ITSELF = {
    "prlimit64": ((302, 261), 0),
    "sched_setparam": ((142, 118), 0),
    "sched_setscheduler": ((144, 119), 0),
    "sched_setaffinity": ((203, 122), 0),
    "sched_setattr": ((314, 274), 0),
    "setpriority": ((141, 140), 1),
    "ioprio_set": ((251, 30), 1),
}
"""Name → numbers, and which argument says whose; 0 is oneself."""


def filter_program(machine: str, network: bool) -> bytes | None:
    """The filter as BPF, or None for a processor that is not in the table."""
    if machine not in _COLUMN:
        return None
    column, architecture = _COLUMN[machine]
    denied = [n[column] for n in (_ALWAYS | ({} if network else _WITHOUT_NETWORK)).values()]
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_IF_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _DENY),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_IF_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _DENY),
    ]
    for number in denied:
        program += [(_JUMP_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _DENY)]
    for numbers, argument in _ONLY_ON_ITSELF.values():
        program += [
            (_JUMP_IF_EQUAL, 0, 4, numbers[column]),
            (_LOAD, 0, 0, _ARGUMENTS + 8 * argument),
            (_JUMP_IF_EQUAL, 0, 1, 0),
            (_RETURN, 0, 0, _ALLOW),
            (_RETURN, 0, 0, _DENY),
        ]
    program.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("HBBI", *step) for step in program)


def deny_dangerous_calls(network: bool) -> None:
    """Install the filter for this process and all it starts, for good. Needs no_new_privs."""
    program = filter_program(platform.machine(), network)
    if program is None:
        return
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")
