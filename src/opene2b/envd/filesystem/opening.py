"""Opening files of the guest's, who may have put anything under their names."""

import os
import stat as modes

from opene2b.core.errors import InvalidArgument, PathNotFound
from opene2b.envd.filesystem.faults import printable, translate


def open_regular(path: str) -> tuple[int, os.stat_result]:
    """Open to be read, without any effect that opening something else could have; the caller closes it.

    Raises:
        PathNotFound: there is none.
        InvalidArgument: a directory, a device, a FIFO or a socket.
        PermissionDenied, Internal: the kernel refuses.
    """
    try:
        # Looked at before it is opened: opening a device can already do something to it.
        require_regular(path, os.stat(path))
        # Non-blocking: a FIFO put there meanwhile has nobody at its other end.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise PathNotFound(f"path '{printable(path)}' does not exist") from exc
    except OSError as exc:
        raise translate(exc, "read", path) from exc
    try:
        status = os.fstat(fd)
        require_regular(path, status)
    except BaseException:
        os.close(fd)
        raise
    return fd, status


def require_regular(path: str, status: os.stat_result) -> None:
    if modes.S_ISDIR(status.st_mode):
        raise InvalidArgument(f"path '{printable(path)}' is a directory")
    if not modes.S_ISREG(status.st_mode):
        raise InvalidArgument(f"path '{printable(path)}' is not a regular file")
