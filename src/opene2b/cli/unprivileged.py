"""Giving up root for ever, and still reaching the interpreter.

The control plane and the proxy run as users that own nothing but what they write. A clone below /root, or an
interpreter in somebody's home, lies under directories that those users cannot enter. Making such a
directory readable would show the rest of it too, so in a mount namespace of the process alone it is covered by an
empty file system, into which only the needed trees are bound back, read-only.
"""

import os
import stat
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import opene2b
from opene2b.core.errors import Unsupported
from opene2b.linux import syscalls

MS_SLAVE = 1 << 19
MOST_LINKS = 40
"""As the kernel: a longer chain of symbolic links is a loop."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A user and a group without a name: ids of the range that Debian keeps for allocation on demand."""

    uid: int
    gid: int

    def may_enter(self, info: os.stat_result) -> bool:
        if info.st_uid == self.uid:
            return bool(info.st_mode & stat.S_IXUSR)
        if info.st_gid == self.gid:
            return bool(info.st_mode & stat.S_IXGRP)
        return bool(info.st_mode & stat.S_IXOTH)


CONTROL_PLANE = Identity(64230, 64230)
PROXY = Identity(64231, 64231)


@dataclass(slots=True)
class Way:
    """How a path is reached: where it really lies, and the symbolic links on the way."""

    real: Path
    links: dict[Path, str] = field(default_factory=dict)


def follow(path: Path) -> Way:
    """Like `realpath`, but remembers every link, because a link may lie in a directory that will be covered."""
    links: dict[Path, str] = {}
    real = Path("/")
    parts = list(path.absolute().parts[1:])
    while parts:
        part = parts.pop(0)
        if part == "..":
            real = real.parent
            continue
        step = real / part
        if not step.is_symlink():
            real = step
            continue
        target = os.readlink(step)
        links[step] = target
        if len(links) > MOST_LINKS:
            raise Unsupported(f"{path} leads through too many symbolic links")
        if target.startswith("/"):
            real = Path("/")
        parts = [name for name in target.split("/") if name not in {"", "."}] + parts
    return Way(real, links)


def interpreter() -> tuple[Path, ...]:
    """Everything that an exec of `sys.executable -m opene2b` reads outside the system's own directories."""
    return (
        Path(sys.executable).parent.parent,
        Path(sys.prefix),
        Path(sys.base_prefix),
        Path(sys.exec_prefix),
        Path(sys.base_exec_prefix),
        Path(opene2b.__file__).parent,
    )


def obstacle(path: Path, identity: Identity) -> Path | None:
    """The topmost directory above `path` (a real path) that the identity cannot enter."""
    for ancestor in reversed(path.parents):
        if not identity.may_enter(ancestor.stat()):
            return ancestor
    return None


def innermost_free(paths: Iterable[Path]) -> list[Path]:
    """Without those that lie below another one."""
    kept: list[Path] = []
    for path in sorted(set(paths), key=lambda path: (len(path.parts), path)):
        if not any(path.is_relative_to(other) for other in kept):
            kept.append(path)
    return kept


def uncover(identity: Identity, *, read_only: Sequence[Path], writable: Sequence[Path]) -> None:
    """In a new mount namespace, let the identity reach these trees and nothing else of what is in their way.

    Needs root and a single-threaded caller. Raises Unsupported when a tree itself is closed to the identity.
    """
    syscalls.unshare(syscalls.CLONE_NEWNS)
    # Slave, not private: what the host unmounts later must not stay alive in our copy.
    syscalls.mount("none", "/", None, MS_SLAVE | syscalls.MS_REC)
    ways = [follow(path) for path in (*read_only, Path(sys.executable), *writable)]
    links = {place: target for way in ways for place, target in way.links.items()}
    writable_real = {follow(path).real for path in writable}
    trees = innermost_free(way.real for way in ways if way.real.is_dir())
    covers: set[Path] = set()
    bound: dict[Path, int] = {}
    for tree in trees:
        if not identity.may_enter(tree.stat()):
            raise Unsupported(
                f"{tree} is closed to user {identity.uid}, which the server gives up root for:"
                f" run `chmod -R o+rX {tree}`"
            )
        blocked = obstacle(tree, identity)
        if blocked is not None:
            covers.add(blocked)
    for place in links:
        blocked = obstacle(place, identity)
        if blocked is not None:
            covers.add(blocked)
    covered = innermost_free(covers)
    for tree in trees:
        if any(tree.is_relative_to(cover) for cover in covered):
            bound[tree] = syscalls.open_tree(str(tree))
    for cover in covered:
        syscalls.mount(
            "opene2b", str(cover), "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=0755"
        )
    for tree, fd in bound.items():
        tree.mkdir(parents=True, exist_ok=True, mode=0o755)
        syscalls.move_mount(fd, str(tree))
        os.close(fd)
        flags = syscalls.MS_REMOUNT | syscalls.MS_BIND | syscalls.MS_NOSUID | syscalls.MS_NODEV
        if tree not in writable_real:
            flags |= syscalls.MS_RDONLY
        syscalls.mount("none", str(tree), None, flags)
    for place, target in links.items():
        if any(place.is_relative_to(cover) for cover in covered) and not place.is_symlink():
            place.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            place.symlink_to(target)
    for cover in covered:
        syscalls.mount(
            "none",
            str(cover),
            None,
            syscalls.MS_REMOUNT
            | syscalls.MS_BIND
            | syscalls.MS_RDONLY
            | syscalls.MS_NOSUID
            | syscalls.MS_NODEV,
        )


def become(identity: Identity) -> None:
    """Give up root for ever: no group, no capability, none to be had from a setuid program."""
    syscalls.drop_bounding(0, syscalls.last_capability())
    os.setgroups([])
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
    syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL)
    syscalls.set_capabilities(0)
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    os.umask(0o077)
