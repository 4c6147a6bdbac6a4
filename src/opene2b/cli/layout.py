"""OPENE2B_HOME on disk: who may enter what, and who holds the home."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from opene2b.cli.unprivileged import CONTROL_PLANE
from opene2b.core.errors import Unsupported, WrongState
from opene2b.core.paths import Home


def need_root(what: str) -> None:
    if os.geteuid() != 0:
        raise Unsupported(f"{what} needs root: run it with sudo (`sudo -E opene2b ...`)")


def make(home: Home) -> None:
    """Create or mend the directories: each open to those who need it and to nobody else."""
    # Names of the two open directories are no secret; their contents are guarded by the modes of what is in them.
    directory(home.root, 0o711)
    directory(home.run, 0o711)
    directory(home.database.parent, 0o700, owner=CONTROL_PLANE.uid, group=CONTROL_PLANE.gid)
    for private in (home.node, home.images, home.layers, home.logs):
        directory(private, 0o700)


def directory(path: Path, mode: int, *, owner: int = 0, group: int = 0) -> None:
    path.mkdir(parents=True, exist_ok=True)
    # By descriptor and without following: the control plane owns one of them and could put a link in its place.
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchown(fd, owner, group)
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


@contextlib.contextmanager
def held(home: Home) -> Iterator[None]:
    """Hold the home, as `serve` does while it runs.

    Raises WrongState: another process holds it.
    """
    home.run.mkdir(parents=True, exist_ok=True)
    while True:
        fd = os.open(home.supervisor_pid, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(fd, 20).decode().strip()
            os.close(fd)
            raise WrongState(
                f"a server already runs with OPENE2B_HOME={home.root} (process {holder}):"
                " stop it first, or give this one another OPENE2B_HOME and other ports"
            ) from None
        # `down` may have removed the file between open and lock: then the lock is on a file that nobody sees.
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(fd).st_ino == home.supervisor_pid.stat().st_ino:
                break
        os.close(fd)
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
        with contextlib.suppress(OSError):
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def is_held(home: Home) -> bool:
    """Whether a server runs with this home."""
    try:
        fd = os.open(home.supervisor_pid, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def sandbox_count(home: Home) -> int:
    """Sandboxes that the node agent has on record."""
    try:
        return sum(1 for entry in os.scandir(home.node / "sandboxes") if entry.is_dir())
    except FileNotFoundError:
        return 0
