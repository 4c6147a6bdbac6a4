"""Watching directories: one inotify instance for all watches of an envd.

The kernel gives one number per directory, however many watches look at it, so a number leads to all of them. While
directories are being added, nothing is read: an event whose number nobody knows yet waits in the kernel.
Source: E2B envd contract, FilesystemEvent.
"""

import asyncio
import errno
import os
from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from opene2b.core.errors import Internal, InvalidArgument, LimitExceeded, ServiceError
from opene2b.envd.filesystem.faults import printable, translate
from opene2b.envd.filesystem.incoming import PART_OF_EXISTING, PART_PREFIX
from opene2b.linux import filesystems
from opene2b.linux import inotify as kernel
from opene2b.linux.inotify import Event, Inotify

MASK = (
    kernel.IN_MODIFY
    | kernel.IN_ATTRIB
    | kernel.IN_MOVED_FROM
    | kernel.IN_MOVED_TO
    | kernel.IN_CREATE
    | kernel.IN_DELETE
    | kernel.IN_DELETE_SELF
    | kernel.IN_MOVE_SELF
    | kernel.IN_ONLYDIR
)
EVENTS_LIMIT = 16384
"""Changes that a watch may be behind in telling; as many as the kernel keeps."""


class Change(Enum):
    """Names of the wire."""

    CREATE = "EVENT_TYPE_CREATE"
    WRITE = "EVENT_TYPE_WRITE"
    REMOVE = "EVENT_TYPE_REMOVE"
    RENAME = "EVENT_TYPE_RENAME"
    CHMOD = "EVENT_TYPE_CHMOD"


CHANGES = (
    (kernel.IN_CREATE, Change.CREATE),
    (kernel.IN_MOVED_TO, Change.CREATE),
    (kernel.IN_MODIFY, Change.WRITE),
    (kernel.IN_DELETE, Change.REMOVE),
    (kernel.IN_MOVED_FROM, Change.RENAME),
    (kernel.IN_ATTRIB, Change.CHMOD),
)
SELF_CHANGES = (
    (kernel.IN_DELETE_SELF, Change.REMOVE),
    (kernel.IN_MOVE_SELF, Change.RENAME),
    (kernel.IN_ATTRIB, Change.CHMOD),
)


@dataclass(eq=False, slots=True)
class Watch:
    """One who looks at a directory."""

    root: str
    recursive: bool
    directories: dict[int, str] = field(default_factory=dict)
    """Number -> path below the root, "" for the root itself."""
    events: deque[tuple[str, Change]] = field(default_factory=deque)
    """(path below the root, what happened)."""
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    fault: ServiceError | None = None
    """Why no more can be told."""
    found: set[str] = field(default_factory=set)
    """Told of as created when their directory was found; the kernel may tell of them once more."""

    def tell(self, path: str, change: Change) -> None:
        if len(self.events) >= EVENTS_LIMIT:
            self.fail(LimitExceeded(f"more than {EVENTS_LIMIT} changes were not fetched"))
            return
        # A program that writes a line at a time need not be told of each.
        if change is Change.WRITE and self.events and self.events[-1] == (path, change):
            return
        self.events.append((path, change))
        self.arrived.set()

    def fail(self, fault: ServiceError) -> None:
        self.fault = self.fault or fault
        self.arrived.set()

    def take(self) -> list[tuple[str, Change]]:
        """Everything that was not taken yet. Raises the fault, once all before it is taken."""
        taken = list(self.events)
        self.events.clear()
        self.arrived.clear()
        if not taken and self.fault is not None:
            raise self.fault
        if self.fault is not None:
            self.arrived.set()
        return taken


class Watching:
    """All watches. On the event loop; made in the process that uses it."""

    def __init__(self) -> None:
        self.inotify: Inotify | None = None
        self.watchers: dict[int, set[Watch]] = {}
        """Number -> who looks at this directory."""
        self.adding = asyncio.Lock()
        """Held while directories are added: only one may stop the reading."""
        self.tasks: set[asyncio.Task[None]] = set()
        self.unpaired: dict[int, bool] = {}
        """Cookie of an upload that is taking its name -> whether there was a file of that name."""

    async def watch(self, path: str, *, recursive: bool, allow_network_mounts: bool) -> Watch:
        """
        Raises:
            PathNotFound, InvalidArgument: no directory, or one on a network that was not allowed.
            LimitExceeded: the kernel watches as much as it may.
        """
        watch = Watch(path, recursive)
        try:
            if not allow_network_mounts and await asyncio.to_thread(filesystems.is_network, path):
                raise InvalidArgument(
                    f"cannot watch '{printable(path)}': it is on a network file system, which does not tell of"
                    " changes by others (allow_network_mounts watches it all the same)"
                )
            await self.add(watch, "", tell=False)
        except OSError as exc:
            self.forget(watch)
            raise refusal(exc, path) from exc
        return watch

    async def add(self, watch: Watch, below: str, *, tell: bool) -> None:
        """Look at a directory, and at all below it for a recursive watch.

        Args:
            tell: Tell of what is there already: it came before we could look.
        """
        async with self.adding:
            if self.inotify is None:
                self.inotify = Inotify()
            loop = asyncio.get_running_loop()
            loop.remove_reader(self.inotify.fd)
            try:
                numbers, there = await asyncio.to_thread(scan, self.inotify, watch, below)
            finally:
                loop.add_reader(self.inotify.fd, self.read)
            if watch.fault is not None:
                for number in numbers:
                    self.leave(watch, number)
                return
            for number, path in numbers.items():
                watch.directories[number] = path
                self.watchers.setdefault(number, set()).add(watch)
            if tell:
                for path in there:
                    watch.found.add(path)
                    watch.tell(path, Change.CREATE)

    def read(self) -> None:
        if self.inotify is None:
            return
        events = self.inotify.read()
        for event in events:
            if event.mask & kernel.IN_Q_OVERFLOW:
                for watch in {one for many in self.watchers.values() for one in many}:
                    watch.fail(Internal("too many changes at once: some were lost"))
                continue
            for watch in list(self.watchers.get(event.watch, ())):
                self.handle(watch, event)
            if event.mask & kernel.IN_IGNORED:
                for watch in self.watchers.pop(event.watch, set()):
                    watch.directories.pop(event.watch, None)
        if len(events) == 0 or not self.tasks:
            for watch in {one for many in self.watchers.values() for one in many}:
                watch.found.clear()

    def handle(self, watch: Watch, event: Event) -> None:
        directory = watch.directories.get(event.watch)
        if directory is None:
            return
        if not event.name:
            # Of a directory below, the one above it tells.
            if directory == "":
                for bit, change in SELF_CHANGES:
                    if event.mask & bit:
                        watch.tell(".", change)
            return
        path = os.path.join(directory, event.name)
        if self.is_part(watch, event, path):
            return
        is_known = path in watch.found
        if event.mask & (kernel.IN_CREATE | kernel.IN_DELETE | kernel.IN_MOVED_FROM):
            watch.found.discard(path)
        if event.mask & kernel.IN_CREATE and is_known:
            # Told when it was found, and looked at since.
            return
        for bit, change in CHANGES:
            if event.mask & bit:
                watch.tell(path, change)
        if event.mask & kernel.IN_ISDIR and watch.recursive:
            if event.mask & kernel.IN_MOVED_FROM:
                self.forget_below(watch, path)
            if event.mask & (kernel.IN_CREATE | kernel.IN_MOVED_TO):
                self.spawn(watch, path)

    def is_part(self, watch: Watch, event: Event, path: str) -> bool:
        """Uploads are written beside their place: only their taking it is told, as what it is to others."""
        if event.name.startswith(PART_PREFIX):
            if event.mask & kernel.IN_MOVED_FROM:
                self.unpaired[event.cookie] = event.name.startswith(PART_OF_EXISTING)
            return True
        if not event.mask & kernel.IN_MOVED_TO or event.cookie not in self.unpaired:
            return False
        if not self.unpaired[event.cookie]:
            watch.tell(path, Change.CREATE)
        if not event.mask & kernel.IN_ISDIR:
            watch.tell(path, Change.WRITE)
        elif watch.recursive:
            self.spawn(watch, path)
        if len(self.unpaired) > 64:
            # Each rename is told at once; older halves are of directories that only one side of was watched.
            self.unpaired = {event.cookie: self.unpaired[event.cookie]}
        return True

    def spawn(self, watch: Watch, path: str) -> None:
        """Look at a directory that has just come."""

        async def add() -> None:
            try:
                await self.add(watch, path, tell=True)
            except (FileNotFoundError, NotADirectoryError):
                # It has gone again, which is told by itself.
                return
            except OSError as exc:
                watch.fail(refusal(exc, os.path.join(watch.root, path)))

        task = asyncio.create_task(add())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def forget_below(self, watch: Watch, path: str) -> None:
        for number, place in list(watch.directories.items()):
            if place == path or place.startswith(path + "/"):
                del watch.directories[number]
                self.leave(watch, number)

    def forget(self, watch: Watch) -> None:
        """Nobody looks any more."""
        watch.fail(Internal("the watch has ended"))
        for number in list(watch.directories):
            self.leave(watch, number)
        watch.directories.clear()

    def leave(self, watch: Watch, number: int) -> None:
        watchers = self.watchers.get(number, set())
        watchers.discard(watch)
        if not watchers and self.inotify is not None:
            self.watchers.pop(number, None)
            self.inotify.remove(number)


def scan(inotify: Inotify, watch: Watch, below: str) -> tuple[dict[int, str], list[str]]:
    """In a thread: (number -> directory, everything that is there), paths below the watch's root.

    Each directory is watched before it is read: what comes meanwhile is in one of both.
    """
    numbers: dict[int, str] = {}
    there: list[str] = []
    pending = [below]
    while pending:
        directory = pending.pop()
        absolute = os.path.join(watch.root, directory) if directory else watch.root
        try:
            numbers[inotify.add(absolute, MASK)] = directory
            if not watch.recursive:
                continue
            with os.scandir(absolute) as names:
                for entry in names:
                    path = os.path.join(directory, entry.name)
                    if entry.name.startswith(PART_PREFIX):
                        continue
                    there.append(path)
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(path)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            # Below the first, directories come and go, and some are closed.
            if directory == below:
                raise
    return numbers, there


def refusal(exc: OSError, path: str) -> ServiceError:
    if exc.errno in {errno.ENOSPC, errno.EMFILE}:
        return LimitExceeded(
            f"cannot watch '{printable(path)}': the kernel's limit of watched directories is reached"
        )
    return translate(exc, "watch", path)
