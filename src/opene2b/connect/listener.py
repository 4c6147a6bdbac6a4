"""The HTTP server of envd: a socket that already listens, HTTP/1.1 and HTTP/2 without TLS."""

import asyncio
import socket

from opene2b.connect import http1
from opene2b.connect.http import Handler, Live


class HttpServer:
    """Serves a listening socket until closed."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.connections: set[Live] = set()
        self.server: asyncio.Server | None = None

    async def open(self, listener: socket.socket) -> None:
        self.server = await asyncio.get_running_loop().create_server(
            lambda: http1.Connection(self.handler, self.connections), sock=listener
        )

    async def close(self, *, grace_s: float = 1.0) -> None:
        """Stop accepting; let running answers finish for `grace_s` seconds, then end them."""
        if self.server is not None:
            self.server.close()
        for connection in list(self.connections):
            connection.close_when_idle()
        tasks = [task for connection in self.connections for task in connection.tasks()]
        if tasks:
            await asyncio.wait(tasks, timeout=grace_s)
        for connection in list(self.connections):
            connection.transport.abort()
