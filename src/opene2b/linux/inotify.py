"""inotify: what happens in directories. Source: man 7 inotify."""

import ctypes
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from opene2b.linux.syscalls import LIBC

IN_MODIFY = 0x2
IN_ATTRIB = 0x4
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000
IN_ONLYDIR = 0x01000000
IN_ISDIR = 0x40000000

HEAD = struct.Struct("iIII")
READ_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Event:
    watch: int
    """Number that `add` gave; -1 for an overflow."""
    mask: int
    cookie: int
    """The same for the two halves of a rename."""
    name: str
    """In the directory; empty for the directory itself. Bytes that are not UTF-8 are surrogate escapes."""


class Inotify:
    """One instance. Not blocking."""

    def __init__(self) -> None:
        self.fd = checked(LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify_init1")

    def add(self, path: str, mask: int) -> int:
        """Watch an inode; the same inode has the same number, and takes the new mask."""
        raw = os.fsencode(path)
        return checked(LIBC.inotify_add_watch(self.fd, raw, ctypes.c_uint32(mask)), path)

    def remove(self, watch: int) -> None:
        """No error if the kernel removed it already."""
        LIBC.inotify_rm_watch(self.fd, watch)

    def read(self) -> list[Event]:
        """What has happened since; empty if nothing."""
        try:
            return list(parse(os.read(self.fd, READ_BYTES)))
        except BlockingIOError:
            return []

    def close(self) -> None:
        os.close(self.fd)


def parse(data: bytes) -> Iterator[Event]:
    offset = 0
    while offset + HEAD.size <= len(data):
        watch, mask, cookie, length = HEAD.unpack_from(data, offset)
        offset += HEAD.size
        name = data[offset : offset + length].rstrip(b"\0")
        offset += length
        yield Event(watch, mask, cookie, os.fsdecode(name))


def checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result
