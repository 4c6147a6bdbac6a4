"""Heads of requests and answers: what is refused, what is passed on, how the body is framed. Pure.

The parser has checked the grammar. Here the message gets one meaning only: whatever two servers could read
differently (two lengths, a length and chunks, a folded line) is refused, never repaired.
Source: RFC 9112 (framing), RFC 9110 7.6.1 (hop-by-hop).
"""

import re
from collections.abc import Set
from dataclasses import dataclass
from enum import Enum

HEAD_LIMIT_BYTES = 64 << 10
"""Of a request's head; an answer's may be four times as long."""
FIELDS_LIMIT = 1000
ABSOLUTE = re.compile(rb"https?://([^/?#]*)(.*)\Z", re.IGNORECASE | re.DOTALL)

HOP_BY_HOP = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate"),
        *(b"proxy-authorization", b"te", b"trailer", b"transfer-encoding", b"upgrade"),
    }
)
OURS = frozenset({b"e2b-sandbox-id", b"e2b-sandbox-port", b"e2b-traffic-access-token"})
"""Spoken to us: the sandbox does not get them."""
SINGLE = frozenset({b"host", b"content-length", *OURS})
UNBREAKABLE = frozenset(b"\r\n\0")

NO_TOKENS: frozenset[bytes] = frozenset()

Headers = list[tuple[bytes, bytes]]
"""(name as sent, value), in their order."""


class BadHead(Exception):
    """The message says why."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Framing(Enum):
    NONE = "none"
    LENGTH = "length"
    CHUNKED = "chunked"
    UNTIL_CLOSE = "until close"


@dataclass(slots=True, kw_only=True)
class RequestHead:
    method: bytes
    target: bytes
    version: str
    headers: Headers
    known: dict[bytes, bytes]
    """Lower-case name -> value; several values joined by a comma."""
    framing: Framing
    upgrade: bytes | None
    """The protocol that the client wants to change to."""
    keeps_alive: bool

    @property
    def is_replayable(self) -> bool:
        return self.framing is Framing.NONE and self.method in {b"GET", b"HEAD", b"OPTIONS"}


def collected(headers: Headers) -> dict[bytes, bytes]:
    if len(headers) > FIELDS_LIMIT:
        raise BadHead("too many headers", 431)
    known: dict[bytes, bytes] = {}
    for name, raw in headers:
        value = raw.strip(b" \t")
        if not UNBREAKABLE.isdisjoint(value):
            raise BadHead("a header's value contains a line break or NUL")
        lower = name.lower()
        if lower in known:
            if lower in SINGLE:
                raise BadHead(f"more than one header {lower.decode('latin-1')}")
            known[lower] += b", " + value
        else:
            known[lower] = value
    return known


def tokens(value: bytes) -> Set[bytes]:
    if not value:
        return NO_TOKENS
    return {token.strip().lower() for token in value.split(b",")}


def framing(known: dict[bytes, bytes], default: Framing) -> Framing:
    coding = known.get(b"transfer-encoding")
    length = known.get(b"content-length")
    if coding is not None:
        if length is not None:
            raise BadHead("both Content-Length and Transfer-Encoding")
        if coding.strip().lower() != b"chunked":
            raise BadHead("the only transfer coding here is chunked", 501)
        return Framing.CHUNKED
    if length is not None:
        if not length.isdigit() or len(length) > 18:
            raise BadHead("Content-Length is no number")
        return Framing.LENGTH
    return default


def request(method: bytes, target: bytes, version: str, headers: Headers) -> RequestHead:
    """Raises BadHead."""
    if version not in {"1.0", "1.1"}:
        raise BadHead("the protocol here is HTTP/1.1", 505)
    known = collected(headers)
    target = in_origin_form(target, known.get(b"host", b""))
    if method == b"CONNECT" or not (target.startswith(b"/") or target == b"*"):
        raise BadHead("Invalid host")
    if not UNBREAKABLE.isdisjoint(target):
        raise BadHead("the target contains a line break or NUL")
    if version == "1.0" and b"transfer-encoding" in known:
        raise BadHead("Transfer-Encoding in HTTP/1.0")
    connection = tokens(known.get(b"connection", b""))
    upgrade = wanted_protocol(known) if b"upgrade" in connection and version == "1.1" else None
    keeps_alive = (
        b"keep-alive" in connection if version == "1.0" else b"close" not in connection
    ) and upgrade is None
    return RequestHead(
        method=method,
        target=target,
        version=version,
        headers=headers,
        known=known,
        framing=framing(known, Framing.NONE),
        upgrade=upgrade,
        keeps_alive=keeps_alive,
    )


def in_origin_form(target: bytes, host: bytes) -> bytes:
    """Some clients send the whole address to what they take for a proxy. It has to agree with the Host header: two
    names of one sandbox in a request are one too many."""
    absolute = ABSOLUTE.match(target)
    if absolute is None:
        return target
    authority, rest = absolute.groups()
    if authority.lower() != host.lower():
        raise BadHead("Invalid host")
    return rest if rest.startswith(b"/") else b"/" + rest


def wanted_protocol(known: dict[bytes, bytes]) -> bytes | None:
    """Of the Upgrade header. HTTP/2 is not one of them: its requests would pass by every check here."""
    value = known.get(b"upgrade", b"")
    return None if not value or any(name.startswith(b"h2") for name in tokens(value)) else value


def passed_on(
    headers: Headers, known: dict[bytes, bytes], *leave_out: frozenset[bytes]
) -> list[bytes]:
    """Header lines for the other side."""
    dropped = HOP_BY_HOP.union(
        tokens(known.get(b"connection", b"")) - {b"content-length", b"host"}, *leave_out
    )
    return [b"%b: %b\r\n" % (name, value) for name, value in headers if name.lower() not in dropped]


def for_sandbox(head: RequestHead, *, masked_host: bytes | None) -> bytes:
    """The whole head that the sandbox gets.

    Args:
        masked_host: In place of the client's Host, which then becomes X-Forwarded-Host.
    """
    lines = [b"%b %b HTTP/1.1\r\n" % (head.method, head.target)]
    if masked_host is None:
        lines += passed_on(head.headers, head.known, OURS)
    else:
        lines.append(b"Host: %b\r\n" % masked_host)
        lines.append(b"X-Forwarded-Host: %b\r\n" % head.known.get(b"host", b""))
        forged = frozenset({b"host", b"x-forwarded-host"})
        lines += passed_on(head.headers, head.known, OURS, forged)
    if head.framing is Framing.CHUNKED:
        lines.append(b"Transfer-Encoding: chunked\r\n")
    if head.upgrade is not None:
        lines.append(b"Connection: Upgrade\r\nUpgrade: %b\r\n" % head.upgrade)
    lines.append(b"\r\n")
    return b"".join(lines)


@dataclass(slots=True, kw_only=True)
class ResponseHead:
    status: int
    reason: bytes
    headers: Headers
    known: dict[bytes, bytes]
    framing: Framing
    keeps_alive: bool


def response(
    status: int, reason: bytes, version: str, headers: Headers, *, method: bytes
) -> ResponseHead:
    """Raises BadHead: the sandbox's service speaks no proper HTTP."""
    known = collected(headers)
    has_body = status >= 200 and status not in {204, 304} and method != b"HEAD"
    how = framing(known, Framing.UNTIL_CLOSE) if has_body else Framing.NONE
    connection = tokens(known.get(b"connection", b""))
    keeps = b"keep-alive" in connection if version == "1.0" else b"close" not in connection
    if not UNBREAKABLE.isdisjoint(reason):
        raise BadHead("a broken status line")
    return ResponseHead(
        status=status,
        reason=reason,
        headers=headers,
        known=known,
        framing=how,
        keeps_alive=keeps and how is not Framing.UNTIL_CLOSE,
    )


def for_client(head: ResponseHead, *, chunked: bool, connection: bytes | None) -> bytes:
    """The whole head that the client gets.

    Args:
        chunked: Whether the body follows in chunks.
        connection: The value of our own Connection header.
    """
    lines = [b"HTTP/1.1 %d %b\r\n" % (head.status, head.reason)]
    lines += passed_on(head.headers, head.known)
    if chunked:
        lines.append(b"Transfer-Encoding: chunked\r\n")
    if connection is not None:
        lines.append(b"Connection: %b\r\n" % connection)
    if head.status == 101:
        lines.append(b"Upgrade: %b\r\n" % head.known.get(b"upgrade", b""))
    lines.append(b"\r\n")
    return b"".join(lines)
