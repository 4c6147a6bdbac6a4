"""One request on its way through: who asks, what they sent, and the parts that can answer."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from opene2b.core.errors import InvalidArgument, ServiceError
from opene2b.core.ids import SandboxId, parse_sandbox_id
from opene2b.core.records import Team
from opene2b.scheduler.sandboxes import Scheduler
from opene2b.store.protocol import Store

T = TypeVar("T")

BODY_LIMIT_BYTES = 16 << 20
IDEMPOTENCY_KEY = re.compile(r"[a-z0-9-]{1,255}\Z")


class TooLarge(ServiceError):
    http_status = 413


class ClientGone(Exception):
    """Nobody is left to answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What endpoints work with."""

    store: Store
    scheduler: Scheduler
    domain: str
    """Sandboxes are `{port}-{id}.{domain}`."""
    draining: asyncio.Event
    """Set while the process is on its way out."""


@dataclass(slots=True, kw_only=True)
class Call:
    request: Request
    parts: Parts
    params: dict[str, str] = field(default_factory=dict)
    """Path parameters, percent-decoded."""
    known_team: Team | None = None

    @property
    def team(self) -> Team:
        if self.known_team is None:
            raise RuntimeError("an endpoint without authentication asks for the team")
        return self.known_team

    def sandbox_id(self) -> SandboxId:
        return parse_sandbox_id(self.params["sandboxID"])

    def query(self, name: str) -> str | None:
        return self.request.query_params.get(name)

    def idempotency_key(self) -> str | None:
        key = self.request.headers.get("idempotency-key")
        if key is not None and not IDEMPOTENCY_KEY.match(key):
            raise InvalidArgument(
                "validation error: Idempotency-Key must be 1 to 255 of a-z, 0-9 and '-'"
            )
        return key

    async def body(self, kind: type[T], *, default: T | None = None) -> T:
        """The request's JSON. An empty body is `default`, where there is one.

        Raises InvalidArgument with the path of the wrong value; TooLarge; ClientGone.
        """
        raw = await self.read()
        if not raw.strip() and default is not None:
            return default
        try:
            return msgspec.json.decode(raw, type=kind)
        except msgspec.DecodeError as exc:
            raise InvalidArgument(f"validation error: {exc}") from exc
        except RecursionError as exc:
            raise InvalidArgument("validation error: the body is nested too deep") from exc
        except UnicodeDecodeError as exc:
            raise InvalidArgument("validation error: the body is not UTF-8") from exc

    async def read(self) -> bytes:
        claimed = self.request.headers.get("content-length", "0")
        if claimed.isdigit() and int(claimed[:20]) > BODY_LIMIT_BYTES:
            raise too_large()
        pieces: list[bytes] = []
        size = 0
        while True:
            message = await self.request.receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            piece: bytes = message.get("body", b"")
            size += len(piece)
            if size > BODY_LIMIT_BYTES:
                raise too_large()
            pieces.append(piece)
            if not message.get("more_body"):
                return b"".join(pieces)

    async def gone(self) -> None:
        """Returns when the client has left. The body must have been read."""
        while (await self.request.receive())["type"] != "http.disconnect":
            pass


Handler = Callable[[Call], Awaitable[Response]]


def too_large() -> TooLarge:
    return TooLarge(f"the request body is larger than {BODY_LIMIT_BYTES >> 20} MiB")


class Json(Response):
    """A msgspec value as JSON."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return msgspec.json.encode(content)


def empty(status: int = 204) -> Response:
    return Response(status_code=status)
