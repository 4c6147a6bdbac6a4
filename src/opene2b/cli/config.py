"""Settings: environment variables to frozen values, read once, at the start of a process.

Every row here has a row in docs/settings.md; a test compares them.
"""

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from opene2b.core.errors import InvalidArgument
from opene2b.core.paths import Home


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    home: Home
    """OPENE2B_HOME: all state; default /var/lib/opene2b."""
    domain: str
    """E2B_DOMAIN: sandboxes are `{port}-{id}.{domain}`."""
    host: str
    """OPENE2B_HOST: address that the API and the proxy listen on."""
    api_port: int
    """E2B_API_PORT."""
    proxy_port: int
    """OPENE2B_PROXY_PORT."""
    api_key: str | None = field(repr=False)
    """OPENE2B_API_KEY: the first key; generated when unset."""
    in_memory_store: bool
    """USE_IN_MEMORY_STORE: records in memory; for tests."""
    runtime: str
    """OPENE2B_RUNTIME: `oci`, or `fake` (no isolation at all; for tests)."""
    oci_binary: str | None
    """OPENE2B_OCI_BINARY: crun, runc or a path; default: crun where it is found, else runc."""
    max_sandboxes: int
    """OPENE2B_MAX_SANDBOXES: places on this node; more creates answer 503."""
    warm_slots: int
    """OPENE2B_WARM_SLOTS: network places kept ready."""
    team_max_sandboxes: int
    """OPENE2B_TEAM_MAX_SANDBOXES: sandboxes at once of one team; more creates answer 429."""
    max_timeout_hours: int
    """OPENE2B_MAX_TIMEOUT_HOURS: longest lifetime of a sandbox."""
    cpu_count: int
    """OPENE2B_SANDBOX_CPUS."""
    memory_mib: int
    """OPENE2B_SANDBOX_MEMORY_MIB."""
    subnet: ipaddress.IPv4Network
    """OPENE2B_SUBNET: addresses of sandboxes, a /30 each."""
    nameservers: tuple[str, ...]
    """OPENE2B_NAMESERVERS, comma separated; default: the host's, or 8.8.8.8 where those are loopback."""
    base_mirror: str | None
    """OPENE2B_BASE_MIRROR: Debian mirror for the base template; default: the machine's own."""
    base_suite: str | None
    """OPENE2B_BASE_SUITE: Debian suite of the base template; default: the machine's own."""
    base_image: str | None
    """OPENE2B_BASE_IMAGE: take the base template from this OCI image instead."""
    base_image_username: str | None
    """OPENE2B_BASE_IMAGE_USERNAME."""
    base_image_password: str | None = field(repr=False)
    """OPENE2B_BASE_IMAGE_PASSWORD."""


def load(env: Mapping[str, str] = os.environ) -> Config:
    """Raises InvalidArgument, naming the variable and what it may be."""
    return Config(
        home=Home(Path(env.get("OPENE2B_HOME") or "/var/lib/opene2b").absolute()),
        domain=env.get("E2B_DOMAIN") or "e2b.local",
        host=env.get("OPENE2B_HOST") or "127.0.0.1",
        api_port=integer(env, "E2B_API_PORT", 3000, 1, 65535),
        proxy_port=integer(env, "OPENE2B_PROXY_PORT", 49983, 1, 65535),
        api_key=env.get("OPENE2B_API_KEY") or None,
        in_memory_store=boolean(env, "USE_IN_MEMORY_STORE"),
        runtime=choice(env, "OPENE2B_RUNTIME", "oci", ("oci", "fake")),
        oci_binary=env.get("OPENE2B_OCI_BINARY") or None,
        max_sandboxes=integer(env, "OPENE2B_MAX_SANDBOXES", 1000, 1, 4096),
        warm_slots=integer(env, "OPENE2B_WARM_SLOTS", 24, 0, 512),
        team_max_sandboxes=integer(env, "OPENE2B_TEAM_MAX_SANDBOXES", 1000, 1, 1_000_000),
        max_timeout_hours=integer(env, "OPENE2B_MAX_TIMEOUT_HOURS", 24, 1, 24 * 365),
        cpu_count=integer(env, "OPENE2B_SANDBOX_CPUS", 2, 1, 256),
        memory_mib=integer(env, "OPENE2B_SANDBOX_MEMORY_MIB", 1024, 128, 1 << 20),
        subnet=network(env, "OPENE2B_SUBNET", "10.201.0.0/18"),
        nameservers=addresses(env, "OPENE2B_NAMESERVERS"),
        base_mirror=env.get("OPENE2B_BASE_MIRROR") or None,
        base_suite=env.get("OPENE2B_BASE_SUITE") or None,
        base_image=env.get("OPENE2B_BASE_IMAGE") or None,
        base_image_username=env.get("OPENE2B_BASE_IMAGE_USERNAME") or None,
        base_image_password=env.get("OPENE2B_BASE_IMAGE_PASSWORD") or None,
    )


def integer(env: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    text = env.get(name)
    if not text:
        return default
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise InvalidArgument(f"{name} is {text!r}: it must be a whole number from {low} to {high}")
    return value


def boolean(env: Mapping[str, str], name: str) -> bool:
    text = (env.get(name) or "false").lower()
    if text not in {"true", "false", "1", "0"}:
        raise InvalidArgument(f"{name} is {text!r}: it must be true or false")
    return text in {"true", "1"}


def choice(env: Mapping[str, str], name: str, default: str, choices: tuple[str, ...]) -> str:
    text = env.get(name) or default
    if text not in choices:
        raise InvalidArgument(f"{name} is {text!r}: it must be one of {', '.join(choices)}")
    return text


def network(env: Mapping[str, str], name: str, default: str) -> ipaddress.IPv4Network:
    text = env.get(name) or default
    try:
        value = ipaddress.IPv4Network(text)
    except ValueError as exc:
        raise InvalidArgument(f"{name} is {text!r}: {exc}") from exc
    if value.prefixlen > 24:
        raise InvalidArgument(f"{name} is {text!r}: it must be a /24 or larger")
    return value


def addresses(env: Mapping[str, str], name: str) -> tuple[str, ...]:
    parts = [part.strip() for part in (env.get(name) or "").split(",") if part.strip()]
    try:
        return tuple(str(ipaddress.IPv4Address(part)) for part in parts)
    except ValueError as exc:
        raise InvalidArgument(f"{name}: {exc}") from exc
