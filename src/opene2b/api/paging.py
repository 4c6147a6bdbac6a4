"""Pages: `limit`, and the cursor in `nextToken` and `X-Next-Token`.

A cursor is padded base64url of `<RFC 3339 time>__<id>`, with `__asc` behind it in ascending order.
Source: E2B REST contract, pagination.
"""

import base64
import binascii
from dataclasses import dataclass
from datetime import datetime

import msgspec

from opene2b.core.errors import InvalidArgument

DEFAULT_LIMIT = 100
MAX_LIMIT = 100
TOKEN_LIMIT = 512
NEXT = "X-Next-Token"


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last row of the page before."""

    moment: datetime
    id: str
    ascending: bool = False


def encode(cursor: Cursor) -> str:
    moment = cursor.moment.isoformat().replace("+00:00", "Z")
    text = f"{moment}__{cursor.id}{'__asc' if cursor.ascending else ''}"
    return base64.urlsafe_b64encode(text.encode()).decode()


def decode(token: str, *, ascending: bool = False) -> Cursor:
    """Raises InvalidArgument: not a token, or one of the other order."""
    try:
        if len(token) > TOKEN_LIMIT:
            raise ValueError("too long")
        text = base64.b64decode(token, altchars=b"-_", validate=True).decode()
        moment, row_id, *order = text.split("__")
        if not row_id or order not in ([], ["asc"]) or bool(order) != ascending:
            raise ValueError("another order")
        return Cursor(parse_moment(moment), row_id, ascending)
    except (ValueError, binascii.Error) as exc:
        # wire: clients show it
        raise InvalidArgument("Invalid next token", detail=str(exc)) from exc


def parse_moment(text: str) -> datetime:
    """RFC 3339 with an offset, up to nanoseconds. Raises ValueError."""
    moment = msgspec.convert(text, datetime)
    if moment.tzinfo is None:
        raise ValueError("a time needs an offset, for example Z")
    return moment


def parse_limit(text: str | None) -> int:
    if text is None:
        return DEFAULT_LIMIT
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:10]) <= MAX_LIMIT:
        raise InvalidArgument(f"validation error: limit must be from 1 to {MAX_LIMIT}")
    return int(text)
