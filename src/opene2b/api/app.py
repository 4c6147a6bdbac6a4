"""The ASGI application: match, authenticate, answer, and turn what goes wrong into the contract's errors."""

import asyncio
import logging
import time

from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from opene2b.api import errors, system
from opene2b.api.auth import Authenticator
from opene2b.api.call import Call, ClientGone, Handler, Json, Parts
from opene2b.api.routes import ENDPOINTS, NOT_YET
from opene2b.api.routing import Router
from opene2b.api.wire import Error
from opene2b.core.errors import InvalidArgument, NoCapacity, ServiceError

log = logging.getLogger(__name__)

ALLOWED_HEADERS = [
    "Origin",
    "Content-Length",
    "Content-Type",
    "User-Agent",
    "Authorization",
    "X-API-Key",
    "X-Team-ID",
    "Idempotency-Key",
    "browser",
    "lang",
    "lang_version",
    "machine",
    "os",
    "package_version",
    "processor",
    "publisher",
    "release",
    "sdk_runtime",
    "system",
]
EXPOSED_HEADERS = [
    "X-Next-Token",
    "X-Total-Running",
    "RateLimit-Limit",
    "RateLimit-Remaining",
    "RateLimit-Reset",
    "Retry-After",
    "Should-Retry",
]
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


class App:
    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.keys = Authenticator(parts.store, run=parts.scheduler.run)
        self.router: Router[tuple[Handler, str, bool]] = Router(
            [
                *(
                    (row.method, row.path, (row.handler, row.path, row.is_open))
                    for row in ENDPOINTS
                ),
                *((method, path, (system.not_yet, path, True)) for method, path in NOT_YET),
            ]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"the API serves HTTP alone, not {scope['type']}")
        started = time.perf_counter()
        request = Request(scope, receive, send)
        call = Call(request=request, parts=self.parts)
        route = "none"
        try:
            handler, route, response = self.match(call)
            if response is None:
                response = await self.answer(call, handler)
        except ClientGone:
            log.info("client_gone", extra={"method": request.method, "route": route})
            return
        except asyncio.CancelledError:
            # The server stops and waits no longer. A client that resent a create would not know of the first.
            is_safe = request.method in {"GET", "HEAD"}
            stopping = NoCapacity(
                "the server is stopping", reason="server_stopping", retryable=is_safe
            )
            response = errors.response(stopping)
        except ServiceError as exc:
            response = errors.response(exc)
        except Exception:
            log.exception("crashed", extra={"method": request.method, "route": route})
            response = errors.crashed()
        if route != "/health":
            log.info(
                "request",
                extra={
                    "method": request.method,
                    "route": route,
                    "status": response.status_code,
                    "ms": round((time.perf_counter() - started) * 1000, 1),
                },
            )
        await response(scope, receive, send)

    def match(self, call: Call) -> tuple[tuple[Handler, bool], str, Response | None]:
        request = call.request
        found = self.router.find(request.scope["raw_path"].decode("latin-1"))
        # As HTTP has it: HEAD is GET whose body the server leaves out.
        method = "GET" if request.method == "HEAD" else request.method
        for candidate in found:
            try:
                picked = candidate.pick(method)
            except UnicodeDecodeError as exc:
                raise InvalidArgument("validation error: the path is not UTF-8") from exc
            if picked is not None:
                (handler, route, is_open), call.params = picked
                return (handler, is_open), route, None
        nothing = (system.not_yet, True)
        if not found:
            message = f"there is no {request.url.path[:200]}"
            return nothing, "none", Json(Error(404, message), status_code=404)
        allowed = sorted({name for candidate in found for name in candidate.methods})
        message = f"{request.method} is not allowed here; {', '.join(allowed)}"
        headers = {"Allow": ", ".join(allowed)}
        return nothing, "none", Json(Error(405, message), status_code=405, headers=headers)

    async def answer(self, call: Call, target: tuple[Handler, bool]) -> Response:
        handler, is_open = target
        if not is_open:
            call.known_team = await self.keys.team(call.request.headers.get("x-api-key"))
        return await handler(call)


def create(parts: Parts) -> ASGIApp:
    """The application, open to pages of every origin: what guards it is the key."""
    return CORSMiddleware(
        App(parts),
        allow_origins=["*"],
        allow_methods=METHODS,
        allow_headers=ALLOWED_HEADERS,
        expose_headers=EXPOSED_HEADERS,
        max_age=600,
    )
