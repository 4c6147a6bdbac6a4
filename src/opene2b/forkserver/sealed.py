"""Programs in sealed memory.

An OCI runtime must not be started from its file: a container that gets hold of the starting process could write to
it through /proc. So runtimes copy themselves into sealed memory and start once more from there, at every start of a
container. A copy that is made once and sealed by us is what they check for, and spares that.
"""

import fcntl
import os

SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
Version = tuple[int, int, int, int]


class SealedPrograms:
    def __init__(self) -> None:
        self.copies: dict[str, tuple[Version, int]] = {}
        """Path -> (what the file was, descriptor of its copy)."""

    def get(self, path: str) -> int:
        """A descriptor to start the program by; a file that was replaced is copied again."""
        info = os.stat(path)
        version = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)
        known = self.copies.get(path)
        if known is not None:
            if known[0] == version:
                return known[1]
            os.close(known[1])
        copy = sealed(path)
        self.copies[path] = (version, copy)
        return copy


def sealed(path: str) -> int:
    copy = os.memfd_create(os.path.basename(path), os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(path, "rb") as source:
            while os.sendfile(copy, source.fileno(), None, 1 << 24):
                pass
        fcntl.fcntl(copy, fcntl.F_ADD_SEALS, SEALS)
    except BaseException:
        os.close(copy)
        raise
    return copy
