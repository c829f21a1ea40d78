"""The kernel's part of a sandbox: namespaces, capabilities, limits. Runs in the child only.

Linux calls through ``ctypes``, in the order in which ``worker`` needs them; nothing here knows what
is being sandboxed. Needs neither root nor a package, but a kernel that grants user namespaces:
``python -m rewards.adapters.isolation`` exits with 0 where it does.

What the namespaces hold: other processes are neither seen nor signalled, the file system is
read-only except for a scratch folder in memory, there is no network unless granted, and the end of
the first process is the end of all. What they do not hold: faults of the kernel itself, and files
that the user may read can be read.
"""

from __future__ import annotations

import ctypes
import math
import os
import resource
import signal
import stat
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 0x1000, 0x4000, 0x40000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
SYS_MOUNT_SETATTR = 442  # the same number on every architecture
AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY, MOUNT_ATTR_NODEV = -100, 0x8000, 1, 4
DEVICES = ("null", "zero", "full", "random", "urandom")
CAPABILITY_VERSION_3 = 0x20080522
MIN_PID_MAX = 400
"""The kernel accepts no smaller one on machines with few cores."""
NOBODY = 65534
"""What root is called inside: a program of user 0 would get capabilities, and user 0 can not be
mapped into a second namespace without them."""
END_ALL_S = 5.0

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(kill_with: signal.Signals) -> None:
    """Have the kernel send us a signal when the thread that started us ends."""
    _call("prctl", PR_SET_PDEATHSIG, int(kill_with), 0, 0, 0)


def adopt_orphans() -> None:
    """Descendants that lose their parent become our children instead of init's."""
    _call("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def leave_system(network: bool) -> None:
    """New user, host-name and (for children) process namespaces; a network without devices unless
    ``network``. Raises ``OSError`` where the kernel refuses. We keep our files, and so our view of
    all processes."""
    flags = CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC
    _unshare(flags | (0 if network else CLONE_NEWNET))


def seal_files(scratch: str, size_mb: int) -> None:
    """In the first process of ``leave_system``: everything read-only but for a scratch folder
    in memory, no devices but the harmless ones, an empty ``/run``, a ``/proc`` of our own."""
    _call("unshare", CLONE_NEWNS)
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    devices = {name: os.open(f"/dev/{name}", os.O_PATH) for name in DEVICES}
    _mount("tmpfs", "/dev", "tmpfs", MS_NOSUID, "size=1m,mode=755")
    for name, descriptor in devices.items():
        Path("/dev", name).touch()
        _mount(f"/proc/self/fd/{descriptor}", f"/dev/{name}", None, MS_BIND)
        os.close(descriptor)
    Path("/dev/shm").mkdir()
    Path("/dev/fd").symlink_to("/proc/self/fd")
    if Path("/run").is_dir():
        _mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    _set_attributes("/", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV, 0)
    for name in DEVICES:
        _set_attributes(f"/dev/{name}", 0, MOUNT_ATTR_NODEV)
    _mount("tmpfs", scratch, "tmpfs", MS_NOSUID | MS_NODEV, f"size={size_mb}m,mode=700")
    _mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)


def seal_kernel_settings() -> None:
    """Read-only ``/proc``, but for the folders of processes: root's files there are root's, in a
    namespace too."""
    for place in Path("/proc").iterdir():
        mode = place.lstat().st_mode
        is_kernels = not place.name.isdecimal() and not stat.S_ISLNK(mode)
        if is_kernels and (stat.S_ISDIR(mode) or mode & 0o222):
            _mount(str(place), str(place), None, MS_BIND | MS_REC)
            _set_attributes(str(place), MOUNT_ATTR_RDONLY, 0)


def open_scratch(folder: str, size_mb: int) -> None:
    """A file system in memory over ``folder`` and ``/dev/shm``, for this process and its children
    only: gone with them."""
    _unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWIPC)
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    for place in (folder, "/dev/shm"):
        if Path(place).is_dir():
            _mount("tmpfs", place, "tmpfs", MS_NOSUID | MS_NODEV, f"size={size_mb}m,mode=700")


def drop_privileges() -> None:
    """No capability in any namespace, none to be gained by ``exec``, and no look into our memory
    by others of the same user."""
    _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _call("capset", struct.pack("Ii", CAPABILITY_VERSION_3, 0), bytes(24))
    _call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)


def cap_process_ids(processes: int) -> None:
    """Bound the number of processes in our namespace, where the kernel can (Linux 6.14)."""
    try:
        Path("/proc/sys/kernel/pid_max").write_text(str(MIN_PID_MAX + processes))
    except OSError:
        return


def set_limits(
    timeout_s: float, memory_mb: int, file_mb: int, processes: int, own_count: bool
) -> None:
    """Limits of each process from here on. The address space may grow by ``memory_mb``. The limit
    of processes counts all of a user, so it is set only in a namespace that counts its own; root
    is exempt from it."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    address_space = pages * resource.getpagesize() + memory_mb * 2**20
    cpu_s = math.ceil(timeout_s) + 1
    wanted = {
        resource.RLIMIT_AS: address_space,
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_FSIZE: file_mb * 2**20,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 256,
    }
    if own_count:
        wanted[resource.RLIMIT_NPROC] = processes
    for kind, value in wanted.items():
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def descendants(pid: int) -> Iterator[int]:
    """Process ids of all living descendants, parents first."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found = children.read_text().split()
        except OSError:  # that thread has ended meanwhile
            continue
        for child in map(int, found):
            yield child
            yield from descendants(child)


def resident_bytes(pid: int) -> int:
    """Memory that a process holds; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


def end_descendants() -> bool:
    """Kill every descendant and wait for its end; False if one is still there after five seconds.

    The first process of a namespace reaches all others with one call, which no fork outruns.
    """
    deadline = time.monotonic() + END_ALL_S
    while time.monotonic() < deadline:
        if os.getpid() == 1:
            _kill(-1)
        else:
            for pid in list(descendants(os.getpid())):
                _kill(pid)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return True
        time.sleep(0.001)
    return False


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _unshare(flags: int) -> None:
    user, group = os.geteuid(), os.getegid()
    _call("prctl", PR_SET_DUMPABLE, 1, 0, 0, 0)  # else the files below are not ours to write
    _call("unshare", flags)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user or NOBODY} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group or NOBODY} {group} 1")


def _set_attributes(place: str, add: int, clear: int) -> None:
    """Of the mount at a place and of all below it."""
    attributes = struct.pack("4Q", add, clear, 0, 0)
    size = ctypes.c_size_t(len(attributes))
    path = place.encode()
    _call("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, path, AT_RECURSIVE, attributes, size)


def _mount(
    source: str | None, target: str, kind: str | None, flags: int, data: str | None = None
) -> None:
    words = [None if word is None else word.encode() for word in (source, target, kind, data)]
    _call("mount", words[0], words[1], words[2], ctypes.c_ulong(flags), words[3])


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


def probe() -> int:
    """Exit status 0 if this kernel grants us everything above."""
    try:
        leave_system(network=False)
        if (child := os.fork()) == 0:
            try:
                seal_files("/tmp", 1)
                seal_kernel_settings()
                drop_privileges()
                open_scratch("/tmp", 1)
                os._exit(0)
            finally:
                os._exit(1)
        return 1 if os.waitpid(child, 0)[1] else 0
    except OSError:
        return 1


if __name__ == "__main__":
    sys.exit(probe())
