"""Deadlines in order: one heap, one timer. Nothing is scanned.

An entry that was moved or cancelled stays in the heap until it comes up, and is then passed over.
"""

import asyncio
import heapq
import logging
from collections.abc import Awaitable, Callable
from itertools import count

from opene2b.core.ids import SandboxId

log = logging.getLogger(__name__)

RETRY_S = 2.0

COMPACT_AT = 1024
"""Stale entries beyond this and beyond half of the heap are swept out."""


class Deadlines:
    """Calls `on_due(sandbox_id)` once for each deadline that passes; calls do not wait for one another."""

    def __init__(
        self,
        on_due: Callable[[SandboxId], Awaitable[None]],
        *,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.on_due = on_due
        self.clock = clock
        self.heap: list[tuple[float, int, SandboxId]] = []
        self.current: dict[SandboxId, int] = {}
        """The number of the entry that counts, for each sandbox."""
        self.numbers = count()
        self.changed = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()

    def now(self) -> float:
        return self.clock() if self.clock else asyncio.get_running_loop().time()

    def set(self, sandbox_id: SandboxId, in_s: float) -> None:
        """Due in so many seconds (at once if negative); replaces what was set before."""
        number = next(self.numbers)
        self.current[sandbox_id] = number
        entry = (self.now() + in_s, number, sandbox_id)
        heapq.heappush(self.heap, entry)
        if self.heap[0] is entry:
            self.changed.set()
        if len(self.heap) > COMPACT_AT and len(self.heap) > 2 * len(self.current):
            self.heap = [item for item in self.heap if self.current.get(item[2]) == item[1]]
            heapq.heapify(self.heap)

    def cancel(self, sandbox_id: SandboxId) -> None:
        self.current.pop(sandbox_id, None)

    def take_due(self) -> list[SandboxId]:
        due = []
        while self.heap and self.heap[0][0] <= self.now():
            _, number, sandbox_id = heapq.heappop(self.heap)
            if self.current.get(sandbox_id) == number:
                del self.current[sandbox_id]
                due.append(sandbox_id)
        return due

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                for sandbox_id in self.take_due():
                    task = asyncio.create_task(self.fire(sandbox_id))
                    self.tasks.add(task)
                    task.add_done_callback(self.tasks.discard)
                self.changed.clear()
                wait_s = self.heap[0][0] - self.now() if self.heap else None
                try:
                    async with asyncio.timeout(wait_s):
                        await self.changed.wait()
                except TimeoutError:
                    continue
        finally:
            for task in self.tasks:
                task.cancel()

    async def fire(self, sandbox_id: SandboxId) -> None:
        try:
            await self.on_due(sandbox_id)
        except Exception:
            log.exception("expiry_failed", extra={"sandbox_id": sandbox_id})
            # Its time is over all the same; unless somebody gave it another meanwhile.
            if sandbox_id not in self.current:
                self.set(sandbox_id, RETRY_S)
