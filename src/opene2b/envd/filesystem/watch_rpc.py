"""Watching in JSON: as a stream, and by polling.

Source: E2B envd contract, WatchDir, CreateWatcher, GetWatcherEvents, RemoveWatcher.
"""

import asyncio
import math
import secrets
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Protocol

import msgspec

from opene2b.connect import codec
from opene2b.connect.codec import Message
from opene2b.connect.http import Request
from opene2b.connect.server import Context, MethodSpec, server_stream, unary
from opene2b.core.errors import DeadlineExceeded, LimitExceeded, NotFound
from opene2b.envd import keepalive
from opene2b.envd.filesystem.controller import Controller
from opene2b.envd.filesystem.faults import checked, printable
from opene2b.envd.filesystem.owners import Owner
from opene2b.envd.filesystem.watching import Change, Watch, Watching

WATCHERS_LIMIT = 256
"""That are polled, at once: nobody may ever come back for one."""
STARTED = b'{"start":{}}'
KEEPALIVE = b'{"keepalive":{}}'


class WatchRequest(Message):
    """WatchDirRequest and CreateWatcherRequest."""

    path: str = ""
    recursive: bool = False
    include_entry: bool = False
    allow_network_mounts: bool = False


class WatcherRequest(Message):
    watcher_id: str = ""


class State(Protocol):
    @property
    def controller(self) -> Controller: ...

    def place(self, request: Request, path: str) -> tuple[str, Owner]: ...


class WatchService:
    def __init__(self, state: State) -> None:
        self.state = state
        self.watching = Watching()
        self.watchers: dict[str, tuple[Watch, bool]] = {}
        """Id -> (a watch that is polled, whether its events have entries)."""

    def methods(self) -> Mapping[str, MethodSpec]:
        return {
            "filesystem.Filesystem/WatchDir": server_stream(self.watch_dir),
            "filesystem.Filesystem/CreateWatcher": unary(self.create_watcher),
            "filesystem.Filesystem/GetWatcherEvents": unary(self.get_watcher_events),
            "filesystem.Filesystem/RemoveWatcher": unary(self.remove_watcher),
        }

    async def begin(self, message: WatchRequest, context: Context) -> Watch:
        path, _ = self.state.place(context.request, checked(message.path))
        return await self.watching.watch(
            path,
            recursive=message.recursive,
            allow_network_mounts=message.allow_network_mounts,
        )

    async def watch_dir(self, raw: bytes, context: Context) -> AsyncGenerator[bytes, None]:
        message = codec.decode(raw, WatchRequest)
        watch = await self.begin(message, context)
        interval_s = keepalive.interval(context.request)
        clock = asyncio.get_running_loop().time
        until = math.inf if context.timeout_s is None else clock() + context.timeout_s
        try:
            yield STARTED
            while True:
                for event in await self.events(watch, watch.take(), message.include_entry):
                    yield msgspec.json.encode({"filesystem": event})
                left_s = until - clock()
                if left_s <= 0:
                    raise DeadlineExceeded("the time to watch is over")
                try:
                    async with asyncio.timeout(min(interval_s, left_s)):
                        await watch.arrived.wait()
                except TimeoutError:
                    if left_s > interval_s:
                        yield KEEPALIVE
        finally:
            self.watching.forget(watch)

    async def create_watcher(self, raw: bytes, context: Context) -> bytes:
        message = codec.decode(raw, WatchRequest)
        if len(self.watchers) >= WATCHERS_LIMIT:
            raise LimitExceeded(f"there are {WATCHERS_LIMIT} watchers already: remove some")
        watch = await self.begin(message, context)
        watcher_id = "w" + secrets.token_hex(8)
        self.watchers[watcher_id] = (watch, message.include_entry)
        return msgspec.json.encode({"watcherId": watcher_id})

    async def get_watcher_events(self, raw: bytes, context: Context) -> bytes:
        watch, include_entry = self.find(codec.decode(raw, WatcherRequest).watcher_id)
        events = await self.events(watch, watch.take(), include_entry)
        return msgspec.json.encode({"events": events})

    async def remove_watcher(self, raw: bytes, context: Context) -> bytes:
        watcher_id = codec.decode(raw, WatcherRequest).watcher_id
        watch, _ = self.find(watcher_id)
        del self.watchers[watcher_id]
        self.watching.forget(watch)
        return b"{}"

    def find(self, watcher_id: str) -> tuple[Watch, bool]:
        found = self.watchers.get(watcher_id)
        if found is None:
            raise NotFound(f"watcher '{watcher_id[:100]}' not found")
        return found

    async def events(
        self, watch: Watch, changes: list[tuple[str, Change]], include_entry: bool
    ) -> list[dict[str, Any]]:
        entries: dict[str, dict[str, Any]] = {}
        if include_entry and changes:
            # As they are now; what has gone since has none.
            paths = {path for path, _ in changes}
            entries = await self.state.controller.entries_below(watch.root, paths)
        return [
            {
                "name": printable(path),
                "type": change.value,
                **({"entry": entries[path]} if path in entries else {}),
            }
            for path, change in changes
        ]
