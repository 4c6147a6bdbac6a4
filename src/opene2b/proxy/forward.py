"""One exchange: from a request's head to the end of its answer, between one client and one sandbox."""

import asyncio
import hmac
import logging
from collections import deque
from typing import TYPE_CHECKING

from opene2b.proxy import head as heads
from opene2b.proxy import host, pages, public
from opene2b.proxy.gateway import NotThere, PortClosed, Route, Unavailable
from opene2b.proxy.head import Framing, RequestHead, ResponseHead
from opene2b.proxy.host import ENVD_PORT, BadTarget, Target
from opene2b.proxy.pages import Answer, Problem
from opene2b.proxy.upstream import Upstream

if TYPE_CHECKING:
    from opene2b.proxy.client import Client

log = logging.getLogger(__name__)

TRAFFIC_HEADER = pages.TRAFFIC_HEADER.encode()


PART_OVERHEAD_BYTES = 64
"""Of a kept part, beside its bytes: a body may come in chunks of one."""


class Request:
    """A request whose head has arrived; its body may still be on the way."""

    def __init__(self, head: RequestHead) -> None:
        self.head = head
        self.parts: deque[bytes] = deque()
        """Of the body: what nobody has taken yet."""
        self.buffered = 0
        self.is_complete = False
        self.after_upgrade = b""
        """What the client sent behind a request to change the protocol."""
        self.exchange: Exchange | None = None
        self.is_discarded = False

    def add(self, part: bytes) -> None:
        if self.is_discarded:
            return
        if self.exchange is not None and self.exchange.upstream is not None:
            self.exchange.send_body(part)
        else:
            self.parts.append(part)
            self.buffered += len(part) + PART_OVERHEAD_BYTES

    def finish(self) -> None:
        self.is_complete = True
        if self.exchange is not None and self.exchange.upstream is not None:
            self.exchange.send_end()

    def discard(self) -> None:
        """Nobody wants the rest of the body."""
        self.is_discarded = True
        self.parts.clear()
        self.buffered = 0


class Exchange:
    def __init__(self, client: "Client", request: Request) -> None:
        self.client = client
        self.request = request
        request.exchange = self
        self.proxy = client.proxy
        self.target: Target | None = None
        self.upstream: Upstream | None = None
        self.connecting: asyncio.Task[None] | None = None
        self.out: list[bytes] = []
        self.has_begun = False
        """A byte of the answer is on its way to the client."""
        self.is_chunked = False
        self.keeps_alive = request.head.keeps_alive
        self.is_over = False
        self.is_tunnel = False

    # towards the sandbox

    def start(self) -> None:
        known = self.request.head.known
        try:
            target = host.find(
                text(known.get(b"host")),
                text(known.get(b"e2b-sandbox-id")),
                text(known.get(b"e2b-sandbox-port")),
            )
        except BadTarget as exc:
            self.answer(pages.plain(400, str(exc)))
            return
        self.target = target
        path = self.request.head.target.decode("latin-1")
        if target.port == ENVD_PORT and not public.is_public(path):
            self.answer(pages.internal_route(path))
            return
        route = self.proxy.routes.known.get(target.sandbox_id)
        if route is not None:
            if self.is_refused(route, target):
                return
            idle = self.proxy.pool.take(
                route, target.port, replayable=self.request.head.is_replayable
            )
            if idle is not None:
                self.attach(idle)
                return
        self.connect(target)

    def connect(self, target: Target) -> None:
        self.connecting = asyncio.create_task(self.find(target), name=f"dial {target.sandbox_id}")
        self.proxy.tasks.add(self.connecting)
        self.connecting.add_done_callback(self.proxy.tasks.discard)

    async def find(self, target: Target) -> None:
        """Route and dial; or say why not."""
        sandbox_id, port = target.sandbox_id, target.port
        try:
            upstream = await self.dial(target)
        except NotThere:
            self.problem(pages.not_found(sandbox_id))
        except PortClosed:
            self.problem(pages.port_closed(sandbox_id, port))
        except Unavailable as exc:
            log.warning("unavailable", extra={"sandbox_id": sandbox_id, "detail": str(exc)})
            self.problem(pages.unavailable(sandbox_id))
        except OSError as exc:
            log.warning("dial_failed", extra={"sandbox_id": sandbox_id, "detail": str(exc)})
            self.problem(pages.no_answer(sandbox_id, port))
        except Exception:
            log.exception("exchange_crashed", extra={"sandbox_id": sandbox_id})
            self.client.abort()
        else:
            if upstream is not None and self.is_over:
                upstream.abort()
            elif upstream is not None:
                self.attach(upstream)

    async def dial(self, target: Target) -> Upstream | None:
        """None: refused, and answered. Raises as Routes.find and Pool.dial."""
        for attempt in (1, 2):
            route = await self.proxy.routes.find(target.sandbox_id)
            if self.is_refused(route, target):
                return None
            try:
                return await self.proxy.pool.dial(route, target.port)
            except NotThere:
                # The route was of an earlier execution; there may be a new one.
                self.proxy.routes.forget(target.sandbox_id, route.execution_id)
                if attempt == 2:
                    raise
        raise NotThere

    def is_refused(self, route: Route, target: Target) -> bool:
        """Whether the traffic token was needed and not given (then the answer is given). envd has its own."""
        wanted = route.traffic_access_token
        if wanted is None or target.port == ENVD_PORT:
            return False
        given = self.request.head.known.get(TRAFFIC_HEADER)
        if given is None:
            self.problem(pages.token_missing(target.sandbox_id))
            return True
        if not hmac.compare_digest(given, wanted.encode()):
            self.problem(pages.token_wrong(target.sandbox_id))
            return True
        return False

    def attach(self, upstream: Upstream) -> None:
        """Send what there is of the request."""
        if upstream.transport is None:
            # It ended between the dial and now.
            self.problem(pages.no_answer(upstream.route.sandbox_id, upstream.port))
            return
        self.upstream = upstream
        upstream.begin(self)
        if self.client.is_write_paused:
            upstream.transport.pause_reading()
        masked = None
        if upstream.route.mask_request_host and upstream.port != ENVD_PORT:
            mask = upstream.route.mask_request_host
            masked = mask.replace("${PORT}", str(upstream.port)).encode()
        request = self.request
        pieces = [heads.for_sandbox(request.head, masked_host=masked)]
        is_chunked = request.head.framing is Framing.CHUNKED
        for part in request.parts:
            pieces += chunk(part) if is_chunked else [part]
        request.parts.clear()
        request.buffered = 0
        if request.is_complete and is_chunked:
            pieces.append(b"0\r\n\r\n")
        upstream.transport.write(b"".join(pieces))
        self.client.update_reading()

    def send_body(self, part: bytes) -> None:
        if self.upstream is None or self.upstream.transport is None:
            return
        if self.request.head.framing is Framing.CHUNKED:
            self.upstream.transport.write(b"".join(chunk(part)))
        else:
            self.upstream.transport.write(part)

    def send_end(self) -> None:
        if self.upstream is None or self.upstream.transport is None:
            return
        if self.request.head.framing is Framing.CHUNKED:
            self.upstream.transport.write(b"0\r\n\r\n")

    # towards the client

    def interim(self, head: ResponseHead) -> None:
        if self.request.head.version == "1.1":
            self.out.append(heads.for_client(head, chunked=False, connection=None))

    def response_begins(self, head: ResponseHead) -> None:
        old = self.request.head.version == "1.0"
        has_end = head.framing in {Framing.NONE, Framing.LENGTH}
        self.is_chunked = not has_end and not old
        if (old and not has_end) or self.proxy.is_draining:
            self.keeps_alive = False
        connection = None
        if not self.keeps_alive:
            connection = b"close"
        elif old:
            connection = b"keep-alive"
        self.has_begun = True
        self.out.append(heads.for_client(head, chunked=self.is_chunked, connection=connection))

    def response_body(self, body: bytes) -> None:
        if self.is_chunked:
            self.out += chunk(body)
        else:
            self.out.append(body)

    def flush(self) -> None:
        if self.out:
            self.client.write(b"".join(self.out) if len(self.out) > 1 else self.out[0])
            self.out.clear()

    def response_ended(self) -> None:
        upstream, self.upstream = self.upstream, None
        if self.is_chunked:
            self.out.append(b"0\r\n\r\n")
        self.flush()
        if upstream is not None:
            keeps = upstream.head is not None and upstream.head.keeps_alive
            upstream.release(
                reusable=keeps
                and self.request.is_complete
                and not upstream.is_half_closed
                and not upstream.is_tainted
                and self.request.head.upgrade is None
            )
        self.end(keeps_alive=self.keeps_alive)

    def end(self, *, keeps_alive: bool) -> None:
        if self.is_over:
            return
        self.is_over = True
        self.client.exchange_ended(self, keeps_alive=keeps_alive)

    def problem(self, problem: Problem) -> None:
        self.answer(pages.answer(problem, self.request.head.known))

    def answer(self, answer: Answer) -> None:
        """Answer in the sandbox's stead."""
        if self.is_over:
            return
        keeps = self.request.head.keeps_alive and self.request.is_complete
        keeps = keeps and self.request.head.version == "1.1"
        self.has_begun = True
        self.client.write(
            answer.encode(with_body=self.request.head.method != b"HEAD", close=not keeps)
        )
        self.end(keeps_alive=keeps)

    # trouble

    def upstream_broken(self, detail: str) -> None:
        """The service does not speak HTTP as it should."""
        upstream, self.upstream = self.upstream, None
        if upstream is None:
            return
        log.info(
            "bad_answer", extra={"sandbox_id": upstream.route.sandbox_id, "detail": detail[:200]}
        )
        upstream.exchange = None
        upstream.abort()
        self.fail(upstream)

    def upstream_lost(self, upstream: Upstream, exc: Exception | None) -> None:
        self.upstream = None
        if self.is_tunnel:
            self.is_over = True
            if exc is None and not upstream.is_gone:
                self.client.close()
            else:
                self.client.abort()
            return
        if upstream.is_gone:
            self.client.abort()
            return
        untouched = not self.has_begun and not upstream.has_spoken
        if untouched and upstream.was_used and self.request.head.is_replayable and self.target:
            # The server closed an idle connection in the moment that we used it.
            self.connect(self.target)
            return
        self.fail(upstream)

    def fail(self, upstream: Upstream) -> None:
        if self.has_begun:
            self.client.abort()
        else:
            self.out.clear()
            self.problem(pages.no_answer(upstream.route.sandbox_id, upstream.port))

    def client_lost(self, exc: Exception | None) -> None:
        self.is_over = True
        if self.connecting is not None:
            self.connecting.cancel()
        if self.upstream is not None:
            upstream, self.upstream = self.upstream, None
            upstream.exchange = None
            # In a tunnel, what the client said last still has to arrive.
            if self.is_tunnel and exc is None and upstream.transport is not None:
                upstream.transport.close()
            else:
                upstream.abort()

    # tunnels

    def begin_tunnel(self, head: ResponseHead, rest: bytes) -> None:
        """The service took the other protocol: from here on bytes pass unread."""
        self.is_tunnel = True
        self.has_begun = True
        self.out.append(heads.for_client(head, chunked=False, connection=b"Upgrade"))
        if rest:
            self.out.append(rest)
        self.flush()
        early, self.request.after_upgrade = self.request.after_upgrade, b""
        if early:
            self.tunnel_up(early)
        self.client.update_reading()

    def tunnel_up(self, data: bytes) -> None:
        if self.upstream is not None and self.upstream.transport is not None:
            self.upstream.transport.write(data)

    def upstream_eof(self) -> bool:
        """The service will say no more; the client may. True: keep the connection open."""
        if self.client.is_half_closed:
            return False
        self.client.write_eof()
        return True

    def client_eof(self) -> bool:
        if self.upstream is None or self.upstream.transport is None:
            return False
        if self.upstream.is_half_closed:
            return False
        if self.upstream.transport.can_write_eof():
            self.upstream.transport.write_eof()
        return True


def chunk(part: bytes) -> list[bytes]:
    return [b"%x\r\n" % len(part), part, b"\r\n"]


def text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1").strip()
