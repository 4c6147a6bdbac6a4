"""Names of OCI images, as people write them: `python`, `python:3.12`, `ghcr.io/a/b@sha256:...`.

Pure. Source: OCI distribution spec 1.1, and the short names that Docker made customary.
"""

import ipaddress
import re
from dataclasses import dataclass

from opene2b.core.errors import InvalidArgument

HUB = "docker.io"
HUB_HOST = "registry-1.docker.io"
"""Where the registry called docker.io really answers."""
HOST = re.compile(r"(?:\[[0-9a-fA-F:]+\]|[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?)(?::\d{1,5})?\Z")
REPOSITORY = re.compile(
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*\Z"
)
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
DIGEST = re.compile(r"(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    registry: str
    """Host with its port if any, e.g. `docker.io`, `localhost:5000`."""
    repository: str
    tag: str | None
    digest: str | None
    """Wins over the tag."""

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.registry}/{self.repository}{tag}{digest}"

    @property
    def host(self) -> str:
        return HUB_HOST if self.registry == HUB else self.registry

    @property
    def version(self) -> str:
        """What to ask the registry for."""
        return self.digest or self.tag or "latest"


def parse(text: str) -> Reference:
    """Raises InvalidArgument, saying which part is wrong."""
    rest, at, digest = text.strip().partition("@")
    if at and not DIGEST.match(digest):
        raise InvalidArgument(f"image {text!r}: {digest!r} is not a sha256 or sha512 digest")
    first, slash, remainder = rest.partition("/")
    if slash and (first == "localhost" or "." in first or ":" in first):
        registry, path = first, remainder
    else:
        registry, path = HUB, rest
    path, colon, tag = path.partition(":")
    if colon and not TAG.match(tag):
        raise InvalidArgument(f"image {text!r}: {tag!r} is not a tag")
    if registry in {"index.docker.io", HUB_HOST}:
        registry = HUB
    if registry == HUB and "/" not in path:
        path = f"library/{path}"
    if not HOST.match(registry) or not port_is_possible(registry):
        raise InvalidArgument(f"image {text!r}: {registry!r} is not a registry's host")
    if len(path) > 255 or not REPOSITORY.match(path):
        raise InvalidArgument(f"image {text!r}: {path!r} is not the name of a repository")
    return Reference(
        registry=registry,
        repository=path,
        tag=tag if colon else (None if at else "latest"),
        digest=digest if at else None,
    )


def port_is_possible(registry: str) -> bool:
    port = registry.rpartition(":")[2] if re.search(r":\d+\Z", registry) else "1"
    return 1 <= int(port) <= 65535


def is_loopback(host: str) -> bool:
    """Whether a host name without port means this machine: there plain http is no risk."""
    name = host.strip("[]").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
