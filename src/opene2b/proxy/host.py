"""Whom a request is for. Pure. Source: E2B sandbox proxy contract, host and header routing."""

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache

ENVD_PORT = 49983
LABEL = re.compile(r"(\d+)-([^-.]*)(?:-[^.]*)?\Z")
SANDBOX_ID = re.compile(r"[a-z0-9]{1,64}\Z")
HOST = re.compile(r"(?:\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::\d{1,5})?\Z")
HOST_LIMIT = 255 + 6
VALUE_LIMIT = 128
"""Of a routing header, far beyond all that mean something."""


@dataclass(frozen=True, slots=True)
class Target:
    sandbox_id: str
    port: int


class BadTarget(Exception):
    """The message is what the client is told, in plain text with 400."""


def find(host: str | None, sandbox_id: str | None, port: str | None) -> Target:
    """Read a request's Host and the two routing headers.

    Headers count only where the host itself names no sandbox: on such a host they could be set by a page that
    the sandbox served, to reach another one. Every other name is a shared host (localhost, an address, the name of
    the machine).

    Raises BadTarget.
    """
    if host is None or len(host) > HOST_LIMIT:
        raise BadTarget("Invalid host")  # wire, as all below
    if sandbox_id is not None and len(sandbox_id) > VALUE_LIMIT:
        raise BadTarget("Invalid sandbox ID")
    if port is not None and len(port) > VALUE_LIMIT:
        raise BadTarget("Invalid sandbox port")
    return parse(host, sandbox_id, port)


@lru_cache(maxsize=1024)
def parse(host: str, sandbox_id: str | None, port: str | None) -> Target:
    """Remembered, as clients ask for the same again and again; what it remembers is short."""
    if not HOST.match(host := host.lower()):
        raise BadTarget("Invalid host")
    named = None if is_address(host) else LABEL.match(host.partition(":")[0].partition(".")[0])
    if named is not None:
        return Target(parse_id(named[2]), parse_port(named[1]))
    if sandbox_id is None and port is None:
        raise BadTarget("Invalid host")
    if sandbox_id is None:
        raise BadTarget("Invalid sandbox ID: the header E2b-Sandbox-Id is missing")
    if port is None:
        raise BadTarget("Invalid sandbox port: the header E2b-Sandbox-Port is missing")
    # Older clients send `id-clientID`.
    return Target(parse_id(sandbox_id.partition("-")[0]), parse_port(port))


def is_address(host: str) -> bool:
    if host.startswith("["):
        return True
    try:
        ipaddress.IPv4Address(host.partition(":")[0])
    except ValueError:
        return False
    return True


def parse_id(text: str) -> str:
    if not SANDBOX_ID.match(text):
        raise BadTarget("Invalid sandbox ID")
    return text


def parse_port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536):
        raise BadTarget("Invalid sandbox port")
    return int(text)
