"""Endpoints about the server itself."""

from starlette.responses import PlainTextResponse, Response

from opene2b.api.call import Call
from opene2b.core.errors import NoCapacity, Unsupported


async def health(call: Call) -> Response:
    if call.parts.draining.is_set():
        raise NoCapacity("the server is stopping", reason="draining")
    return PlainTextResponse("OK")


async def not_yet(call: Call) -> Response:
    request = call.request
    raise Unsupported(
        f"{request.method} {request.url.path} is part of E2B's API and not of OpenE2B yet",
        reason="not_implemented",
        retryable=False,
    )
