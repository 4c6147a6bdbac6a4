"""HTTP/1.1 for envd: asyncio and httptools.

Small because envd may import nothing after its start and every sandbox pays for its memory; not uvloop because
that spawns processes several times slower. It answers pipelined requests in order, streams both ways with
back-pressure, and bounds everything that a client can make it keep. A connection that begins with the preface of
HTTP/2 is handed on.
"""

import asyncio
import contextlib
import logging
import os
import socket
from collections import deque
from http import HTTPStatus

import httptools

from opene2b.connect import http2
from opene2b.connect.http import (
    DISCARD_BYTES,
    DISCARD_LIMIT_S,
    IDLE_LIMIT_S,
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    FileBody,
    Handler,
    Live,
    Request,
    Response,
)

log = logging.getLogger(__name__)

MAX_PIPELINED = 16
BODY_HIGH_BYTES = 256 << 10
"""Unread body at which reading from the client pauses."""
BODY_LOW_BYTES = 64 << 10
HEAD_LIMIT_S = 10.0
"""From the first byte of a head to its end."""

REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}


class Connection(asyncio.Protocol):
    """One client connection. Requests are answered one after another, in order."""

    def __init__(self, handler: Handler, connections: set[Live]) -> None:
        self.handler = handler
        self.connections = connections
        self.is_fresh = True
        """Nothing has arrived yet that tells HTTP/1.1 from HTTP/2."""
        self.opening = b""
        self.loop = asyncio.get_running_loop()
        self.parser = httptools.HttpRequestParser(self)
        self.transport: asyncio.Transport
        self.request: Request | None = None
        """The one whose head or body is arriving."""
        self.waiting: deque[Request] = deque()
        self.task: asyncio.Task[None] | None = None
        self.current: Request | None = None
        """The one being answered."""
        self.head_bytes = 0
        self.url = b""
        self.reading_paused = False
        self.can_write = asyncio.Event()
        self.can_write.set()
        self.timer: asyncio.TimerHandle | None = None
        self.closing = False
        self.unwanted = 0
        """Bytes that came after it was decided to close."""

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        connection: socket.socket = transport.get_extra_info("socket")
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connections.add(self)
        self.set_timer(IDLE_LIMIT_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)
        self.cancel_timer()
        self.can_write.set()
        for request in (self.request, self.current, *self.waiting):
            if request is not None:
                request.lose()
        self.waiting.clear()
        if self.task is not None:
            self.task.cancel()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self.can_write.clear()

    def resume_writing(self) -> None:
        self.can_write.set()

    def data_received(self, data: bytes) -> None:
        if self.closing:
            self.unwanted += len(data)
            if self.unwanted > DISCARD_BYTES:
                self.transport.close()
            return
        if self.is_fresh:
            data = self.opening + data
            if http2.PREFACE.startswith(data[: len(http2.PREFACE)]):
                self.greet(data)
                return
            self.is_fresh = False
        if self.request is None:
            # The first byte of a head starts its clock.
            self.head_bytes = 0
            if self.current is None:
                self.set_timer(HEAD_LIMIT_S)
        in_head = self.request is None or not self.request.method
        if in_head:
            self.head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as exc:
            # Upgrades are not offered: the request is one like others, and what follows it as well.
            self.parser = httptools.HttpRequestParser(self)
            if rest := data[exc.args[0] :]:
                self.data_received(rest)
        except httptools.HttpParserCallbackError as exc:
            cause = exc.__context__
            if isinstance(cause, Refused):
                self.refuse(cause.status, cause.message)
            else:
                log.error("http_parser_callback", exc_info=exc)
                self.refuse(500, "the request could not be read")
        except httptools.HttpParserError:
            self.refuse(400, "malformed request")
        else:
            head_unfinished = self.request is not None and not self.request.method
            if head_unfinished and self.head_bytes > MAX_HEAD_BYTES:
                self.refuse(431, f"request head is larger than {MAX_HEAD_BYTES} bytes")

    def greet(self, data: bytes) -> None:
        """The connection begins as one of HTTP/2 does, as far as can be seen."""
        if len(data) < len(http2.PREFACE):
            self.opening = data
            if len(data) == 1 or self.timer is None:
                self.set_timer(HEAD_LIMIT_S)
            return
        self.cancel_timer()
        self.connections.discard(self)
        self.opening = b""
        successor = http2.Connection(self.handler, self.connections)
        self.transport.set_protocol(successor)
        successor.connection_made(self.transport)
        successor.data_received(data)

    # httptools callbacks

    def on_message_begin(self) -> None:
        self.request = Request(self)
        self.url = b""

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        request = self.request
        assert request is not None
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1")
        if key in request.headers:
            if key in {"content-length", "host", "transfer-encoding"}:
                raise Refused(400, f"header {key} is given twice")
            text = f"{request.headers[key]}, {text}"
        request.headers[key] = text
        if len(request.headers) > MAX_HEADERS:
            raise Refused(431, f"more than {MAX_HEADERS} headers")

    def on_headers_complete(self) -> None:
        request = self.request
        assert request is not None
        headers = request.headers
        if "transfer-encoding" in headers:
            if "content-length" in headers:
                raise Refused(400, "both Content-Length and Transfer-Encoding are given")
            if headers["transfer-encoding"].strip().lower() != "chunked":
                raise Refused(501, "this transfer encoding is not supported")
        url = self.url
        if url[:1] != b"/":
            # absolute-form, as proxies send it; anything else has no path here.
            parsed = httptools.parse_url(url)
            url = (parsed.path or b"/") + (b"?" + parsed.query if parsed.query else b"")
        request.raw_path, _, rest = url.partition(b"?")
        request.raw_query = rest.partition(b"#")[0]
        request.http_version = self.parser.get_http_version()
        request.keeps_alive = self.parser.should_keep_alive()
        request.expects_continue = headers.get("expect", "").lower() == "100-continue"
        request.has_body = (
            "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
        )
        request.complete = not request.has_body
        request.method = self.parser.get_method().decode("latin-1")
        self.cancel_timer()
        self.waiting.append(request)
        if len(self.waiting) >= MAX_PIPELINED:
            self.pause_reading()
        if self.task is None:
            self.task = self.loop.create_task(self.answer_all())

    def on_body(self, data: bytes) -> None:
        request = self.request
        assert request is not None
        request.add(data)
        if request.buffered > BODY_HIGH_BYTES:
            self.pause_reading()

    def on_message_complete(self) -> None:
        request = self.request
        assert request is not None
        request.finish()
        self.request = None
        self.head_bytes = 0

    # answering

    async def answer_all(self) -> None:
        try:
            while self.waiting:
                request = self.waiting.popleft()
                self.current = request
                if len(self.waiting) < MAX_PIPELINED and request.buffered <= BODY_HIGH_BYTES:
                    self.resume_reading()
                keeps = await self.answer(request)
                self.current = None
                if not keeps:
                    await self.linger(request)
                    self.close()
                    return
        finally:
            self.task = None
            if self.current is not None:
                # The answer could not be finished: the client must not take it for whole.
                self.transport.abort()
        if not self.closing:
            self.set_timer(IDLE_LIMIT_S if self.request is None else HEAD_LIMIT_S)

    async def linger(self, request: Request) -> None:
        """Closing a connection with unread bytes resets it, and the answer is lost on its way."""
        if request.complete or request.lost or self.transport.is_closing():
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.resume_reading()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DISCARD_LIMIT_S):
                await request.disconnected()

    async def answer(self, request: Request) -> bool:
        """Answer one request; returns whether the connection can carry another."""
        try:
            response = await self.handler(request)
        except ConnectionResetError:
            return False
        keeps = request.keeps_alive and not self.closing
        if not request.complete and isinstance(response.body, bytes | FileBody):
            # The handler did not want the rest of the body: we will not read it either. (One that
            # answers while it reads is asked again at its end.)
            keeps = False
        await self.send(request, response, keeps)
        return keeps and request.complete

    async def send(self, request: Request, response: Response, keeps: bool) -> None:
        body = response.body
        lines = [b"HTTP/1.1 %d %s\r\n" % (response.status, REASONS.get(response.status, b""))]
        for name, value in response.headers:
            lines.append(f"{name}: {value}\r\n".encode("latin-1"))
        without_body = request.method == "HEAD" or response.status in {204, 304}
        chunked = False
        if isinstance(body, bytes):
            if response.status != 204:
                lines.append(b"Content-Length: %d\r\n" % len(body))
        elif isinstance(body, FileBody):
            lines.append(b"Content-Length: %d\r\n" % body.length)
        elif request.http_version == "1.1":
            chunked = True
            lines.append(b"Transfer-Encoding: chunked\r\n")
        else:
            keeps = False
        if not keeps:
            lines.append(b"Connection: close\r\n")
            self.closing = True
        lines.append(b"\r\n")
        if isinstance(body, bytes):
            if not without_body:
                lines.append(body)
            self.write(b"".join(lines))
            if not self.can_write.is_set():
                await self.can_write.wait()
            return
        if isinstance(body, FileBody):
            self.write(b"".join(lines))
            await self.send_file(body, without_body)
            return
        head = b"".join(lines)
        try:
            if not without_body:
                async for chunk in body:
                    if chunk:
                        # The head goes out with the first part: some clients stop sending their request as soon as
                        # they see the head of an answer, and an iterator that reads the request has done so by now.
                        self.write(
                            head + (b"%x\r\n%b\r\n" % (len(chunk), chunk) if chunked else chunk)
                        )
                        head = b""
                        if not self.can_write.is_set():
                            await self.can_write.wait()
                if chunked:
                    head += b"0\r\n\r\n"
            if head:
                self.write(head)
        finally:
            close = getattr(body, "aclose", None)
            if close is not None:
                await close()

    async def send_file(self, body: FileBody, without_body: bool) -> None:
        with os.fdopen(body.fd, "rb", buffering=0) as file:
            if without_body or body.length == 0:
                return
            sent = await self.loop.sendfile(self.transport, file, body.offset, body.length)
            if sent < body.length:
                raise ConnectionResetError("the file became shorter while it was sent")

    def write(self, data: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(data)

    def refuse(self, status: int, message: str) -> None:
        """Answer what could not be read as a request, and end the connection."""
        if self.closing:
            return
        self.closing = True
        if self.task is None:
            body = b'{"code":%d,"message":"%b"}' % (status, message.encode())
            self.write(
                b"HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
                b"Connection: close\r\n\r\n%b" % (status, REASONS.get(status, b""), len(body), body)
            )
            self.close()
        else:
            # An answer is under way; there is no place for another in it.
            self.transport.abort()

    def close(self) -> None:
        self.closing = True
        self.transport.close()

    def tasks(self) -> list[asyncio.Task[None]]:
        return [] if self.task is None else [self.task]

    def close_when_idle(self) -> None:
        """Close now if nothing is being answered, else after the current answer."""
        self.closing = True
        if self.task is None:
            self.transport.close()

    # clocks and flow

    def consumed(self, request: Request, size: int) -> None:
        if request.buffered <= BODY_LOW_BYTES:
            self.resume_reading()

    def wanted(self, request: Request) -> None:
        self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def pause_reading(self) -> None:
        if not self.reading_paused and not self.transport.is_closing():
            self.reading_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self.reading_paused and not self.transport.is_closing():
            self.reading_paused = False
            self.transport.resume_reading()

    def set_timer(self, limit_s: float) -> None:
        self.cancel_timer()
        self.timer = self.loop.call_later(limit_s, self.close)

    def cancel_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Refused(Exception):
    """Raised in a parser callback: the request cannot be accepted."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
