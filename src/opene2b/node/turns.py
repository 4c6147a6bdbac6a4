"""Turns of a sandbox: to standing still or to its disk alone, and back; and who waits for it meanwhile.

What is wanted is written down before it is done, so that the next agent finishes what this one began.
"""

import asyncio
import logging
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from opene2b.core.errors import DeadlineExceeded, NotFound, ServiceError, WrongState
from opene2b.core.ids import ExecutionId, SandboxId
from opene2b.node import images
from opene2b.node.live import ALIVE, STANDING, Live, cancel, describe, finish, keys, translated
from opene2b.node.table import Phase

if TYPE_CHECKING:
    from opene2b.node.agent import Agent

log = logging.getLogger(__name__)

AWAKE_LIMIT_S = 12.0
"""How long traffic waits for a sandbox to be resumed: less than the proxy waits for our answer."""
AWAKE_AGAIN_S = 0.25
STORE_GRACE_S = 2.0
"""Between asking the processes of a sandbox to end and ending them, when its disk is kept."""


class Turns:
    """All methods on the agent's event loop."""

    def __init__(self, agent: "Agent") -> None:
        self.agent = agent

    async def pause(
        self, sandbox_id: SandboxId, execution_id: ExecutionId, *, disk_only: bool = False
    ) -> None:
        """Stop every process where it stands, or end them all and keep the disk. A caller that is cancelled leaves
        the pause going on. Repeatable.

        Raises:
            NotFound: this node has no such execution.
            WrongState: it is not running.
            Unsupported, DeadlineExceeded: see Runtime.pause; it runs on.
        """
        wanted = Phase.STORED if disk_only else Phase.PAUSED
        await self.turn(self.known(sandbox_id, execution_id), wanted)

    async def resume(self, sandbox_id: SandboxId, execution_id: ExecutionId) -> None:
        """Let it go on, or start it again from its disk. Repeatable.

        Raises:
            NotFound, WrongState.
            NoCapacity, OutOfSpace, DeadlineExceeded, Internal: it cannot be started now; its disk is as it was.
        """
        await self.turn(self.known(sandbox_id, execution_id), Phase.RUNNING)

    def known(self, sandbox_id: SandboxId, execution_id: ExecutionId) -> Live:
        live = self.agent.live.get(sandbox_id)
        if live is None or live.entry.order.execution_id != execution_id:
            raise NotFound(f"this node has no such execution of sandbox '{sandbox_id}'")
        return live

    async def turn(self, live: Live, phase: Phase) -> None:
        task = self.agent.begin(self.turn_now(live, phase), f"turn {phase}", live)
        await asyncio.wait({task})
        if task.cancelled():
            raise WrongState("this node agent is closing", reason="node_closing")
        task.result()

    async def turn_now(self, live: Live, phase: Phase) -> None:
        """What is wanted is written down before it is done, so that the next agent finishes it."""
        async with live.lock:
            before = live.entry
            if before.phase is phase or (before.phase, phase) == (Phase.STORED, Phase.PAUSED):
                return
            if phase is Phase.STORED and before.phase in ALIVE:
                await self.store(live)
                return
            if before.phase is Phase.STORED:
                await self.boot(live)
                return
            if before.phase not in ALIVE or before.handle is None:
                raise WrongState(
                    f"sandbox '{live.sandbox_id}' is {before.phase.value}", reason="sandbox_state"
                )
            wanted = replace(before, phase=phase)
            self.agent.table.save(wanted)
            if phase is Phase.PAUSED:
                # Routes go first: nobody may wait for what stands still.
                live.entry = wanted
                self.agent.events.publish(live.status)
            try:
                if phase is Phase.PAUSED:
                    await self.agent.runtime.pause(before.handle)
                else:
                    await self.agent.runtime.resume(before.handle)
                if live.entry.phase is Phase.ENDED:
                    raise WrongState(
                        f"sandbox '{live.sandbox_id}' ended meanwhile", reason="sandbox_ended"
                    )
            except BaseException:
                # One that ended meanwhile has been said to be so, and stays it.
                if live.entry.phase is not Phase.ENDED:
                    live.entry = before
                    self.agent.table.save(before)
                    self.agent.events.publish(live.status)
                raise
            live.entry = wanted
            if phase is Phase.RUNNING:
                live.answer_waiting(runs=True)
            self.agent.events.publish(live.status)
        log.info("sandbox_turned", extra={**keys(live), "phase": phase.value})

    async def store(self, live: Live) -> None:
        """End its processes, give back what it used, keep its disk. Under the lock."""
        live.entry = replace(live.entry, phase=Phase.STORED)
        self.agent.table.save(live.entry)
        self.agent.events.publish(live.status)
        live.close_netns()
        await cancel(live.watching)
        if live.entry.handle is not None:
            async with asyncio.timeout(self.agent.end_limit_s):
                await self.agent.runtime.resume(live.entry.handle)
                await self.agent.runtime.stop(live.entry.handle, grace_s=STORE_GRACE_S)
                await self.agent.runtime.destroy(live.entry.handle)
        await self.put_by(live)
        log.info("sandbox_stored", extra=keys(live))

    async def put_by(self, live: Live) -> None:
        """Its processes are gone: nothing but the disk is kept."""
        slot = live.entry.slot
        live.entry = replace(live.entry, phase=Phase.STORED, handle=None, slot=None)
        self.agent.table.save(live.entry)
        if slot is not None:
            await self.agent.places.give_back(slot)

    async def boot(self, live: Live) -> None:
        """Start a stored sandbox again from its disk. Under the lock. What fails leaves it stored."""
        order = live.entry.order
        image = images.require(self.agent.home, order.image_id)
        place = await self.agent.places.take(allow_internet_access=order.allow_internet_access)
        live.entry = replace(live.entry, slot=place.index, address=place.address)
        try:
            self.agent.table.save(live.entry)
            try:
                async with asyncio.timeout(self.agent.start_limit_s):
                    handle = await self.agent.runtime.start(self.agent.spec(order, image, place))
            except TimeoutError:
                raise DeadlineExceeded(
                    f"sandbox '{order.sandbox_id}' did not start in {self.agent.start_limit_s:g} s",
                    reason="sandbox_start_timeout",
                ) from None
            live.entry = replace(live.entry, handle=handle)
            if self.agent.runtime.netns_path(handle) is not None:
                live.netns = os.open(place.netns_path, os.O_RDONLY | os.O_CLOEXEC)
            running = replace(live.entry, phase=Phase.RUNNING)
            self.agent.table.save(running)
            live.entry = running
        except BaseException as exc:
            log.warning("sandbox_boot_failed", extra={**keys(live), "detail": describe(exc)})
            await finish(self.unboot(live))
            live.answer_waiting(runs=False)
            if isinstance(exc, ServiceError) or not isinstance(exc, Exception):
                raise
            raise translated(exc, order.sandbox_id) from exc
        live.answer_waiting(runs=True)
        self.agent.watch(live)
        self.agent.events.publish(live.status)
        log.info("sandbox_booted", extra=keys(live))

    async def unboot(self, live: Live) -> None:
        live.close_netns()
        async with asyncio.timeout(self.agent.end_limit_s):
            await self.agent.runtime.undo(self.agent.table.disk(live.sandbox_id), live.sandbox_id)
        await self.put_by(live)

    async def awake(self, live: Live) -> bool:
        """Wait until a paused sandbox runs, which the control plane decides; however many wait, it is asked once."""
        until = time.monotonic() + AWAKE_LIMIT_S
        while live.entry.phase in STANDING and (left_s := until - time.monotonic()) > 0:
            if live.awaking is None:
                live.awaking = asyncio.get_running_loop().create_future()
            # Said again and again: nobody may have listened, or the pause may just be on its way into the records.
            self.agent.events.publish(live.status)
            done, _ = await asyncio.wait({live.awaking}, timeout=min(left_s, AWAKE_AGAIN_S))
            if done:
                return done.pop().result()
        live.answer_waiting(runs=False)
        return live.entry.phase is Phase.RUNNING

    def decline(self, sandbox_id: SandboxId, execution_id: ExecutionId) -> None:
        """Whoever waits for this sandbox waits in vain. Raises NotFound."""
        self.known(sandbox_id, execution_id).answer_waiting(runs=False)

    async def take_stored(self, live: Live) -> None:
        """Whatever may still run of it ends; the disk stays. (The pool is not open yet: its place is not in use then.)"""
        async with asyncio.timeout(self.agent.end_limit_s):
            await self.agent.runtime.undo(self.agent.table.disk(live.sandbox_id), live.sandbox_id)
        live.entry = replace(live.entry, phase=Phase.STORED, handle=None, slot=None)
        self.agent.table.save(live.entry)
        self.agent.live[live.sandbox_id] = live
