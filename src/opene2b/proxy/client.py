"""A client's connection: parse its requests, answer them in their order, and keep what it can make us hold bounded."""

import asyncio
import logging
import socket
from collections import deque
from typing import TYPE_CHECKING

import httptools

from opene2b.proxy import head as heads
from opene2b.proxy import pages, upstream
from opene2b.proxy.forward import Exchange, Request
from opene2b.proxy.head import HEAD_LIMIT_BYTES, BadHead, Headers

if TYPE_CHECKING:
    from opene2b.proxy.server import Proxy

log = logging.getLogger(__name__)

HEAD_LIMIT_S = 10.0
"""From the first byte of a head to its end."""
IDLE_LIMIT_S = 620.0
"""Between requests. Source: E2B sandbox proxy contract, protocol."""
LINGER_S = 5.0
"""How long the rest of a refused request is read: a client that is still sending sees no answer that came
with a reset."""
LOOK_S = 3.0
"""How often a connection that is not read is looked at: its end would not be seen else."""
TCP_CLOSE, TCP_CLOSE_WAIT = 7, 8
"""Source: linux/tcp_states.h."""
BODY_HIGH_BYTES = 256 << 10
MOST_PIPELINED = 16
KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
)
"""A stream may be silent for hours: only the kernel can tell that its client lost power meanwhile."""


class Client(asyncio.Protocol):
    def __init__(self, proxy: "Proxy") -> None:
        self.proxy = proxy
        self.loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None
        self.parser = httptools.HttpRequestParser(self)
        self.waiting: deque[Request] = deque()
        """Requests behind the one that is being answered."""
        self.current: Request | None = None
        """Whose body is arriving."""
        self.latest: Request | None = None
        """Whose head came last."""
        self.exchange: Exchange | None = None
        self.refusal: bytes | None = None
        """Our last answer to this client, as soon as those before it are given."""
        self.is_deaf = False
        """Whatever comes now is not read."""
        self.is_write_paused = False
        self.is_reading_paused = False
        self.is_half_closed = False
        self.is_in_head = False
        self.has_progressed = False
        self.idle_bytes = 0
        """Received since the last end of a head, part of a body or end of a message: heads, trailers and extensions of
        chunks are bounded by it."""
        self.url = b""
        self.headers: Headers = []
        self.idle_since = self.loop.time()
        self.idle_timer: asyncio.TimerHandle | None = None
        self.head_timer: asyncio.TimerHandle | None = None
        self.linger_timer: asyncio.TimerHandle | None = None
        self.look_timer: asyncio.TimerHandle | None = None

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.proxy.clients.add(self)
        connection = transport.get_extra_info("socket")
        for option in KEEPALIVE:
            connection.setsockopt(*option)
        self.idle_timer = self.loop.call_later(IDLE_LIMIT_S, self.check_idle)

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is not None and exchange.is_tunnel:
            exchange.tunnel_up(data)
            return
        if self.is_deaf:
            if exchange is not None and exchange.request.head.upgrade is not None:
                exchange.request.after_upgrade += data
                self.update_reading()
            return
        self.has_progressed = False
        try:
            self.feed(data)
        except (httptools.HttpParserError, BadHead) as exc:
            self.refuse(exc)
        self.idle_bytes = 0 if self.has_progressed else self.idle_bytes + len(data)
        if self.idle_bytes > HEAD_LIMIT_BYTES:
            self.refuse(BadHead("the head of the request is too large", 431))
        elif self.is_in_head and self.head_timer is None:
            self.head_timer = self.loop.call_later(HEAD_LIMIT_S, self.head_is_late)
        self.advance()
        self.update_reading()

    def feed(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as exc:
                rest = data[exc.args[0] :]
                if self.latest is not None and self.latest.head.upgrade is not None:
                    self.is_deaf = True
                    self.latest.after_upgrade = rest
                    return
                # To a protocol that we do not pass on, which is as if the client had not asked.
                self.parser = httptools.HttpRequestParser(self)
                data = rest
            else:
                return

    def eof_received(self) -> bool:
        self.is_half_closed = True
        return self.exchange is not None and self.exchange.is_tunnel and self.exchange.client_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.proxy.forget(self)
        for timer in (self.idle_timer, self.head_timer, self.linger_timer, self.look_timer):
            if timer is not None:
                timer.cancel()
        self.waiting.clear()
        self.current = self.latest = None
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.client_lost(exc)

    def pause_writing(self) -> None:
        self.is_write_paused = True
        transport = self.upstream_transport()
        if transport is not None:
            transport.pause_reading()

    def resume_writing(self) -> None:
        self.is_write_paused = False
        transport = self.upstream_transport()
        if transport is not None:
            transport.resume_reading()
        self.update_reading()

    def upstream_transport(self) -> asyncio.Transport | None:
        if self.exchange is None or self.exchange.upstream is None:
            return None
        return self.exchange.upstream.transport

    # httptools

    def on_message_begin(self) -> None:
        self.is_in_head = True
        self.url, self.headers = b"", []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        # What comes behind a body is a trailer. It has no way to be a header: whatever was checked is on its way.
        if self.is_in_head:
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.is_in_head = False
        self.has_progressed = True
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > HEAD_LIMIT_BYTES:
            raise BadHead("the head of the request is too large", 431)
        head = heads.request(
            self.parser.get_method(), self.url, self.parser.get_http_version(), self.headers
        )
        self.current = self.latest = Request(head)
        self.waiting.append(self.current)

    def on_body(self, body: bytes) -> None:
        # The parser also reports nothing, where a packet ends between a chunk's size and its bytes: passed on as a
        # chunk, that would be the end of the body.
        self.has_progressed = True
        if self.current is not None and body:
            self.current.add(body)

    def on_message_complete(self) -> None:
        self.has_progressed = True
        done, self.current = self.current, None
        if done is None:
            return
        done.finish()
        if done.is_discarded and self.linger_timer is not None:
            self.close()

    # the order of answers

    def advance(self) -> None:
        """Begin the next exchange, if none is under way. Not from a callback of the parser: what has arrived of a body
        goes out in one write with its head."""
        while self.exchange is None and self.waiting and self.transport is not None:
            exchange = self.exchange = Exchange(self, self.waiting.popleft())
            exchange.start()
        if self.exchange is None and self.refusal is not None:
            refusal, self.refusal = self.refusal, None
            self.write(refusal)
            self.linger()

    def exchange_ended(self, exchange: Exchange, *, keeps_alive: bool) -> None:
        if self.exchange is not exchange:
            return
        self.exchange = None
        self.idle_since = self.loop.time()
        request = exchange.request
        if not request.is_complete:
            request.discard()
            self.waiting.clear()
            self.linger()
        elif (
            not keeps_alive
            or self.proxy.is_draining
            or (self.is_deaf and self.refusal is None and not self.waiting)
        ):
            self.close()
        else:
            # Not from within the parser's or the sandbox's callback: a thousand queued requests are no recursion.
            if self.waiting or self.refusal is not None:
                self.loop.call_soon(self.advance)
            self.update_reading()

    def refuse(self, exc: Exception) -> None:
        """What came is no request: say so after the answers that are still due, and hear no more."""
        cause = exc.__context__ if isinstance(exc.__context__, BadHead) else exc
        broken, self.current = self.current, None
        if broken is not None and broken.exchange is not None and not broken.is_discarded:
            # In the middle of a body: its answer, if any, would be of a request that never was.
            self.abort()
            return
        self.is_deaf = True
        self.is_in_head = False
        if broken is not None and broken.is_discarded:
            return
        if broken is not None:
            self.waiting.remove(broken)
        status = cause.status if isinstance(cause, BadHead) else 400
        message = str(cause) if isinstance(cause, BadHead) else "Malformed request"
        self.refusal = pages.plain(status, message).encode(with_body=True, close=True)

    def linger(self) -> None:
        """Read and drop for a moment, then close."""
        self.is_deaf = self.current is None
        if self.transport is not None and self.linger_timer is None:
            if self.is_deaf and self.transport.can_write_eof():
                self.transport.write_eof()
            self.linger_timer = self.loop.call_later(LINGER_S, self.close)
        self.update_reading()

    # flow

    def update_reading(self) -> None:
        if self.transport is None or self.transport.is_closing():
            return
        wanted = not self.should_pause()
        if wanted and self.is_reading_paused:
            self.is_reading_paused = False
            self.transport.resume_reading()
        elif not wanted and not self.is_reading_paused:
            self.is_reading_paused = True
            self.transport.pause_reading()
            if self.look_timer is None:
                self.look_timer = self.loop.call_later(LOOK_S, self.look)

    def should_pause(self) -> bool:
        if len(self.waiting) >= MOST_PIPELINED:
            return True
        exchange = self.exchange
        if exchange is None and self.is_write_paused and self.linger_timer is None:
            # It asks and asks, and reads none of our answers.
            return True
        if self.current is not None and self.current.buffered >= BODY_HIGH_BYTES:
            return True
        if exchange is None:
            return False
        if len(exchange.request.after_upgrade) >= BODY_HIGH_BYTES:
            return True
        return exchange.upstream is not None and exchange.upstream.is_write_paused

    def write(self, data: bytes) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def write_eof(self) -> None:
        if self.transport is not None and self.transport.can_write_eof():
            self.transport.write_eof()

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        if self.transport is not None:
            upstream.reset(self.transport)

    # time

    def check_idle(self) -> None:
        now = self.loop.time()
        busy = self.exchange is not None or self.is_in_head
        left_s = IDLE_LIMIT_S - (0 if busy else now - self.idle_since)
        if left_s <= 0:
            if self.transport is None or self.transport.is_closing():
                # Closed a while ago, but the client does not read what it still has to get.
                self.abort()
                return
            self.close()
            self.idle_timer = self.loop.call_later(IDLE_LIMIT_S, self.check_idle)
        else:
            self.idle_timer = self.loop.call_later(left_s, self.check_idle)

    def look(self) -> None:
        """Whether a client that is not read is still there."""
        self.look_timer = None
        if self.transport is None or not self.is_reading_paused:
            return
        connection = self.transport.get_extra_info("socket")
        state = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        is_tunnel = self.exchange is not None and self.exchange.is_tunnel
        # Half-closed is a way to live in a tunnel only.
        if state == TCP_CLOSE or (state == TCP_CLOSE_WAIT and not is_tunnel):
            self.abort()
        else:
            self.look_timer = self.loop.call_later(LOOK_S, self.look)

    def head_is_late(self) -> None:
        self.head_timer = None
        if self.is_in_head and self.is_reading_paused:
            # It is we who do not read.
            self.head_timer = self.loop.call_later(HEAD_LIMIT_S, self.head_is_late)
        elif self.is_in_head:
            self.refuse(BadHead("the head of the request took too long", 408))
            self.advance()
