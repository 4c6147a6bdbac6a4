"""The rules of a sandbox's network settings. Source: E2B REST contract, SandboxNetworkConfig.

What is against the contract is refused with 400; what is valid and not enforced yet is refused with 501, because a
rule that is accepted and not kept would be worse than none.
"""

import ipaddress
import re
from dataclasses import dataclass

from opene2b.api.wire import Network
from opene2b.core.errors import InvalidArgument, Unsupported

ENVD_PORT = 49983
MOST_DNS_SERVERS = 10
MASK_LIMIT = 255
ALL = ipaddress.ip_network("0.0.0.0/0")
DOMAIN = re.compile(
    r"(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z"
)
MASK = re.compile(r"[A-Za-z0-9.:_\-\[\]]+\Z")


@dataclass(frozen=True, slots=True)
class Plan:
    internet: bool
    """Whether packets may leave."""
    private_ingress: bool
    """Whether proxied traffic needs a token."""


def address(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def plan(network: Network | None, allow_internet_access: bool | None) -> Plan:
    """Raises InvalidArgument, Unsupported."""
    if network is None:
        return Plan(internet=allow_internet_access is not False, private_ingress=False)
    denied = [deny(text) for text in network.deny_out or ()]
    denies_all = ALL in denied or allow_internet_access is False
    for text in network.allow_out or ():
        check_allowed(text, denies_all=denies_all)
    check_dns(network.dns_servers or [])
    check_mask(network.mask_request_host)
    if ENVD_PORT in (network.https_ports or ()):
        raise InvalidArgument(f"httpsPorts cannot contain {ENVD_PORT}: it is reserved")
    for name, value in (
        ("network.allowOut", network.allow_out),
        ("network.dnsServers", network.dns_servers),
        ("network.egressProxy", network.egress_proxy),
        ("network.httpsPorts", network.https_ports),
        ("network.rules", network.rules),
        ("network.denyOut other than 0.0.0.0/0", denied if not denies_all else None),
    ):
        if value:
            raise not_yet(name)
    return Plan(internet=not denies_all, private_ingress=network.allow_public_traffic is False)


def not_yet(name: str) -> Unsupported:
    return Unsupported(f"{name} is not supported by OpenE2B yet", retryable=False)


def deny(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    found = address(text)
    if found is None:
        raise InvalidArgument(f"denyOut '{text[:100]}' is neither an IP address nor a CIDR")
    return found


def check_allowed(text: str, *, denies_all: bool) -> None:
    if address(text) is not None:
        return
    if len(text) > 253 or not DOMAIN.match(text.lower()):
        raise InvalidArgument(f"allowOut '{text[:100]}' is no IP address, CIDR or domain")
    if not denies_all:
        raise InvalidArgument(
            "When specifying allowed domains in allowOut, denyOut must contain 0.0.0.0/0"
        )


def check_dns(servers: list[str]) -> None:
    if len(servers) > MOST_DNS_SERVERS:
        raise InvalidArgument(f"dnsServers has more than {MOST_DNS_SERVERS} addresses")
    for text in servers:
        try:
            ipaddress.IPv4Address(text)
        except ValueError as exc:
            raise InvalidArgument(f"dnsServers '{text[:100]}' is no IPv4 address") from exc


def check_mask(mask: str | None) -> None:
    """It becomes the value of a header: nothing but a host name and a port can be in it."""
    if mask is None:
        return
    if len(mask) > MASK_LIMIT or not MASK.match(mask.replace("${PORT}", "0")):
        raise InvalidArgument(
            "maskRequestHost must be a host name, with an optional port or ${PORT}"
        )
