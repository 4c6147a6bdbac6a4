"""Making and removing directories without following a symlink that appears meanwhile.

Everything below the first directory is done relative to open directories, never by path.
"""

import errno
import os
import secrets
from contextlib import suppress

from opene2b.envd.filesystem.owners import Owner, give

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_DIRECTORY_MODE = 0o755
# Open directories at once while removing. Deeper ones are first moved to the top, so that no
# depth of nesting can exhaust the descriptors.
_MAX_OPEN = 64


def open_directory(path: str, owner: Owner) -> int:
    """Open a directory, creating what is missing of it (mode 0755, owned by `owner`).

    Returns:
        Its descriptor; the caller closes it.
    Raises:
        OSError: NotADirectoryError if something else is in the way.
    """
    missing: list[str] = []
    existing = path
    while True:
        try:
            fd = os.open(existing, _OPEN_DIRECTORY)
            break
        except FileNotFoundError:
            parent, name = os.path.split(existing)
            if parent == existing or os.path.islink(existing):
                raise  # a symlink that leads nowhere: making directories behind it would surprise
            missing.append(name)
            existing = parent
    try:
        for name in reversed(missing):
            below = _make(fd, name, owner)
            os.close(fd)
            fd = below
    except BaseException:
        os.close(fd)
        raise
    return fd


def _make(parent: int, name: str, owner: Owner) -> int:
    try:
        os.mkdir(name, _DIRECTORY_MODE, dir_fd=parent)
    except FileExistsError:  # made by somebody else meanwhile, and theirs
        return os.open(name, _OPEN_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    fd = os.open(name, _OPEN_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    try:
        os.fchmod(fd, _DIRECTORY_MODE)
        give(fd, owner)
    except BaseException:
        os.close(fd)
        with suppress(OSError):
            os.rmdir(name, dir_fd=parent)
        raise
    return fd


def remove(path: str) -> None:
    """Remove a path and all below it; a missing path is none. Symlinks are removed, not followed.

    Raises:
        OSError: something could not be removed; the rest may be gone.
    """
    parent, name = os.path.split(path)
    try:
        fd = os.open(parent, _OPEN_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        remove_at(fd, name)
    finally:
        os.close(fd)


def _unlinked(parent: int, name: str) -> bool:
    """Whether the name is gone now; False means that it is a directory."""
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return True
    except OSError as exc:
        if exc.errno in (errno.EISDIR, errno.EPERM):
            with suppress(FileNotFoundError):
                if (
                    os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode & 0o170000
                ) != 0o040000:
                    raise
            return False
        raise
    return True


def remove_at(parent: int, name: str) -> None:
    """As `remove`, for a name of an open directory."""
    if _unlinked(parent, name):
        return
    try:
        top = os.open(name, _OPEN_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    except FileNotFoundError:
        return
    stack = [(top, name)]  # each an open directory and its name in the one before
    try:
        while stack:
            fd, own_name = stack[-1]
            below = _clear_files(fd)
            if below is None:
                above = stack[-2][0] if len(stack) > 1 else parent
                os.close(fd)
                stack.pop()
                with suppress(FileNotFoundError):
                    _rmdir(above, own_name)
            elif len(stack) >= _MAX_OPEN:
                os.rename(below, secrets.token_hex(16), src_dir_fd=fd, dst_dir_fd=top)
            else:
                with suppress(FileNotFoundError):
                    opened = os.open(below, _OPEN_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
                    stack.append((opened, below))
    finally:
        for fd, _ in stack:
            os.close(fd)


def _rmdir(parent: int, name: str) -> None:
    try:
        os.rmdir(name, dir_fd=parent)
    except OSError as exc:
        # Somebody else put a file into it meanwhile: look at it again, from the outside.
        if exc.errno != errno.ENOTEMPTY:
            raise
        raise OSError(errno.EBUSY, "being written to while it is removed", name) from exc


def _clear_files(fd: int) -> str | None:
    """Unlink what is not a directory; the name of the first directory met, or None."""
    while True:
        changed = False
        with os.scandir(fd) as found:
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    return entry.name
                if not _unlinked(fd, entry.name):
                    return entry.name
                changed = True
        # Some file systems skip names when others are removed while reading.
        if not changed:
            return None
