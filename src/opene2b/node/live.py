"""One sandbox of this node in memory, and the tasks that work for it."""

import asyncio
import errno
import logging
import os
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from opene2b.core.errors import Internal, OutOfSpace, ServiceError
from opene2b.core.ids import SandboxId
from opene2b.node.events import Status
from opene2b.node.table import Entry, Phase

log = logging.getLogger(__name__)

ALIVE = frozenset({Phase.RUNNING, Phase.PAUSED})
STANDING = frozenset({Phase.PAUSED, Phase.STORED})
"""Paused, as clients say."""


@dataclass(slots=True, eq=False)
class Live:
    """One sandbox of this node."""

    entry: Entry
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Guards every call to the driver for this sandbox, `wait` excepted."""
    netns: int | None = None
    """Descriptor of its network namespace, while it runs in one of its own. A descriptor, because a path
    by process id may name a stranger's by the time it is opened."""
    starting: asyncio.Task[float] | None = None
    watching: asyncio.Task[None] | None = None
    ending: asyncio.Task[None] | None = None
    awaking: asyncio.Future[bool] | None = None
    """While traffic waits for it: done when it runs (True) or will not (False)."""

    @property
    def sandbox_id(self) -> SandboxId:
        return self.entry.order.sandbox_id

    @property
    def status(self) -> Status:
        order = self.entry.order
        return Status(
            sandbox_id=order.sandbox_id,
            execution_id=order.execution_id,
            phase=self.entry.phase,
            is_wanted=self.awaking is not None,
        )

    def answer_waiting(self, *, runs: bool) -> None:
        """Whoever waits for it to be resumed waits no more."""
        awaking, self.awaking = self.awaking, None
        if awaking is not None and not awaking.done():
            awaking.set_result(runs)

    def close_netns(self) -> None:
        fd, self.netns = self.netns, None
        if fd is not None:
            os.close(fd)


def report(task: asyncio.Task[Any], what: str, live: Live) -> None:
    if not task.cancelled() and (exc := task.exception()) is not None:
        extra = {**keys(live), "task": what, "detail": describe(exc)}
        if isinstance(exc, ServiceError):
            log.warning("agent_task_failed", extra=extra)
        else:
            log.error("agent_task_failed", extra=extra, exc_info=exc)


def keys(live: Live) -> dict[str, Any]:
    order = live.entry.order
    return {"sandbox_id": order.sandbox_id, "execution_id": order.execution_id}


def describe(exc: BaseException) -> str:
    detail = exc.detail if isinstance(exc, ServiceError) else None
    return f"{type(exc).__name__}: {exc}" + (f" ({detail})" if detail else "")


async def finish(work: Coroutine[Any, Any, None]) -> None:
    """Await to the end, whatever cancels us meanwhile; then be cancelled."""
    task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as exc:
            cancelled = exc
    task.result()
    if cancelled is not None:
        raise cancelled


async def cancel(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel and wait until they have ended."""
    running = {task for task in tasks if task is not None and not task.done()}
    for task in running:
        task.cancel()
    if running:
        await asyncio.wait(running)


def translated(exc: Exception, sandbox_id: SandboxId) -> ServiceError:
    """A foreign failure in our words; its own text is for the log alone."""
    if isinstance(exc, OSError) and exc.errno in {errno.ENOSPC, errno.EDQUOT}:
        return OutOfSpace("no space left on the node for a sandbox", detail=str(exc))
    return Internal(
        f"cannot start sandbox '{sandbox_id}'",
        reason="sandbox_create_failed",
        detail=describe(exc),
    )
