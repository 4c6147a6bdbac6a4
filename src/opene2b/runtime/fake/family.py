"""A process and what it started, told from /proc: as near to "a sandbox's processes" as one gets without a cgroup."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opene2b.linux import processes


def end(handle: Mapping[str, Any], number: int = signal.SIGKILL) -> None:
    """Signal the process and all that it started; a no-op when it has ended.

    Args: handle: `pid` and `started` of the first one, which leads a session.
    """
    leader = handle["pid"]
    fd = processes.open_process(leader, handle["started"])
    if fd is None:
        # Its session may have outlived it; nobody else can have its number while it has members.
        signal_all(members(leader), number)
        return
    try:
        if number == signal.SIGKILL:
            # Stopped, it cannot start more while we look.
            processes.kill(fd, signal.SIGSTOP)
        signal_all(members(leader), number)
        processes.kill(fd, number)
    finally:
        os.close(fd)


def is_stopped(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except FileNotFoundError:
        return False
    return stat.rpartition(b") ")[2].startswith(b"T")


def signal_all(pids: set[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def members(leader: int) -> set[int]:
    """Processes in the leader's session or below it, without the leader."""
    children: dict[int, list[int]] = {}
    found: set[int] = set()
    for path in Path("/proc").iterdir():
        if not path.name.isdigit():
            continue
        try:
            fields = (path / "stat").read_bytes().rpartition(b") ")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parent, session = int(fields[1]), int(fields[3])
        children.setdefault(parent, []).append(int(path.name))
        if session == leader:
            found.add(int(path.name))
    unseen = [leader, *found]
    while unseen:
        for child in children.get(unseen.pop(), ()):
            if child not in found:
                found.add(child)
                unseen.append(child)
    found.discard(leader)
    return found


async def ended(pid: int, started: int) -> None:
    """Return when this process has ended; at once if it has. Cancelling leaves it alone."""
    fd = processes.open_process(pid, started)
    if fd is not None:
        loop = asyncio.get_running_loop()
        over = asyncio.Event()
        loop.add_reader(fd, over.set)
        try:
            await over.wait()
        finally:
            loop.remove_reader(fd)
            os.close(fd)
    reap(pid)


def reap(pid: int) -> None:
    """It is our child unless the agent was restarted since; then its exit must not stay unread."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
