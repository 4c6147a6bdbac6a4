"""The calls of the Filesystem service, without any transport.

Paths are absolute here. Each call does its work in a thread: a slow disk or a directory with a
million names holds up nobody else. Threads are started only after the fork.
"""

import asyncio
import concurrent.futures.thread  # noqa: F401 - asyncio would import it at the first call
import errno
import heapq
import os
import secrets
import stat as modes
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from opene2b.core.errors import AlreadyExists, InvalidArgument, PathNotFound
from opene2b.envd.filesystem import copying, entries, tree
from opene2b.envd.filesystem.faults import checked, printable, translate
from opene2b.envd.filesystem.incoming import PART_PREFIX
from opene2b.envd.filesystem.owners import Owner, OwnerNames

T = TypeVar("T")

# Names sorted in one go: a sort keeps the interpreter to itself until it is done.
_RUN = 8192
_WALKS = 2
"""At once: the other threads stay for calls that take no time."""


class Controller:
    """Carries out the calls; holds nothing but the names of users and groups."""

    def __init__(self, names: OwnerNames) -> None:
        self._names = names
        self._walks = asyncio.Semaphore(_WALKS)

    async def stat(self, path: str) -> dict[str, Any]:
        """The entry of a path.

        Raises:
            PathNotFound: there is no such path, or something on the way is no directory.
        """
        return await asyncio.to_thread(self._stat, checked(path))

    async def list_dir(
        self, path: str, *, depth: int, each: Callable[[dict[str, Any]], T]
    ) -> list[T]:
        """Everything below a directory down to `depth` levels, each directory before its content.

        Names of one directory come in the order of their bytes. Symlinks are not descended into,
        except for `path` itself. What vanishes while listing is left out.

        Args:
            depth: Levels, 1 for the directory's own names; 0 means 1.
            each: What is wanted of an entry; called in the thread, for there may be a million.
        Raises:
            PathNotFound: no such directory.
            InvalidArgument: it is not a directory.
        """
        stop = threading.Event()
        async with self._walks:
            try:
                return await asyncio.to_thread(
                    self._list_dir, checked(path), max(depth, 1), stop, each
                )
            finally:
                # Nobody waits for it any more: a thread cannot be cancelled.
                stop.set()

    async def entries_below(self, root: str, paths: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Path below the root ("." is the root itself) -> its entry, of those that are there."""

        def look() -> dict[str, dict[str, Any]]:
            found = {}
            for path in paths:
                try:
                    found[path] = entries.describe(
                        os.path.normpath(os.path.join(root, path)), self._names
                    )
                except OSError:
                    continue
            return found

        return await asyncio.to_thread(look)

    async def make_dir(self, path: str, *, owner: Owner) -> dict[str, Any]:
        """Create a directory and its missing parents.

        Raises:
            AlreadyExists: the directory is there already.
            InvalidArgument: something else is there.
        """
        return await asyncio.to_thread(self._make_dir, checked(path), owner)

    async def move(self, source: str, destination: str, *, owner: Owner) -> dict[str, Any]:
        """Rename, replacing a file at the destination; creates the destination's parents.

        Raises:
            PathNotFound: nothing at `source`.
        """
        return await asyncio.to_thread(self._move, checked(source), checked(destination), owner)

    async def remove(self, path: str) -> None:
        """Remove a path and all below it. A missing path is success."""
        await asyncio.to_thread(self._remove, checked(path))

    def _stat(self, path: str) -> dict[str, Any]:
        try:
            return entries.describe(path, self._names)
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.ENOTDIR):
                raise PathNotFound(f"path '{printable(path)}' not found") from exc
            raise translate(exc, "look at", path) from exc

    def _list_dir(
        self, path: str, depth: int, stop: threading.Event, each: Callable[[dict[str, Any]], T]
    ) -> list[T]:
        try:
            if not modes.S_ISDIR(os.stat(path).st_mode):
                raise InvalidArgument(f"path '{printable(path)}' is not a directory")
            found: list[T] = []
            for entry in self._walk(path, depth):
                if stop.is_set():
                    break
                found.append(each(entry))
            return found
        except OSError as exc:
            raise translate(exc, "list", path) from exc

    def _walk(self, top: str, depth: int) -> Iterator[dict[str, Any]]:
        # A stack of iterators, not recursion: directories may be nested deeper than Python calls.
        stack = [(top, _sorted_names(top))]
        while stack:
            directory, names = stack[-1]
            name = next(names, None)
            if name is None:
                stack.pop()
                continue
            path = os.path.join(directory, name)
            try:
                entry = entries.describe(path, self._names)
            except OSError:
                continue
            yield entry
            is_directory = entry["type"] == entries.FileType.FILE_TYPE_DIRECTORY.name
            if len(stack) < depth and is_directory and "isSymlink" not in entry:
                try:
                    stack.append((path, _sorted_names(path)))
                except OSError:
                    continue

    def _make_dir(self, path: str, owner: Owner) -> dict[str, Any]:
        try:
            if modes.S_ISDIR(os.stat(path).st_mode):
                raise AlreadyExists(f"directory '{printable(path)}' already exists")
            raise InvalidArgument(f"path '{printable(path)}' exists and is not a directory")
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as exc:
            raise translate(exc, "make directory", path) from exc
        if os.path.islink(path):
            raise InvalidArgument(f"path '{printable(path)}' is a symlink that leads nowhere")
        try:
            os.close(tree.open_directory(path, owner))
        except OSError as exc:
            raise translate(exc, "make directory", path) from exc
        return self._stat(path)

    def _move(self, source: str, destination: str, owner: Owner) -> dict[str, Any]:
        try:
            os.lstat(source)
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise PathNotFound(f"path '{printable(source)}' not found") from exc
        except OSError as exc:
            raise translate(exc, "move", source) from exc
        parent, name = os.path.split(destination)
        if not name:
            raise InvalidArgument("cannot move onto '/'")
        try:
            fd = tree.open_directory(parent, owner)
            try:
                _rename(source, name, fd)
            finally:
                os.close(fd)
        except OSError as exc:
            raise translate(exc, "move", source) from exc
        except RecursionError as exc:
            raise InvalidArgument(
                f"cannot move '{printable(source)}' to another file system: nested too deep"
            ) from exc
        return self._stat(destination)

    def _remove(self, path: str) -> None:
        if not path.strip("/"):
            raise InvalidArgument("cannot remove '/'")
        try:
            tree.remove(path)
        except OSError as exc:
            raise translate(exc, "remove", path) from exc


def _rename(source: str, name: str, directory: int) -> None:
    try:
        os.rename(source, name, dst_dir_fd=directory)
        return
    except OSError as exc:
        if exc.errno != errno.EXDEV:
            raise
    parent, own_name = os.path.split(source)
    part = PART_PREFIX + secrets.token_hex(8)
    from_directory = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            copying.copy_at(from_directory, own_name, directory, part)
            os.rename(part, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            tree.remove_at(directory, part)
            raise
        tree.remove_at(from_directory, own_name)
    finally:
        os.close(from_directory)


def _sorted_names(directory: str) -> Iterator[str]:
    runs: list[list[str]] = []
    run: list[str] = []
    with os.scandir(directory) as found:
        for entry in found:
            run.append(entry.name)
            if len(run) == _RUN:
                runs.append(_sorted(run))
                run = []
    runs.append(_sorted(run))
    return iter(runs[0]) if len(runs) == 1 else heapq.merge(*runs, key=os.fsencode)


def _sorted(names: Iterable[str]) -> list[str]:
    return sorted(names, key=os.fsencode)
