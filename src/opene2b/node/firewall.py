"""The node's firewall: one nftables table of our own; nobody else's rules are touched.

A sandbox may reach the internet and the name servers. It may not reach the host, other sandboxes, private
and link-local networks (the host's neighbours, cloud metadata); nothing may open a connection to a sandbox
(the proxy's sockets are made inside). Names: table `opene2b_<subnet in hex>`, host ends `o2b<address in hex>`.
"""

import ipaddress
import logging
import subprocess
from collections.abc import Sequence
from pathlib import Path

from opene2b.core.errors import Internal

log = logging.getLogger(__name__)

PRIVATE = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "224.0.0.0/4",
    "240.0.0.0/4",
)
INTERFACE_PREFIX = "o2b"


def table_name(subnet: ipaddress.IPv4Network) -> str:
    return f"opene2b_{int(subnet.network_address):08x}"


def interface_name(address: ipaddress.IPv4Address) -> str:
    """Name of the host's end for a sandbox's network: at most 15 bytes, unique by address."""
    return f"{INTERFACE_PREFIX}{int(address):08x}"


def rules(
    subnet: ipaddress.IPv4Network, nameservers: Sequence[str], offline: Sequence[str] = ()
) -> str:
    """The table as nft reads it. Replaces a table of that name in one transaction.

    Args:
        offline: Addresses of sandboxes that may reach nothing: there is no moment in which they may.
    """
    elements = f"elements = {{ {', '.join(offline)} }}" if offline else ""
    name = table_name(subnet)
    servers = (
        f"ip daddr {{ {', '.join(nameservers)} }} meta l4proto {{ tcp, udp }} th dport 53 accept"
        if nameservers
        else ""
    )
    return f"""
table inet {name} {{
}}
delete table inet {name}
table inet {name} {{
  set offline {{
    type ipv4_addr
    {elements}
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    ip saddr {subnet} iifname "{INTERFACE_PREFIX}*" ct state established,related accept
    ip saddr {subnet} iifname "{INTERFACE_PREFIX}*" drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    ip daddr @offline drop
    ip daddr {subnet} oifname "{INTERFACE_PREFIX}*" ct state established,related accept
    ip daddr {subnet} drop
    ip saddr {subnet} jump outward
  }}
  chain outward {{
    ip saddr @offline drop
    ct state established,related accept
    {servers}
    ip daddr {{ {", ".join(PRIVATE)} }} drop
    accept
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {subnet} oifname != "{INTERFACE_PREFIX}*" masquerade
  }}
}}
"""


def install(
    subnet: ipaddress.IPv4Network, nameservers: Sequence[str], offline: Sequence[str] = ()
) -> None:
    run(rules(subnet, nameservers, offline))


def remove(subnet: ipaddress.IPv4Network) -> None:
    name = table_name(subnet)
    run(f"table inet {name} {{\n}}\ndelete table inet {name}\n")


def set_offline(subnet: ipaddress.IPv4Network, address: str, *, offline: bool) -> None:
    """Cut one sandbox off from everything but the proxy, or let it out again."""
    verb = "add" if offline else "delete"
    run(f"{verb} element inet {table_name(subnet)} offline {{ {address} }}\n")


def run(script: str) -> None:
    try:
        result = subprocess.run(
            ["nft", "-f", "-"], input=script, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as exc:
        raise Internal("nft is missing: install the package nftables") from exc
    if result.returncode != 0:
        raise Internal("the firewall refused our table", detail=result.stderr.strip()[-2000:])


def uplinks() -> list[str]:
    """Interfaces that hold a default route."""
    lines = Path("/proc/net/route").read_text().splitlines()[1:]
    return sorted({fields[0] for line in lines if (fields := line.split())[1] == "00000000"})


def set_forwarding(interface: str, *, on: bool) -> bool:
    """Let packets that come in here go on to other interfaces; returns whether that was a change."""
    setting = Path(f"/proc/sys/net/ipv4/conf/{interface}/forwarding")
    wanted = "1" if on else "0"
    if setting.read_text().strip() == wanted:
        return False
    setting.write_text(wanted)
    return True


def host_nameservers(resolv_conf: Path = Path("/etc/resolv.conf")) -> tuple[str, ...]:
    """IPv4 name servers of this host that a sandbox can use; 8.8.8.8 where there is none (a local stub)."""
    servers = []
    for line in resolv_conf.read_text().splitlines() if resolv_conf.exists() else ():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            address = ipaddress.IPv4Address(words[1])
        except ValueError:
            continue
        if not address.is_loopback:
            servers.append(str(address))
    return tuple(servers[:3]) or ("8.8.8.8",)
