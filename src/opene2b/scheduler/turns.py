"""Pause and resume: turns of a running sandbox to standing still and back.

One turn of a sandbox at a time; whoever wants another waits for it. A turn goes on when its caller has gone: what
was asked for is in the record before the node is asked, and `settle` finishes what another process began.
"""

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from opene2b.core import states
from opene2b.core.errors import (
    DeadlineExceeded,
    NoCapacity,
    NotFound,
    ServiceError,
    Unsupported,
    WrongState,
)
from opene2b.core.ids import SandboxId
from opene2b.core.records import Sandbox
from opene2b.core.states import SandboxEvent, SandboxState
from opene2b.scheduler.node import DISK_ONLY, PAUSE_MODE, WITH_MEMORY

if TYPE_CHECKING:
    from opene2b.scheduler.sandboxes import Scheduler

log = logging.getLogger(__name__)

RETRY_S = 1.0
AWAKE_S = 300
"""A sandbox that was resumed by traffic runs at least so long. Source: E2B contract, auto-resume."""
S, E = SandboxState, SandboxEvent


class Turns:
    """All methods on one event loop."""

    def __init__(self, scheduler: "Scheduler") -> None:
        self.scheduler = scheduler
        self.under_way: dict[SandboxId, asyncio.Task[Sandbox | None]] = {}

    async def wait(self, sandbox_id: SandboxId) -> None:
        """Until the turn that is under way has ended, however it does; or a moment, when another process has it."""
        task = self.under_way.get(sandbox_id)
        if task is None:
            await asyncio.sleep(RETRY_S / 10)
        else:
            await asyncio.wait({task})

    async def pause(
        self, sandbox: Sandbox, *, disk_only: bool = False, ends_by: datetime | None = None
    ) -> Sandbox:
        """A running sandbox stands still afterwards; or its processes have ended, and its disk is kept.

        Raises:
            WrongState: somebody else was quicker.
            Unsupported, DeadlineExceeded: it runs on.
            NoCapacity, Internal: not known; it will be paused as soon as its node can be reached.
        """
        mode = DISK_ONLY if disk_only else WITH_MEMORY
        options = {**sandbox.options, PAUSE_MODE: mode}
        return await self.take(
            sandbox, E.PAUSE, self.finish_pause, ends_by=ends_by, options=options
        )

    async def resume(self, sandbox: Sandbox, timeout_s: int, *, disk_only: bool = False) -> Sandbox:
        """A paused sandbox runs afterwards, for so many seconds.

        Args:
            disk_only: Start it again from its disk, also if its memory was kept.

        Raises:
            LimitExceeded: the team has as many as it may; it stays paused.
            WrongState: somebody else was quicker, or it is no more.
            NoCapacity, Internal: not known; it will go on as soon as its node can be reached.
        """
        now = datetime.now(UTC)
        settings = self.scheduler.settings
        return await self.take(
            sandbox,
            E.RESUME,
            self.finish_resume,
            team_limit=settings.team_max_sandboxes,
            options={**sandbox.options, **({PAUSE_MODE: DISK_ONLY} if disk_only else {})},
            started_at=now,
            end_at=now + timedelta(seconds=timeout_s),
            max_end_at=now + timedelta(seconds=settings.max_timeout_s),
        )

    async def awake(self, sandbox: Sandbox) -> None:
        """Traffic waits for a paused sandbox: resume it, if it may run."""
        wanted_s = max(int(sandbox.options.get("timeout_s", 0)), AWAKE_S)
        try:
            await self.resume(sandbox, min(wanted_s, self.scheduler.settings.max_timeout_s))
        except WrongState:
            return  # somebody else resumes it, or ends it
        except ServiceError as exc:
            log.warning("not_resumed", extra={"sandbox_id": sandbox.id, "detail": exc.message})
            with contextlib.suppress(NotFound):
                await self.scheduler.node.decline(sandbox)

    async def take(
        self,
        sandbox: Sandbox,
        event: SandboxEvent,
        finish: Any,
        *,
        team_limit: int | None = None,
        ends_by: datetime | None = None,
        **changes: Any,
    ) -> Sandbox:
        state, _ = states.apply(sandbox.state, event)

        async def turn() -> Sandbox | None:
            row = await self.scheduler.store.update_sandbox(
                sandbox.id,
                expected=frozenset({sandbox.state}),
                execution_id=sandbox.execution_id,
                team_limit=team_limit,
                ends_by=ends_by,
                state=state,
                **changes,
            )
            return None if row is None else await finish(row)

        if sandbox.id in self.under_way:
            raise quicker(sandbox.id)
        done = await asyncio.shield(self.begin(sandbox.id, turn()))
        if done is None:
            raise quicker(sandbox.id)
        return done

    def begin(
        self, sandbox_id: SandboxId, work: Coroutine[Any, Any, Sandbox | None]
    ) -> "asyncio.Task[Sandbox | None]":
        task = asyncio.create_task(work, name=f"turn {sandbox_id}")
        self.under_way[sandbox_id] = task

        def ended(done: "asyncio.Task[Sandbox | None]") -> None:
            del self.under_way[sandbox_id]
            if not done.cancelled() and (exc := done.exception()) is not None:
                detail = exc.detail if isinstance(exc, ServiceError) else None
                log.warning(
                    "turn_failed",
                    extra={"sandbox_id": sandbox_id, "detail": f"{exc!r} ({detail})"},
                )

        task.add_done_callback(ended)
        return task

    async def finish_pause(self, row: Sandbox) -> Sandbox | None:
        """From PAUSING on."""
        self.scheduler.deadlines.cancel(row.id)
        try:
            await self.scheduler.node.pause(row)
        except (Unsupported, DeadlineExceeded) as exc:
            back = await self.change(row, E.PAUSE_FAILED)
            if back is not None:
                self.watch_deadline(back)
            raise exc
        except (NotFound, WrongState):
            await self.scheduler.end(row, E.LOST)
            return None
        except ServiceError:
            self.scheduler.run(self.settle_later(row.id), f"pause again {row.id}")
            raise
        log.info("sandbox_paused", extra={"sandbox_id": row.id, "team_id": row.team_id})
        return await self.change(row, E.PAUSED, end_at=datetime.now(UTC))

    async def finish_resume(self, row: Sandbox) -> Sandbox | None:
        """From RESUMING on."""
        try:
            if row.options.get(PAUSE_MODE) == DISK_ONLY:
                # Where memory was kept it is let go of; else this changes nothing.
                await self.scheduler.node.pause(row)
            await self.scheduler.node.resume(row)
        except (NotFound, WrongState) as exc:
            if exc.reason == "image_not_found":
                # What it was made from is missing; its disk is not.
                await self.change(row, E.RESUME_FAILED, end_at=datetime.now(UTC))
                raise NoCapacity(exc.message, reason="template_not_ready", retryable=False) from exc
            await self.scheduler.end(row, E.LOST)
            return None
        except ServiceError as exc:
            if exc.reason == "node_unreachable":
                self.scheduler.run(self.settle_later(row.id), f"resume again {row.id}")
            else:
                await self.change(row, E.RESUME_FAILED, end_at=datetime.now(UTC))
            raise
        running = await self.change(row, E.RESUMED)
        if running is not None:
            self.watch_deadline(running)
            log.info("sandbox_resumed", extra={"sandbox_id": row.id, "team_id": row.team_id})
        return running

    async def change(self, row: Sandbox, event: SandboxEvent, **changes: Any) -> Sandbox | None:
        state, _ = states.apply(row.state, event)
        return await self.scheduler.store.update_sandbox(
            row.id,
            expected=frozenset({row.state}),
            execution_id=row.execution_id,
            state=state,
            **changes,
        )

    def watch_deadline(self, row: Sandbox) -> None:
        left_s = (row.end_at - datetime.now(UTC)).total_seconds()
        self.scheduler.deadlines.set(row.id, left_s)

    # what another process began, or a node that does not as its record says

    def settle(self, sandbox_id: SandboxId) -> None:
        """Make the node do what the record says; a no-op while a turn is under way."""
        if sandbox_id not in self.under_way:
            self.begin(sandbox_id, self.settle_now(sandbox_id))

    async def memory_lost(self, row: Sandbox) -> None:
        """The machine was started anew while it was paused with its memory: its disk is what is left."""
        log.warning("sandbox_memory_lost", extra={"sandbox_id": row.id})
        await self.scheduler.store.update_sandbox(
            row.id,
            expected=frozenset({S.PAUSED}),
            execution_id=row.execution_id,
            options={**row.options, PAUSE_MODE: DISK_ONLY},
        )

    async def settle_later(self, sandbox_id: SandboxId) -> None:
        await asyncio.sleep(RETRY_S)
        self.settle(sandbox_id)

    async def settle_now(self, sandbox_id: SandboxId) -> Sandbox | None:
        row = await self.scheduler.store.sandbox(sandbox_id)
        if row is None:
            return None
        if row.state is S.PAUSING:
            return await self.finish_pause(row)
        if row.state is S.RESUMING:
            return await self.finish_resume(row)
        if row.state is S.PAUSED:
            await self.scheduler.node.pause(row)
        elif row.state is S.RUNNING:
            await self.scheduler.node.resume(row)
            self.watch_deadline(row)
        return row

    async def close(self) -> None:
        tasks = list(self.under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def quicker(sandbox_id: SandboxId) -> WrongState:
    return WrongState(f"sandbox '{sandbox_id}' is being changed by another request")
