"""Another identity for one thread alone.

The C library's `setuid` changes all threads of a process; the system calls change the one that makes them. A thread that
took the identity of a user for good can start programs by `vfork`, which copies nothing, where a change of identity
between `fork` and `exec` needs a copy of the page tables: ten times slower for a process with a large interpreter in it.
Source: credentials(7), setresuid(2) ("C library/kernel differences"), prctl(2).
"""

import ctypes
import platform
import struct
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from opene2b.linux import syscalls

T = TypeVar("T")

ON_ARM = platform.machine() == "aarch64"
SYS_SETGROUPS = 159 if ON_ARM else 116
SYS_SETRESUID = 147 if ON_ARM else 117
SYS_SETRESGID = 149 if ON_ARM else 119
M_ARENA_MAX = -8


def become(uid: int, gid: int, groups: Sequence[int]) -> None:
    """Take this identity, for the calling thread, for good; capabilities go with uid 0. The thread must end soon.

    Memory of the process stays closed to the user (not dumpable), but while the thread lives the user can end the process.
    """
    call = syscalls.LIBC.syscall
    ids = struct.pack(f"={len(groups)}I", *groups)
    syscalls.check(call(SYS_SETGROUPS, ctypes.c_size_t(len(groups)), ids), "setgroups")
    number = ctypes.c_uint(gid)
    syscalls.check(call(SYS_SETRESGID, number, number, number), "setresgid")
    number = ctypes.c_uint(uid)
    syscalls.check(call(SYS_SETRESUID, number, number, number), "setresuid")
    # A change of identity sets this to what the machine's fs.suid_dumpable says.
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)


def share_one_arena() -> None:
    """Have glibc give short-lived threads no heaps of their own, which stay when the threads have gone."""
    if hasattr(syscalls.LIBC, "mallopt"):
        syscalls.LIBC.mallopt(M_ARENA_MAX, 1)


def run_as(uid: int, gid: int, groups: Sequence[int], work: Callable[[], T]) -> T:
    """Do `work` in a thread with that identity, and wait for it; what it raises is raised here."""
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            become(uid, gid, groups)
            results.append(work())
        except BaseException as exc:
            failures.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]
