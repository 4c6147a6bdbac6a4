"""HTTP/2 without TLS (prior knowledge), for clients that carry many calls over one connection.

The protocol itself is the `h2` library's; here are its streams joined to handlers. What a client can make it keep is
bounded: streams, heads and, by the windows that it is given, bodies.
Source: RFC 9113.
"""

import asyncio
import contextlib
import logging
import os
import socket

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

from opene2b.connect.http import (
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

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MAX_STREAMS = 250
"""At once, on one connection."""
STREAM_WINDOW_BYTES = 256 << 10
"""Unread body of one request."""
CONNECTION_WINDOW_BYTES = 1 << 20
"""Unread bodies of all requests of a connection together."""
FILE_READ_BYTES = 256 << 10
MAX_RESETS = 1000
"""Requests of one connection that the client took back, more than it let be answered: a flood."""
CONNECTION_HEADERS = {
    "connection",
    "keep-alive",
    "proxy-connection",
    "transfer-encoding",
    "upgrade",
}


class Stream:
    """One request and the task that answers it."""

    def __init__(self, stream_id: int, request: Request) -> None:
        self.id = stream_id
        self.request = request
        self.task: asyncio.Task[None]
        self.window = asyncio.Event()
        """The client will take more of the answer."""


class Connection(asyncio.Protocol):
    """One client connection; its requests are answered side by side."""

    def __init__(self, handler: Handler, connections: set[Live]) -> None:
        self.handler = handler
        self.connections = connections
        self.loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport
        self.streams: dict[int, Stream] = {}
        self.requests: dict[int, Stream] = {}
        """By the identity of their request."""
        self.can_write = asyncio.Event()
        self.can_write.set()
        self.timer: asyncio.TimerHandle | None = None
        self.closing = False
        self.resets = 0
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding=None))

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        connection: socket.socket = transport.get_extra_info("socket")
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connections.add(self)
        # Known to both ends from the first frame on; what is changed later counts only when it is acknowledged.
        self.h2.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
                SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES,
                SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEAD_BYTES,
            },
        )
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(CONNECTION_WINDOW_BYTES - 65535)
        self.flush()
        self.set_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)
        self.cancel_timer()
        self.can_write.set()
        for stream in list(self.streams.values()):
            self.drop(stream)

    def pause_writing(self) -> None:
        self.can_write.clear()

    def resume_writing(self) -> None:
        self.can_write.set()

    def data_received(self, data: bytes) -> None:
        try:
            events = self.h2.receive_data(data)
        except ProtocolError as exc:
            log.info("http2_protocol_error: %s", exc)
            self.flush()
            self.transport.close()
            return
        for event in events:
            self.take(event)
        self.flush()

    # what the client says

    def take(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            self.begin(event)
        elif isinstance(event, DataReceived):
            stream = self.streams.get(event.stream_id)
            if stream is None:
                self.acknowledge(event.flow_controlled_length, event.stream_id)
                return
            # Padding is nobody's to read.
            self.acknowledge(event.flow_controlled_length - len(event.data), event.stream_id)
            stream.request.add(event.data)
        elif isinstance(event, StreamEnded):
            if stream := self.streams.get(event.stream_id):
                stream.request.finish()
        elif isinstance(event, StreamReset):
            self.resets += 1
            if stream := self.streams.get(event.stream_id):
                self.drop(stream)
            if self.resets > MAX_RESETS:
                self.end(ErrorCodes.ENHANCE_YOUR_CALM)
        elif isinstance(event, WindowUpdated):
            self.open_window(event.stream_id)
        elif isinstance(event, RemoteSettingsChanged):
            self.open_window(0)
        elif isinstance(event, ConnectionTerminated):
            self.close_when_idle()

    def begin(self, event: RequestReceived) -> None:
        stream_id = event.stream_id
        if self.closing:
            self.reset(stream_id, ErrorCodes.REFUSED_STREAM)
            return
        request = Request(self)
        request.http_version = "2"
        headers = request.headers
        for name, value in event.headers or ():
            key, text = name.decode("latin-1"), value.decode("latin-1")
            if key == ":method":
                request.method = text
            elif key == ":path":
                path, _, query = value.partition(b"?")
                request.raw_path, request.raw_query = path, query.partition(b"#")[0]
            elif key == ":authority":
                headers["host"] = text
            elif not key.startswith(":"):
                headers[key] = f"{headers[key]}, {text}" if key in headers else text
        if len(headers) > MAX_HEADERS:
            self.reset(stream_id, ErrorCodes.ENHANCE_YOUR_CALM)
            return
        request.expects_continue = headers.get("expect", "").lower() == "100-continue"
        request.complete = event.stream_ended is not None
        request.has_body = not request.complete
        stream = Stream(stream_id, request)
        self.streams[stream_id] = self.requests[id(request)] = stream
        self.cancel_timer()
        stream.task = self.loop.create_task(self.answer(stream))

    def open_window(self, stream_id: int) -> None:
        """Stream 0 is the connection: all of them may go on."""
        for stream in list(self.streams.values()):
            if stream_id in (0, stream.id):
                stream.window.set()

    # bodies of requests

    def consumed(self, request: Request, size: int) -> None:
        stream = self.requests.get(id(request))
        if stream is not None:
            self.acknowledge(size, stream.id)
            self.flush()

    def wanted(self, request: Request) -> None:
        if stream := self.requests.get(id(request)):
            self.h2.send_headers(stream.id, [(b":status", b"100")])
            self.flush()

    def acknowledge(self, size: int, stream_id: int) -> None:
        """Let the client send as much again; of a stream that has ended, the connection's share alone counts."""
        if size:
            with contextlib.suppress(ProtocolError):
                self.h2.acknowledge_received_data(size, stream_id)

    # answering

    async def answer(self, stream: Stream) -> None:
        request = stream.request
        is_whole = False
        try:
            response = await self.handler(request)
            await self.send(stream, response)
            is_whole = True
            await request.discard()
            self.resets = max(0, self.resets - 1)
        except (ConnectionError, ProtocolError):
            log.debug("http2_stream_broken", exc_info=True)
        finally:
            self.forget(stream)
            if not is_whole:
                self.reset(stream.id, ErrorCodes.INTERNAL_ERROR)
            elif not request.complete:
                # The rest of the body is not wanted; the answer stands.
                self.reset(stream.id, ErrorCodes.NO_ERROR)
            self.flush()
            if not self.streams:
                if self.closing:
                    self.end(ErrorCodes.NO_ERROR)
                else:
                    self.set_timer()

    async def send(self, stream: Stream, response: Response) -> None:
        body = response.body
        headers = [(b":status", b"%d" % response.status)]
        for name, value in response.headers:
            if name.lower() not in CONNECTION_HEADERS:
                headers.append((name.lower().encode("latin-1"), value.encode("latin-1")))
        without_body = stream.request.method == "HEAD" or response.status in {204, 304}
        if isinstance(body, bytes):
            if response.status != 204:
                headers.append((b"content-length", b"%d" % len(body)))
            if without_body:
                body = b""
            self.h2.send_headers(stream.id, headers, end_stream=not body)
            if body:
                await self.send_data(stream, body, is_last=True)
        elif isinstance(body, FileBody):
            headers.append((b"content-length", b"%d" % body.length))
            await self.send_file(stream, headers, body, without_body)
        else:
            self.h2.send_headers(stream.id, headers, end_stream=without_body)
            try:
                if not without_body:
                    async for chunk in body:
                        if chunk:
                            await self.send_data(stream, chunk, is_last=False)
                    self.h2.end_stream(stream.id)
            finally:
                close = getattr(body, "aclose", None)
                if close is not None:
                    await close()
        self.flush()

    async def send_file(
        self,
        stream: Stream,
        headers: list[tuple[bytes, bytes]],
        body: FileBody,
        without_body: bool,
    ) -> None:
        with os.fdopen(body.fd, "rb", buffering=0):
            left = 0 if without_body else body.length
            self.h2.send_headers(stream.id, headers, end_stream=not left)
            while left:
                chunk = os.pread(
                    body.fd, min(left, FILE_READ_BYTES), body.offset + body.length - left
                )
                if not chunk:
                    raise ConnectionResetError("the file became shorter while it was sent")
                left -= len(chunk)
                await self.send_data(stream, chunk, is_last=not left)
                await asyncio.sleep(0)  # reading never waits, so others would never have their turn

    async def send_data(self, stream: Stream, data: bytes, *, is_last: bool) -> None:
        """Send as fast as the client takes it."""
        view = memoryview(data)
        while view:
            room = min(
                self.h2.local_flow_control_window(stream.id), self.h2.max_outbound_frame_size
            )
            if room <= 0:
                stream.window.clear()
                self.flush()
                await stream.window.wait()
                continue
            piece, view = view[:room], view[room:]
            self.h2.send_data(stream.id, piece, end_stream=is_last and not view)
            self.flush()
            if not self.can_write.is_set():
                await self.can_write.wait()

    def flush(self) -> None:
        if (data := self.h2.data_to_send()) and not self.transport.is_closing():
            self.transport.write(data)

    # ends

    def reset(self, stream_id: int, code: ErrorCodes) -> None:
        # A stream that has ended at both sides, or that the client reset itself, needs none.
        with contextlib.suppress(ProtocolError):
            self.h2.reset_stream(stream_id, code)

    def drop(self, stream: Stream) -> None:
        """The client does not want the answer any more."""
        stream.request.lose()
        stream.task.cancel()

    def forget(self, stream: Stream) -> None:
        request = stream.request
        self.acknowledge(request.buffered, stream.id)
        request.parts.clear()
        request.buffered = 0
        self.streams.pop(stream.id, None)
        self.requests.pop(id(request), None)

    def tasks(self) -> list[asyncio.Task[None]]:
        return [stream.task for stream in self.streams.values()]

    def close_when_idle(self) -> None:
        """Close now if nothing is being answered, else after the last answer."""
        self.closing = True
        if not self.streams:
            self.end(ErrorCodes.NO_ERROR)

    def end(self, code: ErrorCodes) -> None:
        self.closing = True
        with contextlib.suppress(ProtocolError):
            self.h2.close_connection(code)
        self.flush()
        self.transport.close()

    def set_timer(self) -> None:
        self.cancel_timer()
        self.timer = self.loop.call_later(IDLE_LIMIT_S, self.close_when_idle)

    def cancel_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
