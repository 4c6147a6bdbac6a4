"""What happens to sandboxes, told to whoever listens: bounded queues for streams, plain calls for our own parts.

A subscriber hears nothing of the past: it subscribes, then lists.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from opene2b.core.ids import ExecutionId, SandboxId
from opene2b.node.table import Phase

QUEUE_LIMIT = 4096
"""Events that a subscriber may be behind; more than a node's sandboxes all ending at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A sandbox as others see it."""

    sandbox_id: SandboxId
    execution_id: ExecutionId
    phase: Phase
    is_wanted: bool = False
    """Traffic waits for it to be resumed."""


class TooSlow(Exception):
    """The subscriber missed events: it must subscribe and list again."""


class Subscription:
    def __init__(self, limit: int) -> None:
        self.queue: asyncio.Queue[Status] = asyncio.Queue(limit)
        self.missed = False

    def offer(self, status: Status) -> None:
        try:
            self.queue.put_nowait(status)
        except asyncio.QueueFull:
            self.missed = True

    async def next(self) -> Status:
        """Raises TooSlow, after all that came before the gap was handed out."""
        if self.missed and self.queue.empty():
            raise TooSlow
        return await self.queue.get()


class Events:
    """All methods on one event loop."""

    def __init__(self) -> None:
        self.subscriptions: set[Subscription] = set()
        self.listeners: list[Callable[[Status], None]] = []
        """Called at once, in order; must not raise and must not wait."""

    def publish(self, status: Status) -> None:
        for listener in self.listeners:
            listener(status)
        for subscription in list(self.subscriptions):
            subscription.offer(status)
            if subscription.missed:
                self.subscriptions.discard(subscription)

    @contextlib.contextmanager
    def subscribe(self, limit: int = QUEUE_LIMIT) -> Iterator[Subscription]:
        subscription = Subscription(limit)
        self.subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self.subscriptions.discard(subscription)
