"""Which sandboxes live, as far as anybody asked: kept until the agent says `gone`, or cannot be heard."""

import asyncio
from collections.abc import Awaitable, Callable

from opene2b.proxy.gateway import NotThere, Route


class Routes:
    def __init__(self, ask: Callable[[str], Awaitable[Route]]) -> None:
        self.ask = ask
        self.known: dict[str, Route] = {}
        self.asking: dict[str, asyncio.Task[Route]] = {}
        self.ended: set[str] = set()
        """Executions that ended while somebody asked: an answer about them may be read after their end was."""

    async def find(self, sandbox_id: str) -> Route:
        """Many who ask at once cost one question. Raises NotThere, gateway.Unavailable."""
        found = self.known.get(sandbox_id)
        if found is not None:
            return found
        task = self.asking.get(sandbox_id)
        if task is None:
            task = asyncio.create_task(self.learn(sandbox_id), name=f"route {sandbox_id}")
            self.asking[sandbox_id] = task
            task.add_done_callback(lambda done: self.learned(sandbox_id, done))
        return await asyncio.shield(task)

    async def learn(self, sandbox_id: str) -> Route:
        route = await self.ask(sandbox_id)
        if route.execution_id in self.ended:
            raise NotThere
        self.known[sandbox_id] = route
        return route

    def learned(self, sandbox_id: str, task: "asyncio.Task[Route]") -> None:
        if self.asking.get(sandbox_id) is task:
            del self.asking[sandbox_id]
        if not self.asking:
            self.ended.clear()
        if not task.cancelled():
            # Whoever asked may have left before the failure: it is not "never retrieved".
            task.exception()

    def forget(self, sandbox_id: str, execution_id: str) -> None:
        route = self.known.get(sandbox_id)
        if route is not None and route.execution_id == execution_id:
            del self.known[sandbox_id]
        if sandbox_id in self.asking:
            self.ended.add(execution_id)

    def forget_all(self) -> None:
        self.known.clear()
