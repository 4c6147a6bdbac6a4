"""Names of unix sockets in the file system: who may connect, and what a dead agent left."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from opene2b.core.errors import InvalidArgument

PATH_LIMIT = 107
"""Bytes of a unix socket's path. Source: unix(7), sun_path."""


@contextlib.contextmanager
def place(path: Path, gid: int | None) -> Iterator[None]:
    """Bind the socket within the block: then only root and one group may connect.

    Call it holding the agent's lock: a socket found there is a dead agent's, and is replaced.

    Args:
        gid: None: the own user only.
    """
    if len(os.fsencode(path)) > PATH_LIMIT:
        raise InvalidArgument(
            f"{path} is too long for a unix socket: choose a shorter OPENE2B_HOME"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    # Nobody else may connect in the moment between the bind and the change of group.
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)
    if gid is not None:
        os.chown(path, -1, gid)
        path.chmod(0o660)


def remove(path: Path) -> None:
    path.unlink(missing_ok=True)
