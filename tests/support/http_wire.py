"""HTTP/1.1 by hand, so that tests decide about every byte: both ends of a conversation over real sockets."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

LIMIT_S = 10
"""For everything that a test waits for."""


@dataclass
class Message:
    """A response or request as read: its first line, headers by lower-case name, unframed body."""

    first: str
    headers: dict[str, str]
    body: bytes = b""

    @property
    def status(self) -> int:
        return int(self.first.split()[1])


class Wire:
    """One end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        async with asyncio.timeout(LIMIT_S):
            await self.writer.drain()

    async def exactly(self, size: int) -> bytes:
        async with asyncio.timeout(LIMIT_S):
            return await self.reader.readexactly(size)

    async def until(self, separator: bytes) -> bytes:
        async with asyncio.timeout(LIMIT_S):
            return await self.reader.readuntil(separator)

    async def rest(self) -> bytes:
        """Everything up to the end that the other side declares; ConnectionResetError where there is none."""
        async with asyncio.timeout(LIMIT_S):
            return await self.reader.read()

    async def head(self) -> Message:
        first, *lines = (await self.until(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            key = name.lower()
            headers[key] = f"{headers[key]}, {value.strip()}" if key in headers else value.strip()
        return Message(first, headers)

    async def chunk(self) -> bytes:
        """One chunk, empty at the end."""
        size = int((await self.until(b"\r\n")).strip(), 16)
        data = await self.exactly(size)
        assert await self.exactly(2) == b"\r\n"
        return data

    async def message(self, *, has_body: bool = True) -> Message:
        """A whole request or response."""
        message = await self.head()
        if not has_body:
            return message
        if message.headers.get("transfer-encoding") == "chunked":
            while part := await self.chunk():
                message.body += part
        elif "content-length" in message.headers:
            message.body = await self.exactly(int(message.headers["content-length"]))
        return message

    async def closed(self) -> bool:
        """Wait for the end of the connection: True if it was a clean one, False for a reset."""
        try:
            await self.rest()
        except ConnectionResetError:
            return False
        return True

    def tcp_state(self) -> str:
        """`open`, `half-closed` by the other side, or `closed`."""
        connection = self.writer.get_extra_info("socket")
        state = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        return {1: "open", 7: "closed", 8: "half-closed"}.get(state, str(state))

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    def reset(self) -> None:
        """End it so that the other side sees no clean end."""
        connection = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@contextlib.asynccontextmanager
async def connect(port: int, *, limit: int = 2**16) -> AsyncIterator[Wire]:
    wire = Wire(*await asyncio.open_connection("127.0.0.1", port, limit=limit))
    try:
        yield wire
    finally:
        await wire.close()


Handler = Callable[[Wire], Awaitable[None]]


class Service:
    """A server in a sandbox: a coroutine for each connection."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.port = 0
        self.connections: list[Wire] = []
        """All that ever came."""
        self.failures: list[BaseException] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.server: asyncio.Server | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        wire = Wire(reader, writer)
        self.connections.append(wire)
        try:
            await self.handler(wire)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the other side left: what follows from it is the test's to see
        except asyncio.CancelledError:
            pass
        except BaseException as exc:
            self.failures.append(exc)
        finally:
            try:
                await wire.close()
            except asyncio.CancelledError:
                # At the end of the test; a task of a server that ends as cancelled is reported as a failure.
                wire.writer.transport.abort()
            self.tasks.discard(task)

    async def open(self) -> None:
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]

    async def shut(self) -> None:
        """Listen no more and end what there is."""
        if self.server is not None:
            self.server.close()
        for task in list(self.tasks):
            task.cancel()
        if self.tasks:
            await asyncio.wait(list(self.tasks), timeout=LIMIT_S)


async def echo(wire: Wire) -> None:
    """Answers every request with what it was: its first line, its headers, its body."""
    while True:
        request = await wire.message()
        lines = [request.first, *(f"{name}: {value}" for name, value in request.headers.items())]
        body = "\n".join(lines).encode("latin-1") + b"\n\n" + request.body
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
