"""Control groups of version 1, 2 and the hybrid of both: where they are mounted, how to join and empty them."""

import errno
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from opene2b.linux import syscalls

ROOT = Path("/sys/fs/cgroup")


class Layout(StrEnum):
    V1 = "v1"
    HYBRID = "hybrid"
    """Version 1 controllers, and a version 2 tree beside them."""
    V2 = "v2"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hierarchies:
    layout: Layout
    mounts: Mapping[str, Path] = field(default_factory=dict)
    """Controller list as /proc/self/cgroup names it (`cpu,cpuacct`, `name=systemd`, `` for v2) -> mount point."""


def discover(mountinfo: Path = Path("/proc/self/mountinfo")) -> Hierarchies:
    mounts: dict[str, Path] = {}
    for line in mountinfo.read_text().splitlines():
        left, _, right = line.partition(" - ")
        point = Path(left.split()[4])
        kind, _, options = right.split(maxsplit=2)
        if not point.is_relative_to(ROOT):
            continue
        if kind == "cgroup2":
            mounts[""] = point
        elif kind == "cgroup":
            flags = {"rw", "ro", "xattr", "none", "clone_children", "noprefix", "release_agent"}
            names = [name for name in options.split(",") if name.split("=")[0] not in flags]
            for name in names:
                mounts[name] = point
    version_1 = any(name for name in mounts)
    if not mounts:
        layout = Layout.NONE
    elif "" in mounts and version_1:
        layout = Layout.HYBRID
    else:
        layout = Layout.V1 if version_1 else Layout.V2
    return Hierarchies(layout=layout, mounts=mounts)


def of_process(pid: int, hierarchies: Hierarchies) -> Iterator[Path]:
    """The directories of the groups that a process is in, the root groups left out."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if path == "/":
            continue
        for name in names.split(","):
            if name in hierarchies.mounts:
                yield hierarchies.mounts[name] / path.lstrip("/")
                break


def named(path: str, hierarchies: Hierarchies) -> Iterator[Path]:
    """The directories that a group of this path has, in every hierarchy that has it."""
    for mount in dict.fromkeys(hierarchies.mounts.values()):
        directory = mount / path.lstrip("/")
        if directory.is_dir():
            yield directory


def join(directory: Path) -> None:
    """Move the calling process."""
    (directory / "cgroup.procs").write_text(str(os.getpid()))


def freeze(directories: Iterable[Path], *, limit_s: float = 10.0) -> bool:
    """Stop every process of a group, and of the groups below it, where it stands; returns once all are.

    Args:
        directories: Of one group, in every hierarchy; one of them has the freezer.
    Returns: False where no hierarchy has one.
    Raises: TimeoutError when a process cannot be stopped in time; then all go on.
    """
    for directory in directories:
        old, new = directory / "freezer.state", directory / "cgroup.freeze"
        until = time.monotonic() + limit_s
        if old.exists():
            while True:
                # Asked again and again: in version 1 one that was in the middle of a system call is passed over.
                old.write_text("FROZEN")
                if old.read_text().strip() == "FROZEN":
                    return True
                if time.monotonic() > until:
                    old.write_text("THAWED")
                    raise TimeoutError(f"{directory.name}: a process could not be frozen")
                time.sleep(0.001)
        if new.exists():
            new.write_text("1")
            while "frozen 1" not in (directory / "cgroup.events").read_text():
                if time.monotonic() > until:
                    new.write_text("0")
                    raise TimeoutError(f"{directory.name}: a process could not be frozen")
                time.sleep(0.001)
            return True
    return False


def thaw(directories: Iterable[Path]) -> None:
    """Let them go on; a no-op for those that are not frozen."""
    for directory in directories:
        for name, value in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
            if (directory / name).exists():
                (directory / name).write_text(value)


def is_frozen(directories: Iterable[Path]) -> bool:
    for directory in directories:
        old, new = directory / "freezer.state", directory / "cgroup.freeze"
        if old.exists():
            return old.read_text().strip() != "THAWED"
        if new.exists():
            return new.read_text().strip() == "1"
    return False


def reclaim(directories: Iterable[Path]) -> None:
    """Ask the kernel to take back what memory it can (version 2, kernel >= 5.19): files' pages, and others to swap."""
    for directory in directories:
        control = directory / "memory.reclaim"
        if control.exists():
            try:
                control.write_text((directory / "memory.current").read_text().strip())
            except OSError as exc:
                # It got less than was asked for: the ordinary outcome.
                if exc.errno != errno.EAGAIN:
                    raise


def remove(directory: Path, *, limit_s: float = 2.0) -> None:
    """Remove an emptied group with what a guest made below it; waits for the kernel to let go of it.

    Raises OSError EBUSY when processes remain in it.
    """
    until = time.monotonic() + limit_s
    while True:
        try:
            for below, _, _ in os.walk(directory, topdown=False):
                os.rmdir(below)
            return
        except FileNotFoundError:
            return
        except OSError as exc:
            # A group stays busy for a moment after its last process was reaped.
            if exc.errno != errno.EBUSY or time.monotonic() > until:
                raise
            time.sleep(0.002)


def favor_changes(hierarchies: Hierarchies, *, on: bool) -> bool:
    """Make moving processes between groups quick, at the cost of a little time for each fork and exit.

    Without it the first move after a pause waits for an RCU grace period, about 10 ms here: half of a
    sandbox's start. The kernel keeps one switch, reached through the version 2 tree (kernel >= 6.0).

    Returns whether that was a change. A kernel or layout without the switch is left as it is.
    """
    tree = hierarchies.mounts.get("")
    if tree is None:
        return False
    options = super_options(tree)
    if ("favordynmods" in options) == on:
        return False
    wanted = [name for name in options if name not in {"rw", "ro", "favordynmods"}]
    if on:
        wanted.append("favordynmods")
    try:
        # The system call, not mount(8): that one keeps options which are not named.
        syscalls.mount("none", str(tree), None, syscalls.MS_REMOUNT, ",".join(wanted))
    except OSError as exc:
        if exc.errno == errno.EINVAL:
            return False
        raise
    return True


def super_options(mount_point: Path, mountinfo: Path = Path("/proc/self/mountinfo")) -> list[str]:
    """Options of the filesystem mounted last at a path, as the kernel lists them."""
    found: list[str] = []
    for line in mountinfo.read_text().splitlines():
        left, _, right = line.partition(" - ")
        if Path(left.split()[4]) == mount_point:
            found = right.split(maxsplit=2)[2].split(",")
    return found
