"""Records against what the node has: at start, and whenever the agent was away.

Subscribe, then list, then compare: what happens meanwhile arrives as an event. Creates under way in this process
are left alone; they will say themselves how they ended.
"""

import asyncio
import logging
from datetime import UTC, datetime

from opene2b.core.errors import ServiceError
from opene2b.core.ids import SandboxId
from opene2b.core.records import Sandbox
from opene2b.core.states import SandboxEvent, SandboxState
from opene2b.gen import node_pb2
from opene2b.gen.node_pb2 import SandboxStatus
from opene2b.scheduler.node import DISK_ONLY, PAUSE_MODE
from opene2b.scheduler.sandboxes import PROMISE_KEPT, STANDING, Scheduler

log = logging.getLogger(__name__)

THERE = frozenset({node_pb2.PHASE_RUNNING, node_pb2.PHASE_PAUSED, node_pb2.PHASE_STORED})
RETRY_S = 0.2
SWEEP_S = 3600.0
FIRST_LIMIT_S = 15.0
"""How long the first comparison may keep the control plane from serving."""


class Reconciler:
    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.first = asyncio.Event()
        """Set once records and node have been compared."""

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.scheduler.deadlines.run())
            group.create_task(self.sweep())
            group.create_task(self.follow())

    async def sweep(self) -> None:
        while True:
            try:
                before = datetime.now(UTC) - PROMISE_KEPT
                await self.scheduler.store.sweep_idempotency(before=before)
            except ServiceError as exc:
                log.error("sweep_failed", extra={"detail": f"{exc} ({exc.detail})"})
            await asyncio.sleep(SWEEP_S)

    async def follow(self) -> None:
        while True:
            subscribed = asyncio.Event()
            comparing = asyncio.create_task(self.compare_when(subscribed))
            try:
                async for status in self.scheduler.node.watch(subscribed):
                    await self.changed(status)
            except ServiceError as exc:
                log.warning("node_lost", extra={"reason": exc.reason, "detail": exc.detail})
            finally:
                comparing.cancel()
                await asyncio.gather(comparing, return_exceptions=True)
            await asyncio.sleep(RETRY_S)

    async def compare_when(self, subscribed: asyncio.Event) -> None:
        await subscribed.wait()
        while True:
            try:
                await self.compare()
            except Exception as exc:
                log.exception("reconcile_failed", extra={"detail": str(exc)})
                await asyncio.sleep(RETRY_S)
                continue
            self.first.set()
            return

    async def compare(self) -> None:
        scheduler = self.scheduler
        with scheduler.creates_seen() as seen:
            statuses = {status.sandbox_id: status for status in await scheduler.node.sandboxes()}
            rows = {row.id: row for row in await scheduler.store.all_sandboxes()}
            for row in rows.values():
                if row.id not in seen:
                    await self.judge(row, statuses.get(row.id))
            for sandbox_id in statuses.keys() - rows.keys() - seen:
                log.info("sandbox_without_record", extra={"sandbox_id": sandbox_id})
                try:
                    await scheduler.node.kill(SandboxId(sandbox_id))
                except ServiceError as exc:
                    # One that cannot be ended may not keep the others from being looked after.
                    detail = f"{exc} ({exc.detail})"
                    log.error("kill_failed", extra={"sandbox_id": sandbox_id, "detail": detail})
        log.info("reconciled", extra={"records": len(rows), "on_node": len(statuses)})

    async def changed(self, status: SandboxStatus) -> None:
        sandbox_id = SandboxId(status.sandbox_id)
        if sandbox_id in self.scheduler.creating:
            if status.phase == node_pb2.PHASE_ENDED:
                self.scheduler.ended_meanwhile.add(sandbox_id)
            return
        if sandbox_id in self.scheduler.turns.under_way:
            return
        row = await self.scheduler.store.sandbox(sandbox_id)
        if row is not None and row.execution_id == status.execution_id:
            await self.judge(row, status)

    async def judge(self, row: Sandbox, status: SandboxStatus | None) -> None:
        """Make record and node agree about one sandbox."""
        scheduler = self.scheduler
        mine = status if status is not None and status.execution_id == row.execution_id else None
        phase = mine.phase if mine is not None else None
        if phase == node_pb2.PHASE_STARTING and row.state is not SandboxState.KILLING:
            return  # said before its create was finished, or it is being made: what comes next is said as well
        if row.state is SandboxState.KILLING:
            if phase != node_pb2.PHASE_STOPPING:
                await scheduler.finish_kill(row)
        elif row.state is SandboxState.RUNNING:
            if phase == node_pb2.PHASE_RUNNING:
                scheduler.turns.watch_deadline(row)
            elif phase in {node_pb2.PHASE_PAUSED, node_pb2.PHASE_STORED}:
                scheduler.turns.settle(row.id)
            else:
                # Also one that is just ending: whoever asked for that, it was not this control plane.
                log.info("sandbox_lost", extra={"sandbox_id": row.id})
                await scheduler.end(row, SandboxEvent.LOST)
        elif row.state in STANDING:
            if phase in THERE:
                if row.state is not SandboxState.PAUSED or phase == node_pb2.PHASE_RUNNING:
                    scheduler.turns.settle(row.id)
                elif phase == node_pb2.PHASE_STORED and row.options.get(PAUSE_MODE) != DISK_ONLY:
                    await scheduler.turns.memory_lost(row)
                elif mine is not None and mine.wanted and row.options.get("auto_resume"):
                    scheduler.run(scheduler.turns.awake(row), f"awake {row.id}")
            else:
                log.info("sandbox_lost", extra={"sandbox_id": row.id})
                await scheduler.end(row, SandboxEvent.LOST)
        elif phase == node_pb2.PHASE_RUNNING:
            await self.finish_start(row)
        else:
            await scheduler.store.delete_sandbox(row.id)
            if key := row.options.get("idempotency_key"):
                # Nothing was made: the next try under this key may try again.
                await scheduler.store.drop_idempotency(row.team_id, key)

    async def finish_start(self, row: Sandbox) -> None:
        """A create that this process did not begin has made its sandbox: keep it if somebody can still ask for it."""
        scheduler = self.scheduler
        if "idempotency_key" not in row.options:
            await scheduler.end(row, SandboxEvent.KILL)
            return
        now = datetime.now(UTC)
        kept = await scheduler.store.update_sandbox(
            row.id,
            expected=frozenset({SandboxState.STARTING}),
            execution_id=row.execution_id,
            state=SandboxState.RUNNING,
            started_at=now,
            end_at=now + (row.end_at - row.started_at),
            max_end_at=now + (row.max_end_at - row.started_at),
        )
        if kept is not None:
            scheduler.deadlines.set(row.id, (kept.end_at - now).total_seconds())
