"""Whether the ports of the server are free, and who takes them."""

import errno
import socket
import time

from opene2b.core.errors import Unsupported

WAIT_S = 5.0
"""A server that was just stopped, or killed, lets go of its ports within this time."""


def is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                return False
            raise Unsupported(
                f"cannot listen on {host}, port {port}: {exc.strerror}: check OPENE2B_HOST"
            ) from exc
    return True


def need(host: str, wanted: dict[str, int], *, wait_s: float = WAIT_S) -> None:
    """Raises Unsupported, naming the setting to change, when a port stays taken.

    Args:
        wanted: Setting -> port.
    """
    names = list(wanted)
    if len(set(wanted.values())) < len(wanted):
        raise Unsupported(f"{' and '.join(names)} are the same port: give one of them another")
    until = time.monotonic() + wait_s
    for name, port in wanted.items():
        while not is_free(host, port):
            if time.monotonic() > until:
                raise Unsupported(
                    f"port {port} on {host} is taken by another program: stop that one"
                    f" (`ss -ltnp 'sport = :{port}'` shows it), or set {name} to another port"
                )
            time.sleep(0.1)
