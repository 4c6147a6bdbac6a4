"""A directory tree treated as if it were the root of a file system.

Trees come from images that others made: a symbolic link `etc -> /../../etc` in one of them must
not let us write to the host. Every path here is resolved by the kernel inside the tree, with
openat2 and RESOLVE_IN_ROOT: absolute links and `..` stop at the tree's own root.
"""

import contextlib
import ctypes
import errno
import os
import posixpath
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
SYS_OPENAT2 = 437
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_IN_ROOT = 0x10
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
READ_LIMIT_BYTES = 4 << 20
"""Of passwd and its kind; an image may bring a file of any size."""
RETRIES = 32
"""The kernel answers EAGAIN when something was renamed on the way; nobody else works in our tree."""


def openat2(dir_fd: int, path: str, flags: int, mode: int = 0) -> int:
    """Open below `dir_fd` as if it were the root directory. The caller closes the descriptor."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    name = os.fsencode(path)
    number = 0
    for _ in range(RETRIES):
        fd = LIBC.syscall(
            ctypes.c_long(SYS_OPENAT2),
            ctypes.c_int(dir_fd),
            ctypes.c_char_p(name),
            ctypes.c_char_p(how),
            ctypes.c_size_t(len(how)),
        )
        if fd >= 0:
            return int(fd)
        number = ctypes.get_errno()
        if number not in {errno.EAGAIN, errno.EINTR}:
            break
    raise OSError(number, os.strerror(number), path)


class Root:
    """An open tree. Paths are relative to it or absolute within it."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, DIRECTORY)

    def close(self) -> None:
        os.close(self.fd)

    def __enter__(self) -> "Root":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def directory(self, path: str, *, create: bool = False) -> int:
        """Open a directory, following links within the tree. The caller closes the descriptor.

        Args:
            create: Make what is missing, owned by root, mode 0755.
        """
        try:
            return openat2(self.fd, path or ".", DIRECTORY)
        except FileNotFoundError:
            if not create:
                raise
        head, name = posixpath.split(path.rstrip("/"))
        if not name or name in {".", ".."}:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        parent = self.directory(head, create=True)
        try:
            # FileExistsError here is a dangling link: it stays an error of the image.
            os.mkdir(name, 0o755, dir_fd=parent)
            return os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
        finally:
            os.close(parent)

    @contextlib.contextmanager
    def parent(self, path: str, *, create: bool = False) -> Iterator[tuple[int, str]]:
        """The directory that holds `path`, and its last name, which is not followed."""
        head, name = posixpath.split(path.rstrip("/"))
        if not name or name in {".", ".."}:
            raise ValueError(f"{path!r} does not name an entry of a directory")
        fd = self.directory(head, create=create)
        try:
            yield fd, name
        finally:
            os.close(fd)

    def exists(self, path: str) -> bool:
        """Whether it is there after following links."""
        try:
            os.close(openat2(self.fd, path, os.O_PATH))
        except OSError as exc:
            if exc.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                return False
            raise
        return True

    def stat(self, path: str) -> os.stat_result:
        fd = openat2(self.fd, path, os.O_PATH)
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def read(self, path: str) -> str | None:
        """A small text file; None where there is none. Bytes that are not UTF-8 survive `write`."""
        try:
            fd = openat2(self.fd, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except FileNotFoundError:
            return None
        with open(fd, "rb") as file:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode) or info.st_size > READ_LIMIT_BYTES:
                raise OSError(errno.EINVAL, "not a regular file of reasonable size", path)
            return file.read(READ_LIMIT_BYTES).decode(errors="surrogateescape")

    def write(self, path: str, text: str, *, mode: int = 0o644) -> None:
        """Put a new file, owned by root, in the place of whatever had the name (a link included)."""
        with self.parent(path, create=True) as (directory, name):
            scratch = f".{name}.opene2b"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(scratch, dir_fd=directory)
            fd = os.open(
                scratch,
                os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
                0o600,
                dir_fd=directory,
            )
            with open(fd, "wb") as file:
                file.write(text.encode(errors="surrogateescape"))
                os.fchmod(fd, mode)
            os.rename(scratch, name, src_dir_fd=directory, dst_dir_fd=directory)

    def remove(self, path: str) -> None:
        """Remove a file or a whole tree; nothing there is fine. Links are removed, not followed."""
        try:
            with self.parent(path) as (directory, name):
                remove_at(directory, name)
        except FileNotFoundError:
            return

    def empty(self, path: str) -> None:
        """Remove what a directory holds and leave the directory."""
        try:
            fd = self.directory(path)
        except FileNotFoundError:
            return
        try:
            for name in os.listdir(fd):
                remove_at(fd, name)
        finally:
            os.close(fd)


def remove_at(directory: int, name: str) -> None:
    """Remove one entry of an open directory, with all below it, following no link."""
    info = os.stat(name, dir_fd=directory, follow_symlinks=False)
    if not stat.S_ISDIR(info.st_mode):
        os.unlink(name, dir_fd=directory)
        return
    fd = os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
    try:
        for child in os.listdir(fd):
            remove_at(fd, child)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=directory)
