"""The proxy as a whole: listens, and joins gateway, routes, pool and clients."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

from opene2b.proxy.client import Client
from opene2b.proxy.gateway import Gateway
from opene2b.proxy.routes import Routes
from opene2b.proxy.upstream import IDLE_S, Pool

log = logging.getLogger(__name__)

BACKLOG = 4096
DRAIN_S = 2.0


class Proxy:
    def __init__(self, gateway_socket: Path) -> None:
        loop = asyncio.get_running_loop()
        self.gateway = Gateway(gateway_socket, on_gone=self.gone, on_lost=self.lost)
        self.routes = Routes(self.gateway.route)
        self.pool = Pool(self.gateway, clock=loop.time)
        self.clients: set[Client] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.is_draining = False
        self.emptied = asyncio.Event()

    def gone(self, sandbox_id: str, execution_id: str) -> None:
        self.routes.forget(sandbox_id, execution_id)
        self.pool.reset(execution_id)

    def lost(self) -> None:
        """Events may have been missed: routes are asked for again. Connections go on; a dead sandbox has closed its
        own end."""
        self.routes.forget_all()

    def forget(self, client: Client) -> None:
        self.clients.discard(client)
        if not self.clients:
            self.emptied.set()

    async def sweep(self) -> None:
        while True:
            await asyncio.sleep(IDLE_S)
            self.pool.close_idle(older_than_s=IDLE_S)

    async def drain(self, limit_s: float) -> None:
        """Let exchanges under way finish; then end what is left."""
        self.is_draining = True
        for client in list(self.clients):
            if client.exchange is None and not client.is_in_head:
                client.close()
        self.emptied.clear()
        if self.clients:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit_s):
                    await self.emptied.wait()
        for client in list(self.clients):
            client.abort()
        self.pool.close()
        for task in self.tasks:
            task.cancel()


@contextlib.asynccontextmanager
async def serve(
    gateway_socket: Path, host: str, port: int, *, drain_s: float = DRAIN_S
) -> AsyncIterator[tuple[Proxy, int]]:
    """Serve until the block ends; gives the proxy and the port that it listens on."""
    loop = asyncio.get_running_loop()
    proxy = Proxy(gateway_socket)
    background = [
        asyncio.create_task(proxy.gateway.run(), name="gateway"),
        asyncio.create_task(proxy.sweep(), name="sweep"),
    ]
    server = await loop.create_server(lambda: Client(proxy), host, port, backlog=BACKLOG)
    try:
        yield proxy, server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await proxy.drain(drain_s)
        for task in background:
            task.cancel()
        await asyncio.gather(*background, *proxy.tasks, return_exceptions=True)
