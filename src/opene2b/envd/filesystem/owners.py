"""Numbers to names, from the guest's own passwd and group files.

The C library's NSS is never asked: it could load modules of the guest into envd.
"""

import os
from dataclasses import dataclass

_MAX_FILE_BYTES = 4 << 20  # a hostile guest may write a passwd of any size


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The user and group that get what a request creates."""

    uid: int
    gid: int


class Names:
    """`name:x:number:...` of one file, read again when the file changes."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._version: tuple[int, int, int] | None = None
        self._names: dict[int, str] = {}

    def name(self, number: int) -> str:
        """The first name with this number, or the number itself."""
        self._refresh()
        return self._names.get(number, str(number))

    def _refresh(self) -> None:
        try:
            # O_NONBLOCK: a FIFO in its place must not stop envd.
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError:
            self._version, self._names = None, {}
            return
        try:
            stat = os.fstat(fd)
            version = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            if version != self._version:
                self._names = _parse(os.read(fd, _MAX_FILE_BYTES))
                self._version = version
        except OSError:
            self._version, self._names = None, {}
        finally:
            os.close(fd)


class OwnerNames:
    """Names of users and of groups, as the guest's files have them."""

    def __init__(self, *, users: str = "/etc/passwd", groups: str = "/etc/group") -> None:
        self.users = Names(users)
        self.groups = Names(groups)


def _parse(content: bytes) -> dict[int, str]:
    names: dict[int, str] = {}
    for line in content.split(b"\n"):
        fields = line.split(b":")
        if len(fields) > 2 and fields[0] and fields[2].isdigit() and len(fields[2]) <= 10:
            names.setdefault(int(fields[2]), fields[0].decode("utf-8", "replace"))
    return names


def give(fd: int, owner: Owner) -> None:
    """Make `owner` the owner of an open file; no call at all if it is already.

    Raises:
        PermissionError: envd is not root and the owner is somebody else.
    """
    stat = os.fstat(fd)
    if (stat.st_uid, stat.st_gid) != (owner.uid, owner.gid):
        os.fchown(fd, owner.uid, owner.gid)
