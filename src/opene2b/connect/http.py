"""Requests and responses, as handlers see them: the same over HTTP/1.1 and HTTP/2."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import parse_qs, unquote

from opene2b.core.errors import InvalidArgument, LimitExceeded

MAX_HEAD_BYTES = 64 << 10
MAX_HEADERS = 200
MAX_PARAMETERS = 100
DISCARD_BYTES = 256 << 20
"""Of a body that nobody wants: read after the answer, which a client that still sends would otherwise not see."""
DISCARD_LIMIT_S = 10.0
IDLE_LIMIT_S = 640.0
"""How long a connection without a request is kept."""


class Live(Protocol):
    """A connection that is open, as the server knows it."""

    transport: asyncio.Transport

    def tasks(self) -> "list[asyncio.Task[None]]":
        """What is being answered."""

    def close_when_idle(self) -> None:
        """Take no further request; close after the answers under way."""


class Source(Protocol):
    """Where the body of a request comes from."""

    def consumed(self, request: "Request", size: int) -> None:
        """The handler took `size` bytes: as many more may come."""

    def wanted(self, request: "Request") -> None:
        """The client waited to be told that its body is wanted."""


class BodyTooLarge(LimitExceeded):
    """A body over the limit of its reader; HTTP has a status of its own for it."""

    http_status = 413


class Request:
    """One request; its body arrives while the handler runs."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.method = ""
        self.raw_path = b""
        self.raw_query = b""
        self.headers: dict[str, str] = {}
        """Lower-case names; values that came more than once are joined by `, `."""
        self.http_version = "1.1"
        self.keeps_alive = True
        self.expects_continue = False
        self.has_body = False
        self.parts: deque[bytes] = deque()
        self.buffered = 0
        self.complete = False
        self.lost = False
        self.arrived: asyncio.Event = asyncio.Event()
        self.gone: asyncio.Event = asyncio.Event()

    @property
    def path(self) -> str:
        """Percent-decoded; bytes that are not UTF-8 become surrogate escapes, as in file names."""
        return unquote(self.raw_path.decode("latin-1"), errors="surrogateescape")

    @property
    def query(self) -> Mapping[str, Sequence[str]]:
        if not self.raw_query:
            return {}
        try:
            return parse_qs(
                self.raw_query.decode("latin-1"),
                keep_blank_values=True,
                errors="surrogateescape",
                max_num_fields=MAX_PARAMETERS,
            )
        except ValueError as exc:
            raise InvalidArgument(f"there are more than {MAX_PARAMETERS} query parameters") from exc

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives.

        Raises ConnectionResetError when the client went away before its end.
        """
        if self.expects_continue and not self.complete and not self.parts:
            self.source.wanted(self)
        self.expects_continue = False
        while True:
            while self.parts:
                part = self.parts.popleft()
                self.buffered -= len(part)
                self.source.consumed(self, len(part))
                yield part
            if self.complete:
                return
            if self.lost:
                raise ConnectionResetError("the client went away in the middle of its request")
            self.arrived.clear()
            await self.arrived.wait()

    async def read(self, *, limit: int) -> bytes:
        """The whole body. Raises BodyTooLarge when it is longer than `limit` bytes."""
        if self.complete and len(self.parts) <= 1:
            body = self.parts.popleft() if self.parts else b""
            self.buffered = 0
            self.source.consumed(self, len(body))
            if len(body) > limit:
                raise BodyTooLarge(f"body is larger than {limit} bytes")
            return body
        parts, size = [], 0
        async for part in self.chunks():
            size += len(part)
            if size > limit:
                raise BodyTooLarge(f"body is larger than {limit} bytes")
            parts.append(part)
        return b"".join(parts)

    def add(self, data: bytes) -> None:
        """More of the body has arrived."""
        self.parts.append(data)
        self.buffered += len(data)
        self.arrived.set()

    def finish(self) -> None:
        """All of the body has arrived."""
        self.complete = True
        self.arrived.set()

    def lose(self) -> None:
        """The client has gone, or wants no answer any more."""
        self.lost = True
        self.gone.set()
        self.arrived.set()

    async def discard(self) -> None:
        """Read what is left of the body, within bounds of size and time."""
        size = 0
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            async with asyncio.timeout(DISCARD_LIMIT_S):
                async for part in self.chunks():
                    size += len(part)
                    if size > DISCARD_BYTES:
                        return

    async def disconnected(self) -> None:
        """Return when the client has gone."""
        await self.gone.wait()


@dataclass(frozen=True, slots=True)
class FileBody:
    """A part of an open file, sent by the kernel. The server closes the descriptor."""

    fd: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    headers: Sequence[tuple[str, str]] = ()
    body: bytes | AsyncIterator[bytes] | FileBody = b""
    """An iterator is sent chunk by chunk, each as soon as it is there."""


Handler = Callable[[Request], Awaitable[Response]]
