"""envd's HTTP server on a socket of its own, for a test's handler."""

import asyncio
import socket
from contextlib import asynccontextmanager

from opene2b.connect.listener import HttpServer


@asynccontextmanager
async def serving(handler):
    """Gives the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    server = HttpServer(handler)
    await server.open(listener)
    try:
        yield listener.getsockname()[1]
    finally:
        await server.close(grace_s=0)
        await asyncio.sleep(0)
