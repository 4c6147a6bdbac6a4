"""One agent per home: a lock that the kernel drops when its holder dies."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from opene2b.core.errors import WrongState


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock; the file tells the process id of its holder.

    Raises WrongState: another agent is alive.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 20, 0).decode(errors="replace").strip()
            raise WrongState(
                f"another node agent is alive for {path.parent.parent} (process {holder}): stop it first"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        # The file stays: whoever removed it would let two agents lock two files of one name.
        yield
    finally:
        os.close(fd)
