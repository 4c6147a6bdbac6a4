"""Removing a tree that a guest filled: any depth, any modes, any names, while nobody works in it any more.

Directories are first moved up to the top, one by one, and emptied there. So the number of open
descriptors and the length of paths stay the same at any depth, and no recursion can overflow. Links are
removed, never followed.
"""

import contextlib
import errno
import os
from itertools import count
from pathlib import Path

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove(path: Path) -> None:
    """Remove a directory and all below it; a no-op when it is not there. Blocking."""
    try:
        empty(path)
    except FileNotFoundError:
        return
    os.rmdir(path)


def empty(path: Path) -> None:
    """Remove all that a directory holds. Raises FileNotFoundError when it is not there. Blocking."""
    top = open_directory(str(path), None)
    try:
        numbers = count()
        while True:
            names = sweep(top, top, numbers)
            if not names:
                return
            for name in names:
                remove_directory(top, name, numbers)
    finally:
        os.close(top)


def remove_directory(top: int, name: str, numbers: "count[int]") -> None:
    """Move the directories in `name` to the top, remove its files, then itself."""
    fd = open_directory(name, top)
    try:
        sweep(fd, top, numbers)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=top)


def sweep(fd: int, top: int, numbers: "count[int]") -> list[str]:
    """Remove the files of an open directory and move its directories to the top.

    Returns: names of the directories when it is the top itself, which keeps its own.
    """
    kept: list[str] = []
    while True:
        progress = False
        # Removing while reading may skip entries: read again until there is nothing to do.
        with os.scandir(fd) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    unlink(entry.name, fd)
                    progress = True
                elif fd == top:
                    kept.append(entry.name)
                else:
                    lift(entry.name, fd, top, numbers)
                    progress = True
        if not progress:
            return kept
        kept.clear()


def lift(name: str, fd: int, top: int, numbers: "count[int]") -> None:
    for number in numbers:
        target = f"{number:x}"
        try:
            rename(name, target, fd, top)
        except OSError as exc:
            # A directory or file of the guest's own has this name.
            if exc.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
                continue
            raise
        return


def rename(name: str, target: str, fd: int, top: int) -> None:
    try:
        os.rename(name, target, src_dir_fd=fd, dst_dir_fd=top)
    except PermissionError:
        # Without root, moving a directory needs the right to write in it (its `..` changes).
        allow(name, fd)
        os.rename(name, target, src_dir_fd=fd, dst_dir_fd=top)


def unlink(name: str, fd: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=fd)


def open_directory(name: str, dir_fd: int | None) -> int:
    """The caller closes it. Modes that shut out its owner are opened up first."""
    try:
        fd = os.open(name, DIRECTORY, dir_fd=dir_fd)
    except PermissionError:
        allow(name, dir_fd)
        fd = os.open(name, DIRECTORY, dir_fd=dir_fd)
    if os.fstat(fd).st_mode & 0o700 != 0o700:
        os.fchmod(fd, 0o700)
    return fd


def allow(name: str, dir_fd: int | None) -> None:
    path_only = os.open(
        name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd
    )
    try:
        # fchmod refuses such a descriptor; its name in /proc leads to the same directory.
        os.chmod(f"/proc/self/fd/{path_only}", 0o700)
    finally:
        os.close(path_only)
