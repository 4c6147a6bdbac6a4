"""Unpack the layers of an OCI image over each other into one tree.

A layer is a tar archive made by a stranger, read by root. The standard library only parses it; what
each member may do is decided here, and every path is resolved by the kernel inside the tree (see
`rooted`), so neither `..` nor a symbolic link leads out. Source: OCI image spec 1.1, layer.md.
"""

import contextlib
import errno
import os
import posixpath
import stat
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO

from opene2b.core.errors import InvalidArgument, OutOfSpace
from opene2b.linux.rooted import Root, remove_at

WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
RESERVED = ".wh..wh."
"""Bookkeeping of an old storage driver (aufs): never part of a tree."""
DEPTH_LIMIT = 256
ID_LIMIT = 65536
"""A sandbox has ids 0 to 65535."""
NOBODY = 65534
COPY_BYTES = 1 << 20
XATTR_PREFIX = "SCHILY.xattr."
XATTR_LIMIT_BYTES = 64 << 10
HEADER_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of all layers of one image together."""

    size_bytes: int = 32 << 30
    members: int = 4_000_000


class Cancelled(Exception):
    """The one who asked has gone; unpacking stopped between two members."""


class Member(tarfile.TarInfo):
    """A header that may not be larger than any real one: tarfile reads them whole into memory."""

    EXTENDED = (
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    )

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in self.EXTENDED and self.size > HEADER_LIMIT_BYTES:
            raise InvalidArgument("a layer has a header of more than 1 MiB")
        return super()._proc_member(archive)  # type: ignore[misc, no-any-return]


@dataclass(slots=True)
class Unpacker:
    """Applies layers to one tree, lowest first. Blocking; one thread at a time."""

    root: Root
    limits: Limits = field(default_factory=Limits)
    is_cancelled: Callable[[], bool] = bool
    size_bytes: int = 0
    """Bytes of file contents written so far."""
    members: int = 0
    devices: int = 0
    """Device nodes left out: a sandbox gets its /dev from the runtime."""
    _made: set[str] = field(default_factory=set)
    """What this layer has brought: its own whiteouts do not touch that."""
    _holding: set[str] = field(default_factory=set)
    """Directories above what is in `_made`."""
    _times: dict[str, int] = field(default_factory=dict)
    """Of directories, set last: writing into them would change them again."""

    def apply(self, stream: IO[bytes]) -> None:
        """Apply one layer, an uncompressed tar; reads the stream to the end of the archive.

        Raises:
            InvalidArgument: the archive is damaged, or wants something that is not allowed.
            OutOfSpace: the disk or the limit is full.
        """
        self._made.clear()
        self._holding.clear()
        self._times.clear()
        name = "?"
        try:
            with tarfile.open(
                fileobj=stream,
                mode="r|",
                tarinfo=Member,
                errors="surrogateescape",
                encoding="utf-8",
            ) as archive:
                for member in archive:
                    name = member.name
                    self._count(member)
                    self._apply(archive, member)
                    # TarFile keeps every member it has seen, for random access that is not wanted.
                    archive.members = []  # type: ignore[attr-defined]
            self._set_times()
        except tarfile.TarError as exc:
            raise InvalidArgument(f"a layer is damaged near {name!r}: {exc}") from exc
        except RecursionError as exc:
            raise InvalidArgument(f"a layer nests directories too deeply near {name!r}") from exc
        except OSError as exc:
            if exc.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise OutOfSpace("no space left while unpacking the image") from exc
            raise InvalidArgument(
                f"a layer cannot be unpacked at {name!r}: {exc.strerror}"
            ) from exc

    def _count(self, member: tarfile.TarInfo) -> None:
        if self.is_cancelled():
            raise Cancelled
        self.members += 1
        if member.isreg():
            self.size_bytes += member.size
        if self.members > self.limits.members or self.size_bytes > self.limits.size_bytes:
            raise OutOfSpace(
                f"the image is larger than allowed: {self.limits.size_bytes >> 30} GiB and"
                f" {self.limits.members} files"
            )

    def _apply(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        path = clean(member.name)
        if path == "":
            if member.isdir():
                self._describe(os.dup(self.root.fd), member)
            return
        name = posixpath.basename(path)
        if name.startswith(WHITEOUT):
            self._whiteout(posixpath.dirname(path), name)
            return
        if member.ischr() or member.isblk():
            self.devices += 1
            return
        with self.root.parent(path, create=True) as (directory, leaf):
            self._clear_way(directory, leaf, member)
            if member.isdir():
                with contextlib.suppress(FileExistsError):
                    os.mkdir(leaf, 0o700, dir_fd=directory)
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                self._describe(os.open(leaf, flags, dir_fd=directory), member)
                self._times[path] = seconds(member)
            elif member.isreg():
                self._file(archive, member, directory, leaf)
            elif member.issym():
                os.symlink(member.linkname, leaf, dir_fd=directory)
                os.chown(leaf, *owner(member), dir_fd=directory, follow_symlinks=False)
                when = (seconds(member), seconds(member))
                os.utime(leaf, when, dir_fd=directory, follow_symlinks=False)
            elif member.islnk():
                self._link(member, directory, leaf)
            elif member.isfifo():
                os.mkfifo(leaf, 0o600, dir_fd=directory)
                os.chown(leaf, *owner(member), dir_fd=directory, follow_symlinks=False)
                os.chmod(leaf, member.mode & 0o7777, dir_fd=directory)
            else:
                raise InvalidArgument(f"a layer has a member of unknown kind: {member.name!r}")
        self._made.add(path)
        while (path := posixpath.dirname(path)) and path not in self._holding:
            self._holding.add(path)

    def _clear_way(self, directory: int, leaf: str, member: tarfile.TarInfo) -> None:
        """Remove what a lower layer had under this name; a directory over a directory joins it."""
        try:
            info = os.stat(leaf, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not (member.isdir() and stat.S_ISDIR(info.st_mode)):
            remove_at(directory, leaf)

    def _file(
        self, archive: tarfile.TarFile, member: tarfile.TarInfo, directory: int, leaf: str
    ) -> None:
        source = archive.extractfile(member)
        if source is None:
            raise InvalidArgument(f"a layer has a file without contents: {member.name!r}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(leaf, flags, 0o600, dir_fd=directory)
        try:
            while chunk := source.read(COPY_BYTES):
                if self.is_cancelled():
                    raise Cancelled
                rest = memoryview(chunk)
                while rest:
                    rest = rest[os.write(fd, rest) :]
        except BaseException:
            os.close(fd)
            raise
        self._describe(fd, member)

    def _link(self, member: tarfile.TarInfo, directory: int, leaf: str) -> None:
        target = clean(member.linkname)
        if target == "":
            raise InvalidArgument(f"a layer links {member.name!r} to the root directory")
        try:
            with self.root.parent(target) as (other, name):
                os.link(name, leaf, src_dir_fd=other, dst_dir_fd=directory, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise InvalidArgument(
                f"a layer links {member.name!r} to {member.linkname!r}, which is not there"
            ) from exc

    def _describe(self, fd: int, member: tarfile.TarInfo) -> None:
        """Owner, mode, attributes and time of an open file, which is closed."""
        try:
            os.fchown(fd, *owner(member))
            # After the owner: changing that takes setuid and capabilities away.
            os.fchmod(fd, member.mode & 0o7777)
            for key, value in member.pax_headers.items():
                if key.startswith(XATTR_PREFIX):
                    set_attribute(fd, key[len(XATTR_PREFIX) :], value)
            os.utime(fd, (seconds(member), seconds(member)))
        finally:
            os.close(fd)

    def _whiteout(self, parent: str, name: str) -> None:
        try:
            directory = self.root.directory(parent)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            if name == OPAQUE:
                self._remove_lower(directory, parent)
                return
            hidden = name[len(WHITEOUT) :]
            if name.startswith(RESERVED):
                return
            if hidden in {"", ".", ".."}:
                raise InvalidArgument(f"a layer has a whiteout of nothing in {parent!r}")
            if posixpath.join(parent, hidden) not in self._made:
                with contextlib.suppress(FileNotFoundError):
                    remove_at(directory, hidden)
        finally:
            os.close(directory)

    def _remove_lower(self, directory: int, path: str) -> None:
        """Empty a directory of everything that this layer has not brought itself."""
        for name in os.listdir(directory):
            child = posixpath.join(path, name)
            if child not in self._made and child not in self._holding:
                remove_at(directory, name)
            elif stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                fd = os.open(name, flags, dir_fd=directory)
                try:
                    self._remove_lower(fd, child)
                finally:
                    os.close(fd)

    def _set_times(self) -> None:
        for path, when in self._times.items():
            # The directory may have been hidden or replaced by a later member.
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                fd = self.root.directory(path)
                try:
                    os.utime(fd, (when, when))
                finally:
                    os.close(fd)


def clean(name: str) -> str:
    """The path within the tree, without `.` and slashes at its ends; empty: the root itself.

    Raises InvalidArgument for `..`, which no honest tool writes.
    """
    parts = [part for part in name.split("/") if part not in {"", "."}]
    if ".." in parts or "\0" in name:
        raise InvalidArgument(f"a layer wants to leave its tree: {name!r}")
    if len(parts) > DEPTH_LIMIT:
        raise InvalidArgument(f"a layer nests directories more than {DEPTH_LIMIT} deep")
    return "/".join(parts)


def owner(member: tarfile.TarInfo) -> tuple[int, int]:
    """Ids as the sandbox sees them; those that no sandbox has become `nobody`."""
    uid, gid = (id_ if 0 <= id_ < ID_LIMIT else NOBODY for id_ in (member.uid, member.gid))
    return uid, gid


def seconds(member: tarfile.TarInfo) -> int:
    """Time of change, within what every file system can store."""
    return max(0, min(int(member.mtime), 2**32 - 1))


def set_attribute(fd: int, name: str, value: str) -> None:
    # Others are for the host alone: `trusted.overlay.*` would let an image steer our overlays, and
    # labels of the host's security module mean nothing elsewhere.
    if not (name == "security.capability" or name.startswith("user.")):
        return
    data = value.encode("utf-8", "surrogateescape")
    if len(data) > XATTR_LIMIT_BYTES:
        raise InvalidArgument(f"a layer has an attribute {name!r} of more than 64 KiB")
    try:
        os.setxattr(fd, name, data)
    except OSError as exc:
        if exc.errno != errno.ENOTSUP:
            raise
