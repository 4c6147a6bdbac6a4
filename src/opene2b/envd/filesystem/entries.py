"""EntryInfo: what the Filesystem service tells about one name.

Source: E2B envd contract, filesystem.proto `EntryInfo`, `FileType`.
"""

import os
import stat as modes
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any

from opene2b.envd.filesystem import metadata
from opene2b.envd.filesystem.faults import printable
from opene2b.envd.filesystem.owners import OwnerNames


class FileType(IntEnum):
    """Numbers and names of the wire."""

    FILE_TYPE_UNSPECIFIED = 0
    """Devices, FIFOs, sockets."""
    FILE_TYPE_FILE = 1
    FILE_TYPE_DIRECTORY = 2
    FILE_TYPE_SYMLINK = 3
    """A symlink that leads nowhere; any other has the type of its target."""


def mode_string(mode: int) -> str:
    """Permissions as Go prints them: one letter for each special bit, `-` if none, then rwx."""
    letters = ""
    if modes.S_ISDIR(mode):
        letters += "d"
    elif modes.S_ISLNK(mode):
        letters += "L"
    elif modes.S_ISBLK(mode) or modes.S_ISCHR(mode):
        letters += "D"
    elif modes.S_ISFIFO(mode):
        letters += "p"
    elif modes.S_ISSOCK(mode):
        letters += "S"
    if mode & modes.S_ISUID:
        letters += "u"
    if mode & modes.S_ISGID:
        letters += "g"
    if modes.S_ISCHR(mode):
        letters += "c"
    if mode & modes.S_ISVTX:
        letters += "t"
    bits = "".join(
        letter if mode & (0o400 >> place) else "-" for place, letter in enumerate("rwxrwxrwx")
    )
    return (letters or "-") + bits


def file_type(mode: int) -> FileType:
    """The type of something that is not a symlink."""
    if modes.S_ISREG(mode):
        return FileType.FILE_TYPE_FILE
    if modes.S_ISDIR(mode):
        return FileType.FILE_TYPE_DIRECTORY
    return FileType.FILE_TYPE_UNSPECIFIED


def timestamp(mtime_ns: int) -> str:
    """RFC 3339 in UTC with nanoseconds; clamped to the years 1-9999 a Timestamp can hold."""
    seconds, nanos = divmod(mtime_ns, 1_000_000_000)
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        moment, nanos = datetime(1 if seconds < 0 else 9999, 1, 1, tzinfo=UTC), 0
    text = (
        f"{moment.year:04}-{moment.month:02}-{moment.day:02}"
        f"T{moment.hour:02}:{moment.minute:02}:{moment.second:02}"
    )
    return f"{text}.{nanos:09}Z" if nanos else f"{text}Z"


def describe(path: str, names: OwnerNames) -> dict[str, Any]:
    """The EntryInfo of an absolute path, as its proto3 JSON object.

    Size, mode and owner are the link's own; only `type` looks at what a link leads to.

    Raises:
        OSError: the path cannot be looked at, FileNotFoundError among others.
    """
    status = os.lstat(path)
    is_symlink = modes.S_ISLNK(status.st_mode)
    kind = file_type(status.st_mode)
    if is_symlink:
        try:
            kind = file_type(os.stat(path).st_mode)
        except OSError:
            kind = FileType.FILE_TYPE_SYMLINK
    entry: dict[str, Any] = {
        "name": printable(os.path.basename(path) or "/"),
        "type": kind.name,
        "path": printable(path),
        "size": str(status.st_size),  # an int64 is a string in proto3 JSON
        "mode": modes.S_IMODE(status.st_mode) & 0o777,
        "permissions": mode_string(status.st_mode),
        "owner": names.users.name(status.st_uid),
        "group": names.groups.name(status.st_gid),
        "modifiedTime": timestamp(status.st_mtime_ns),
    }
    if is_symlink:
        entry["isSymlink"] = True
        entry["symlinkTarget"] = printable(os.path.realpath(path))
    if kind in (FileType.FILE_TYPE_FILE, FileType.FILE_TYPE_DIRECTORY) and (
        found := metadata.read(path)
    ):
        entry["metadata"] = found
    return entry
