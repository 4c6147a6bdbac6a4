"""Processes that are not our children: told apart by id and start time, ended through pidfds."""

import errno
import os
import signal
from pathlib import Path

from opene2b.linux import syscalls


def start_time(pid: int) -> int | None:
    """Clock ticks since boot at which a process was started; None: there is none.

    With the id it names a process for ever: ids are used again, moments are not.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(b") ")[2].split()
    # A zombie has ended; only its parent has not looked yet.
    if fields[0] in {b"Z", b"X"}:
        return None
    return int(fields[19])


def open_process(pid: int, started: int) -> int | None:
    """A pidfd of the process that had this id and start time; None when it has ended. Caller closes."""
    try:
        fd = os.pidfd_open(pid)
    except OSError as exc:
        if exc.errno in {errno.ESRCH, errno.EINVAL}:
            return None
        raise
    if start_time(pid) != started:
        os.close(fd)
        return None
    return fd


def kill(pidfd: int, number: int = signal.SIGKILL) -> None:
    """Signal a process; a no-op when it has ended."""
    try:
        syscalls.pidfd_send_signal(pidfd, number)
    except OSError as exc:
        if exc.errno != errno.ESRCH:
            raise
