"""Moving what cannot be renamed: between file systems, and directories of an overlay's lower layer.

A whole copy is made beside the destination, renamed into place, and only then the source removed.
Symlinks are copied as they are and never followed; hard links become files of their own.
"""

import os
import stat as modes
from contextlib import ExitStack, suppress

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SOURCE = os.O_RDONLY | os.O_NOCTTY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_COPY_BYTES = 1 << 20


def copy_at(source_dir: int, source: str, into_dir: int, into: str) -> None:
    """Copy one name of a directory, and all below it, to a new name of another directory.

    Mode, owner, times and extended attributes come along.

    Raises:
        OSError: something could not be copied; what has been copied is there.
        RecursionError: directories are nested deeper than about 900 levels.
    """
    status = os.stat(source, dir_fd=source_dir, follow_symlinks=False)
    if modes.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(source, dir_fd=source_dir), into, dir_fd=into_dir)
        os.chown(into, status.st_uid, status.st_gid, dir_fd=into_dir, follow_symlinks=False)
        return
    with ExitStack() as stack:
        if modes.S_ISDIR(status.st_mode):
            reading = os.open(source, _DIRECTORY, dir_fd=source_dir)
            stack.callback(os.close, reading)
            os.mkdir(into, 0o700, dir_fd=into_dir)
            writing = os.open(into, _DIRECTORY, dir_fd=into_dir)
            stack.callback(os.close, writing)
            for name in os.listdir(reading):
                copy_at(reading, name, writing, name)
        elif modes.S_ISREG(status.st_mode):
            reading = os.open(source, _SOURCE, dir_fd=source_dir)
            stack.callback(os.close, reading)
            writing = os.open(into, _NEW, 0o600, dir_fd=into_dir)
            stack.callback(os.close, writing)
            _copy_content(reading, writing)
        else:
            # Sockets too get a node of their own; nobody listens there, as after any move.
            os.mknod(into, status.st_mode & ~0o7777 | 0o600, status.st_rdev, dir_fd=into_dir)
            os.chown(into, status.st_uid, status.st_gid, dir_fd=into_dir, follow_symlinks=False)
            os.chmod(into, modes.S_IMODE(status.st_mode), dir_fd=into_dir)
            return
        _copy_attributes(reading, writing)
        # The owner first: changing it clears setuid, which the mode then sets again.
        if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(writing, status.st_uid, status.st_gid)
        os.fchmod(writing, modes.S_IMODE(status.st_mode))
        os.utime(writing, ns=(status.st_atime_ns, status.st_mtime_ns))


def _copy_content(reading: int, writing: int) -> None:
    while chunk := os.read(reading, _COPY_BYTES):
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(writing, rest) :]


def _copy_attributes(reading: int, writing: int) -> None:
    for name in os.listxattr(reading):
        # Attributes of the system, or of an overlay below us, cannot be set by everybody.
        with suppress(OSError):
            os.setxattr(writing, name, os.getxattr(reading, name))
