"""Connections to sandboxes: made by the agent, used by one exchange at a time, kept while they may be of use."""

import asyncio
import logging
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

import httptools

from opene2b.proxy import head as heads
from opene2b.proxy.gateway import Gateway, NotThere, PortClosed, Route
from opene2b.proxy.head import BadHead, Framing, Headers, ResponseHead
from opene2b.proxy.host import ENVD_PORT

if TYPE_CHECKING:
    from opene2b.proxy.forward import Exchange

log = logging.getLogger(__name__)

DIAL_TRIES = 5
DIAL_PAUSE_S = 0.1
"""Grows by itself after each try. Source: E2B sandbox proxy contract, closed ports."""
IDLE_S = 30.0
IDLE_UNSAFE_S = 2.0
"""Servers close idle connections when they like (5 s is common), and a request that may not be sent twice would be
lost in that moment. envd keeps them for minutes."""
IDLE_PER_PORT = 64
HEAD_LIMIT_BYTES = 4 * heads.HEAD_LIMIT_BYTES
INTERIM_LIMIT = 100
"""Answers before the answer."""

Key = tuple[str, int]
"""(execution id, port)."""


class Upstream(asyncio.Protocol):
    """One connection to a service in a sandbox."""

    def __init__(self, pool: "Pool", route: Route, port: int) -> None:
        self.pool = pool
        self.route = route
        self.port = port
        self.transport: asyncio.Transport | None = None
        self.exchange: Exchange | None = None
        self.was_used = False
        self.is_gone = False
        """Its sandbox has ended."""
        self.idle_since = 0.0
        self.is_write_paused = False
        self.is_half_closed = False
        self.reset_message()

    @property
    def key(self) -> Key:
        return (self.route.execution_id, self.port)

    def reset_message(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.reason = b""
        self.headers: Headers = []
        self.head: ResponseHead | None = None
        self.has_progressed = False
        self.idle_bytes = 0
        """As in Client."""
        self.has_spoken = False
        self.interims = 0
        self.is_interim = False
        self.is_complete = False
        self.is_tainted = False
        """It said more than it was asked for."""

    def begin(self, exchange: "Exchange") -> None:
        self.exchange = exchange
        self.reset_message()

    def release(self, *, reusable: bool) -> None:
        """The exchange is over."""
        self.exchange = None
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if not reusable or self.is_gone:
            transport.close()
            return
        transport.resume_reading()
        self.was_used = True
        self.idle_since = asyncio.get_running_loop().time()
        self.pool.put(self)

    def abort(self) -> None:
        """End it at once, in a way that the other side notices."""
        if self.transport is not None:
            reset(self.transport)

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            # A server that speaks without being asked: what it says next could pass for an answer.
            self.abort()
            return
        if exchange.is_tunnel:
            exchange.client.write(data)
            return
        self.has_spoken = True
        self.has_progressed = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as exc:
            self.upgraded(exchange, data[exc.args[0] :])
            return
        except (httptools.HttpParserError, BadHead) as exc:
            if not self.is_complete:
                exchange.upstream_broken(describe(exc))
                return
            # The answer is whole; what follows it belongs to nobody.
            self.is_tainted = True
        self.idle_bytes = 0 if self.has_progressed else self.idle_bytes + len(data)
        if self.idle_bytes > HEAD_LIMIT_BYTES:
            exchange.upstream_broken("the head of the answer is too large")
            return
        if self.head is not None and self.head.status == 101:
            exchange.upstream_broken("a change of protocol that names none")
            return
        exchange.flush()
        if self.is_complete and self.exchange is exchange:
            exchange.response_ended()

    def upgraded(self, exchange: "Exchange", rest: bytes) -> None:
        if self.head is not None and self.head.status == 101 and exchange.request.head.upgrade:
            exchange.begin_tunnel(self.head, rest)
        else:
            exchange.upstream_broken("an upgrade that nobody asked for")

    def eof_received(self) -> bool:
        self.is_half_closed = True
        exchange = self.exchange
        return exchange is not None and exchange.is_tunnel and exchange.upstream_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.pool.drop(self)
        exchange, self.exchange = self.exchange, None
        if exchange is None:
            return
        if (
            self.head is not None
            and self.head.framing is Framing.UNTIL_CLOSE
            and exc is None
            and not self.is_gone
            and not exchange.is_tunnel
        ):
            exchange.response_ended()
        else:
            exchange.upstream_lost(self, exc)

    def pause_writing(self) -> None:
        self.is_write_paused = True
        if self.exchange is not None:
            self.exchange.client.update_reading()

    def resume_writing(self) -> None:
        self.is_write_paused = False
        if self.exchange is not None:
            self.exchange.client.update_reading()

    # httptools

    def on_message_begin(self) -> None:
        if self.is_complete:
            raise BadHead("more answers than questions")

    def on_status(self, status: bytes) -> None:
        self.reason += status

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.head is None:
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self.exchange is None:
            return
        self.has_progressed = True
        head = heads.response(
            self.parser.get_status_code(),
            self.reason,
            self.parser.get_http_version(),
            self.headers,
            method=self.exchange.request.head.method,
        )
        if head.status < 200 and head.status != 101:
            self.is_interim = True
            self.interims += 1
            if self.interims > INTERIM_LIMIT:
                raise BadHead("too many interim answers")
            self.exchange.interim(head)
            return
        self.head = head
        if head.status == 101:
            # Seen again in `upgraded`, with what follows the head.
            return
        self.exchange.response_begins(head)
        if self.exchange.request.head.method == b"HEAD":
            self.is_complete = True

    def on_body(self, body: bytes) -> None:
        self.has_progressed = True
        if self.is_complete or self.exchange is None:
            # Of an answer to HEAD.
            self.is_tainted = True
        elif body:
            # See Client.on_body.
            self.exchange.response_body(body)

    def on_message_complete(self) -> None:
        if self.is_interim:
            self.is_interim = False
            self.reason, self.headers = b"", []
            return
        if self.head is not None and self.head.status == 101:
            return
        self.has_progressed = True
        self.is_complete = True


class Pool:
    """All connections to sandboxes."""

    def __init__(self, gateway: Gateway, *, clock: Callable[[], float]) -> None:
        self.gateway = gateway
        self.clock = clock
        self.idle: dict[Key, list[Upstream]] = {}
        """The latest used is the last."""
        self.live: dict[str, set[Upstream]] = {}
        """Execution id -> its connections, idle or not."""

    def take(self, route: Route, port: int, *, replayable: bool) -> Upstream | None:
        """An idle connection that is probably alive."""
        waiting = self.idle.get((route.execution_id, port))
        limit_s = IDLE_S if replayable or port == ENVD_PORT else IDLE_UNSAFE_S
        while waiting:
            upstream = waiting.pop()
            if upstream.transport is None or upstream.transport.is_closing():
                continue
            if self.clock() - upstream.idle_since <= limit_s:
                return upstream
            upstream.transport.close()
        return None

    def put(self, upstream: Upstream) -> None:
        waiting = self.idle.setdefault(upstream.key, [])
        waiting.append(upstream)
        if len(waiting) > IDLE_PER_PORT:
            oldest = waiting.pop(0)
            if oldest.transport is not None:
                oldest.transport.close()

    async def dial(self, route: Route, port: int) -> Upstream:
        """A new connection; a port that is closed is tried again for a second, for its server may be starting.

        Raises gateway.NotThere, PortClosed, Unavailable.
        """
        upstream = Upstream(self, route, port)
        # Known before it is connected: it hears of the sandbox's end also in between.
        self.live.setdefault(route.execution_id, set()).add(upstream)
        try:
            connection = await self.dial_patiently(route, port)
            connection.setblocking(False)
            try:
                await asyncio.get_running_loop().create_connection(
                    lambda: upstream, sock=connection
                )
            except BaseException:
                connection.close()
                raise
        except BaseException:
            self.drop(upstream)
            raise
        if upstream.is_gone:
            upstream.abort()
            raise NotThere
        return upstream

    async def dial_patiently(self, route: Route, port: int) -> socket.socket:
        for attempt in range(1, DIAL_TRIES):
            try:
                return await self.gateway.dial(route, port)
            except PortClosed:
                await asyncio.sleep(DIAL_PAUSE_S * attempt)
        return await self.gateway.dial(route, port)

    def reset(self, execution_id: str) -> None:
        """Its sandbox has ended: nothing that hangs on it may go on hanging."""
        for upstream in list(self.live.get(execution_id, ())):
            upstream.is_gone = True
            upstream.abort()

    def drop(self, upstream: Upstream) -> None:
        known = self.live.get(upstream.route.execution_id)
        if known is not None:
            known.discard(upstream)
            if not known:
                del self.live[upstream.route.execution_id]
        waiting = self.idle.get(upstream.key)
        if waiting is not None:
            if upstream in waiting:
                waiting.remove(upstream)
            if not waiting:
                del self.idle[upstream.key]

    def close_idle(self, *, older_than_s: float) -> None:
        now = self.clock()
        for waiting in list(self.idle.values()):
            for upstream in list(waiting):
                if now - upstream.idle_since >= older_than_s and upstream.transport is not None:
                    upstream.transport.close()

    def close(self) -> None:
        for execution_id in list(self.live):
            self.reset(execution_id)


def reset(transport: asyncio.Transport) -> None:
    """RST, not FIN: an answer that was cut off must not look finished."""
    connection = transport.get_extra_info("socket")
    if connection is not None and not transport.is_closing():
        try:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError as exc:
            log.debug("linger", extra={"detail": str(exc)})
    transport.abort()


def describe(exc: Exception) -> str:
    """What an exception in one of the parser's callbacks was about."""
    return str(exc.__context__ or exc.__cause__ or exc)
