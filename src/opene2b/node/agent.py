"""The agent: creates, ends, recovers and lists the sandboxes of one node. No transport.

For each sandbox there is one `Live` and one lock, so that the driver gets calls for one sandbox one at a time.
Creating and ending run in tasks of the agent's own: a caller who goes away changes nothing. What was
asked for is then in the list, and the control plane, comparing it with its records, keeps it or ends it.
"""

import asyncio
import logging
import os
import time
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from opene2b.core.errors import (
    AlreadyExists,
    DeadlineExceeded,
    ServiceError,
    WrongState,
)
from opene2b.core.ids import SandboxId
from opene2b.core.paths import Home
from opene2b.node import images
from opene2b.node.events import Events, Status
from opene2b.node.live import (
    ALIVE,
    STANDING,
    Live,
    cancel,
    describe,
    finish,
    keys,
    report,
    translated,
)
from opene2b.node.places import OWN_NETWORK, Places
from opene2b.node.table import Entry, Order, Phase, Table
from opene2b.node.trash import Trash
from opene2b.node.turns import Turns
from opene2b.runtime import protocol
from opene2b.runtime.protocol import EnvdConfig, NetworkPlace, Runtime, SandboxSpec

log = logging.getLogger(__name__)

START_LIMIT_S = 30.0
END_LIMIT_S = 30.0
CLOSE_LIMIT_S = 5.0
"""What a closing agent gives to creates and kills under way; the next agent undoes or finishes the rest."""
WATCH_RETRY_S = 1.0
TAKE_OVER_AT_ONCE = 16
"""Freeing a sandbox may start a process of the driver."""


class Agent:
    """`open`, then calls in any order and number, then `close`. All on one event loop."""

    def __init__(
        self,
        *,
        home: Home,
        runtime: Runtime,
        places: Places,
        start_limit_s: float = START_LIMIT_S,
        end_limit_s: float = END_LIMIT_S,
    ) -> None:
        """The runtime is opened before and closed after by whoever made it; the places by the agent."""
        self.home = home
        self.runtime = runtime
        self.places = places
        self.start_limit_s = start_limit_s
        self.end_limit_s = end_limit_s
        self.events = Events()
        self.table = Table(home.node / "sandboxes")
        self.trash = Trash(home.node / "trash")
        self.live: dict[SandboxId, Live] = {}
        self.is_closing = False
        self.turns = Turns(self)

    # -- before and after ---------------------------------------------------------------------

    async def open(self) -> None:
        """Take over what the last agent left: re-adopt what runs, undo what was half made."""
        self.table.open()
        self.trash.open()
        found = await asyncio.to_thread(self.table.load)
        at_once = asyncio.Semaphore(TAKE_OVER_AT_ONCE)

        async def bounded(sandbox_id: SandboxId, entry: Entry | None) -> None:
            async with at_once:
                await self.take_over(sandbox_id, entry)

        await asyncio.gather(*(bounded(*item) for item in found.items()))
        in_use = {
            live.entry.slot: Path(f"/proc/self/fd/{live.netns}")
            if live.netns is not None
            else OWN_NETWORK
            for live in self.live.values()
            if live.entry.slot is not None
        }
        offline = {
            live.entry.slot
            for live in self.live.values()
            if live.entry.slot is not None and not live.entry.order.allow_internet_access
        }
        await self.places.open(in_use, offline)
        for live in self.live.values():
            if live.entry.phase in ALIVE:
                self.watch(live)
        log.info("agent_open", extra={"sandboxes": len(self.live)})

    async def take_over(self, sandbox_id: SandboxId, entry: Entry | None) -> None:
        """Must not raise: one sandbox in a bad way may not keep the others from being served."""
        try:
            if entry is not None and entry.phase is Phase.STORED:
                await self.turns.take_stored(Live(entry))
                return
            if entry is None or entry.handle is None:
                await self.undo_start(sandbox_id)
                return
            live = Live(entry)
            if entry.phase in ALIVE and await self.adopt(live):
                self.live[sandbox_id] = live
                log.info("sandbox_adopted", extra=keys(live))
                return
            if entry.phase is Phase.STOPPING:
                # The pool is not open yet, and its first act makes every place anew that is not in use.
                live.entry = replace(entry, slot=None)
                await self.free(live)
                return
            if entry.phase is Phase.PAUSED:
                # The machine was started anew: its memory is lost, its disk is not.
                log.warning("sandbox_memory_lost", extra=keys(live))
                await self.turns.take_stored(live)
                return
            # Nothing of it runs, so its place died with the last agent.
            live.entry = replace(entry, phase=Phase.ENDED, slot=None)
            self.table.save(live.entry)
            self.live[sandbox_id] = live
            log.info("sandbox_ended_meanwhile", extra=keys(live))
        except Exception as exc:
            log.exception("take_over_failed", extra={"sandbox_id": sandbox_id, "detail": str(exc)})
            if entry is not None:
                await self.keep_broken(entry)

    async def adopt(self, live: Live) -> bool:
        """Whether it still runs; then `live.netns` is set where it has a network of its own."""
        handle = live.entry.handle
        if handle is None:
            return False
        path = self.runtime.netns_path(handle)
        if path is not None:
            try:
                live.netns = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return False
        # Only after opening: if it still runs now, the descriptor is of its namespace and not of a
        # process that got the same id since.
        status = await self.runtime.recover(handle)
        if status is not protocol.Status.ENDED:
            await self.stand_still(live, status)
            return True
        live.close_netns()
        return False

    async def stand_still(self, live: Live, status: protocol.Status) -> None:
        """After a restart: finish what the last agent had written down."""
        handle = live.entry.handle
        if handle is None:
            return
        if live.entry.phase is Phase.PAUSED and status is protocol.Status.RUNNING:
            await self.runtime.pause(handle)
        elif live.entry.phase is Phase.RUNNING and status is protocol.Status.PAUSED:
            await self.runtime.resume(handle)

    async def keep_broken(self, entry: Entry) -> None:
        """Keep what could not be taken over in the list, so that a kill can free it later."""
        live = Live(replace(entry, phase=Phase.ENDED, slot=None))
        try:
            # If it does run, its place must not be given to another.
            if await self.adopt(live):
                live.entry = replace(live.entry, slot=entry.slot)
        except Exception:
            log.exception("adopt_failed", extra=keys(live))
            live.close_netns()
        self.live[live.sandbox_id] = live

    async def close(self) -> None:
        """Let go of the sandboxes; they stay. Creates and kills under way get a few seconds."""
        self.is_closing = True
        under_way = {
            task
            for live in self.live.values()
            for task in (live.starting, live.ending)
            if task is not None and not task.done()
        }
        if under_way:
            _, late = await asyncio.wait(under_way, timeout=CLOSE_LIMIT_S)
            await cancel(*late)
        await cancel(*(live.watching for live in self.live.values()))
        await self.trash.close(limit_s=CLOSE_LIMIT_S)
        for live in self.live.values():
            live.close_netns()
        await self.places.close()

    # -- what others ask ----------------------------------------------------------------------

    def statuses(self) -> list[Status]:
        return [live.status for live in self.live.values()]

    def running(self, sandbox_id: str) -> Live | None:
        """For the gateway: a sandbox that can be dialled now."""
        live = self.live.get(SandboxId(sandbox_id))
        return live if live is not None and live.entry.phase is Phase.RUNNING else None

    def reachable(self, sandbox_id: str) -> Live | None:
        """For the gateway: one that can be dialled now, or when it has been resumed for that."""
        live = self.live.get(SandboxId(sandbox_id))
        if live is None:
            return None
        waits = live.entry.phase in STANDING and live.entry.order.auto_resume
        return live if waits or live.entry.phase is Phase.RUNNING else None

    async def create(self, order: Order) -> float:
        """Make a sandbox; returns the seconds that it took, once envd can be reached.

        Repeatable by `execution_id`. A caller that is cancelled leaves the create going on.

        Raises:
            NotFound: `image_not_found`.
            NoCapacity: `image_not_ready` while the image is being built; `node_full`.
            AlreadyExists: the id runs under another execution.
            WrongState: it was killed, or it ended, meanwhile.
            OutOfSpace, DeadlineExceeded, Internal: nothing of it remains.
        """
        live = self.live.get(order.sandbox_id)
        if live is None:
            if self.is_closing:
                raise WrongState("this node agent is closing", reason="node_closing")
            image = images.require(self.home, order.image_id)
            live = Live(Entry(order=order, phase=Phase.STARTING))
            self.live[order.sandbox_id] = live
            live.starting = self.begin(self.start(live, image), "start", live)
            self.events.publish(live.status)
        elif live.entry.order.execution_id != order.execution_id:
            raise AlreadyExists(
                f"sandbox '{order.sandbox_id}' runs under another execution",
                reason="sandbox_exists",
            )
        if live.starting is not None:
            await asyncio.wait({live.starting})
            if not live.starting.cancelled():
                live.starting.result()
        if live.entry.phase is not Phase.RUNNING:
            raise WrongState(
                f"sandbox '{order.sandbox_id}' was ended while it started", reason="sandbox_ended"
            )
        return live.entry.start_seconds

    async def kill(self, sandbox_id: SandboxId) -> bool:
        """End a sandbox and free all that it used; whether there was one. Repeatable.

        A caller that is cancelled leaves the kill going on.

        Raises Internal or DeadlineExceeded when something could not be freed; a repeated kill tries again.
        """
        live = self.live.get(sandbox_id)
        if live is None:
            return False
        if live.ending is None or live.ending.done():
            live.ending = self.begin(self.end(live), "end", live)
        await asyncio.wait({live.ending})
        if live.ending.cancelled():
            raise WrongState("this node agent is closing", reason="node_closing")
        live.ending.result()
        return True

    # -- one sandbox ---------------------------------------------------------------------------

    async def start(self, live: Live, image: images.Image) -> float:
        begun = time.monotonic()
        order = live.entry.order
        place: NetworkPlace | None = None
        async with live.lock:
            try:
                place = await self.places.take(allow_internet_access=order.allow_internet_access)
                live.entry = replace(live.entry, slot=place.index, address=place.address)
                # Written before the driver acquires anything: an agent that dies from here on
                # leaves a word for the next one to undo it.
                self.table.make(live.entry)
                try:
                    async with asyncio.timeout(self.start_limit_s):
                        handle = await self.runtime.start(self.spec(order, image, place))
                except TimeoutError:
                    raise DeadlineExceeded(
                        f"sandbox '{order.sandbox_id}' did not start in {self.start_limit_s:g} s",
                        reason="sandbox_start_timeout",
                    ) from None
                if self.runtime.netns_path(handle) is not None:
                    live.netns = os.open(place.netns_path, os.O_RDONLY | os.O_CLOEXEC)
                seconds = time.monotonic() - begun
                running = replace(
                    live.entry, phase=Phase.RUNNING, handle=handle, start_seconds=seconds
                )
                live.entry = replace(live.entry, handle=handle)
                self.table.save(running)
                live.entry = running
            except BaseException as exc:
                log.warning("sandbox_start_failed", extra={**keys(live), "detail": describe(exc)})
                # Shielded: a second cancellation must not leave half of it.
                await finish(self.undo(live))
                if isinstance(exc, ServiceError) or not isinstance(exc, Exception):
                    raise
                raise translated(exc, order.sandbox_id) from exc
        self.watch(live)
        self.events.publish(live.status)
        log.info("sandbox_started", extra={**keys(live), "seconds": round(seconds, 4)})
        return seconds

    def spec(self, order: Order, image: images.Image, place: NetworkPlace) -> SandboxSpec:
        return SandboxSpec(
            sandbox_id=order.sandbox_id,
            execution_id=order.execution_id,
            layers=image.layers,
            directory=self.table.disk(order.sandbox_id),
            resources=order.resources,
            place=place,
            envd=EnvdConfig(
                sandbox_id=order.sandbox_id,
                template_id=order.template_id,
                access_token=order.envd_access_token,
                env_vars={**image.manifest.env_vars, **order.env_vars},
                default_user=image.manifest.user,
                default_workdir=image.manifest.workdir,
            ),
        )

    async def undo(self, live: Live) -> None:
        """After a failed start. What cannot be freed stays in the list as ended, for a kill to try again."""
        live.close_netns()
        try:
            if live.entry.handle is not None:
                await self.free(live)
                return
            await self.undo_start(live.sandbox_id)
            if live.entry.slot is not None:
                await self.places.give_back(live.entry.slot)
        except Exception:
            log.exception("undo_failed", extra=keys(live))
            live.entry = replace(live.entry, phase=Phase.ENDED)
            self.events.publish(live.status)
            return
        self.live.pop(live.sandbox_id, None)

    async def undo_start(self, sandbox_id: SandboxId) -> None:
        """Remove a start that never reported a handle, its directory included."""
        if self.table.directory(sandbox_id).exists():
            async with asyncio.timeout(self.end_limit_s):
                await self.runtime.undo(self.table.disk(sandbox_id), sandbox_id)
            self.trash.discard(self.table.directory(sandbox_id))

    def watch(self, live: Live) -> None:
        live.watching = self.begin(self.until_ended(live), "watch", live)

    async def until_ended(self, live: Live) -> None:
        if live.entry.handle is None:
            return
        while True:
            try:
                exit_ = await self.runtime.wait(live.entry.handle)
                break
            except Exception as exc:
                log.error("watch_failed", extra={**keys(live), "detail": describe(exc)})
                await asyncio.sleep(WATCH_RETRY_S)
        if live.entry.phase not in ALIVE:
            return
        live.entry = replace(live.entry, phase=Phase.ENDED)
        live.answer_waiting(runs=False)
        live.close_netns()
        log.info("sandbox_ended", extra={**keys(live), "reason": exit_.reason})
        self.events.publish(live.status)
        self.save_phase(live)

    async def end(self, live: Live) -> None:
        if live.starting is not None:
            await cancel(live.starting)
        async with live.lock:
            if self.live.get(live.sandbox_id) is not live:
                return
            live.entry = replace(live.entry, phase=Phase.STOPPING)
            live.answer_waiting(runs=False)
            live.close_netns()
            # Routes go first: otherwise a request can reach a place already given to another.
            self.events.publish(live.status)
            self.save_phase(live)
            await cancel(live.watching)
            await self.free(live)
        log.info("sandbox_freed", extra=keys(live))

    async def free(self, live: Live) -> None:
        """Stop, destroy, remove; then nothing of it is in the list or on the node. Under the lock."""
        handle = live.entry.handle
        try:
            async with asyncio.timeout(self.end_limit_s):
                if handle is None:
                    await self.runtime.undo(self.table.disk(live.sandbox_id), live.sandbox_id)
                else:
                    await self.runtime.stop(handle, grace_s=0)
                    await self.runtime.destroy(handle)
        except TimeoutError:
            raise DeadlineExceeded(
                f"sandbox '{live.sandbox_id}' did not end in {self.end_limit_s:g} s",
                reason="sandbox_kill_timeout",
            ) from None
        self.trash.discard(self.table.directory(live.sandbox_id))
        if live.entry.slot is not None:
            await self.places.give_back(live.entry.slot)
        self.live.pop(live.sandbox_id, None)

    def save_phase(self, live: Live) -> None:
        """A full disk may not keep a sandbox from ending; the driver finds the truth again on recover."""
        try:
            self.table.save(live.entry)
        except OSError as exc:
            log.error("table_save_failed", extra={**keys(live), "detail": str(exc)})

    def begin(self, work: Coroutine[Any, Any, Any], what: str, live: Live) -> asyncio.Task[Any]:
        task = asyncio.create_task(work, name=f"{what} {live.sandbox_id}")
        # Its callers may all be gone, and then nobody else looks at what it raised.
        task.add_done_callback(lambda done: report(done, what, live))
        return task
