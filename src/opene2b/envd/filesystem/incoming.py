"""Receiving whole files: nothing is seen under the final name until everything has arrived.

A file is written to a hidden sibling, named `PART_PREFIX` and random letters, which then takes the
final name. Watchers can tell such files by the prefix and report the renaming as a write.
"""

import asyncio
import errno
import os
import secrets
import stat as modes
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Self

from opene2b.core.errors import InvalidArgument, ServiceError
from opene2b.envd.filesystem import metadata, tree
from opene2b.envd.filesystem.faults import checked, printable, translate
from opene2b.envd.filesystem.owners import Owner, give

PART_PREFIX = ".e2b-part-"
PART_OF_EXISTING = PART_PREFIX + "old-"
"""Of a file that takes the place of another."""
_NEW_FILE_MODE = 0o644  # 0666 less the usual umask of 022, whatever envd's own umask is
_COPY_BYTES = 1 << 20


class IncomingFile:
    """One file on its way: `write` as it arrives, then `seal` and `commit`; `discard` undoes.

    Missing parents are created at once and stay if the file is discarded.

    Raises:
        InvalidArgument: the path is a directory, a device, or otherwise no place for a file.
        OutOfSpace: the disk is full.
    """

    def __init__(self, path: str, *, owner: Owner, metadata: Mapping[str, str]) -> None:
        self.path = checked(path)
        self.metadata = dict(metadata)
        self._owner = owner
        # What is written through a symlink changes what it leads to; the link stays.
        target = os.path.realpath(path) if os.path.islink(path) else path
        parent, self._name = os.path.split(target)
        if not self._name:
            raise InvalidArgument("path is a directory: '/'")
        try:
            self._directory = tree.open_directory(parent, owner)
        except OSError as exc:
            raise translate(exc, "write", path) from exc
        self._fd = -1
        self._part: str | None = None
        try:
            self._existing = self._look()
            self._open_part()
        except OSError as exc:
            self.discard()
            raise translate(exc, "write", path) from exc
        except ServiceError:
            self.discard()
            raise

    def _look(self) -> os.stat_result | None:
        try:
            status = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if modes.S_ISDIR(status.st_mode):
            raise InvalidArgument(f"path is a directory: '{printable(self.path)}'")
        if not modes.S_ISREG(status.st_mode):
            raise InvalidArgument(f"path is not a regular file: '{printable(self.path)}'")
        return status

    def _open_part(self) -> None:
        prefix = PART_PREFIX if self._existing is None else PART_OF_EXISTING
        part = prefix + secrets.token_hex(8)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(part, flags, 0o600, dir_fd=self._directory)
        self._part = part

    @property
    def identity(self) -> tuple[int, int, str]:
        """Equal for two files that would end under the same name of the same directory."""
        status = os.fstat(self._directory)
        return status.st_dev, status.st_ino, self._name

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Append; returns when the kernel has all of it."""
        rest = memoryview(chunk)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as exc:
            raise translate(exc, "write", self.path) from exc

    def seal(self) -> None:
        """Everything is written: set metadata, owner and mode, and close the file.

        Raises:
            Unsupported: there is metadata, and the file system cannot keep any.
            PermissionDenied: envd may not give files to this owner.
        """
        existing = self._existing
        try:
            metadata.write(self._fd, self.metadata)
            # wire: who writes a file owns it from then on; its mode stays
            give(self._fd, self._owner)
            if existing is None:
                os.fchmod(self._fd, _NEW_FILE_MODE)
            else:
                os.fchmod(self._fd, modes.S_IMODE(existing.st_mode) & 0o777)
        except OSError as exc:
            raise translate(exc, "write", self.path) from exc
        os.close(self._fd)
        self._fd = -1

    async def commit(self) -> None:
        """Give the sealed file its name."""
        try:
            await self._take_name()
        except OSError as exc:
            raise translate(exc, "write", self.path) from exc
        self.discard()

    async def _take_name(self) -> None:
        assert self._part is not None
        if self._existing is None or self._existing.st_nlink == 1:
            try:
                os.rename(
                    self._part, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory
                )
            except OSError as exc:
                # A file that is a mount of its own, such as /etc/hosts, keeps its inode.
                if self._existing is None or exc.errno != errno.EBUSY:
                    raise
            else:
                self._part = None
                return
        # A file with several names is changed under all of them, as writing into it would do.
        await self._overwrite()

    async def _overwrite(self) -> None:
        assert self._part is not None
        reading = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        writing = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        with ExitStack() as stack:
            source = os.open(self._part, reading, dir_fd=self._directory)
            stack.callback(os.close, source)
            into = os.open(self._name, writing, dir_fd=self._directory)
            stack.callback(os.close, into)
            os.ftruncate(into, 0)
            while chunk := os.read(source, _COPY_BYTES):
                rest = memoryview(chunk)
                while rest:
                    rest = rest[os.write(into, rest) :]
                await asyncio.sleep(0)  # let other requests have their turn
            metadata.write(into, self.metadata)

    def discard(self) -> None:
        """Remove what has not been committed and close everything. May be called again."""
        if self._part is not None:
            with suppress(FileNotFoundError):
                os.unlink(self._part, dir_fd=self._directory)
            self._part = None
        for fd in (self._fd, self._directory):
            if fd >= 0:
                os.close(fd)
        self._fd = self._directory = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.discard()
