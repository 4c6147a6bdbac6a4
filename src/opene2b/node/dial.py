"""Connected sockets inside sandboxes' networks.

A socket belongs to the network namespace that its thread was in when it made it, and stays there whoever holds
it. So a thread of our own steps into the namespace, makes the socket and steps back; connecting is done
outside, on the event loop.
"""

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from opene2b.linux import syscalls

log = logging.getLogger(__name__)

CONNECT_LIMIT_S = 2.0
"""For each address; a healthy guest answers or refuses on its loopback in microseconds."""

ELSEWHERE = frozenset(
    {
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EADDRNOTAVAIL,
        errno.EAFNOSUPPORT,
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.EPERM,
        errno.EACCES,
        errno.ETIMEDOUT,
    }
)
"""What says: not at this address. Everything else is our own trouble."""


class PortClosed(Exception):
    """Nothing accepts connections on this port, on any of the addresses."""


class Dialer:
    def __init__(self, *, limit_s: float = CONNECT_LIMIT_S) -> None:
        self.limit_s = limit_s
        self.executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="dial")
        """One thread: it is the only one of this process that ever leaves the host's network."""

    def close(self) -> None:
        self.executor.shutdown(wait=True)

    async def dial(self, netns: int | None, addresses: Sequence[str], port: int) -> socket.socket:
        """A connected, non-blocking TCP socket with TCP_NODELAY; the caller closes it.

        Args:
            netns: Descriptor of a network namespace, which may be closed meanwhile; None: our own network.
            addresses: Tried in this order.

        Raises:
            PortClosed
            OSError: we could not even try.
        """
        loop = asyncio.get_running_loop()
        own = None if netns is None else os.dup(netns)
        try:
            for address in addresses:
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                try:
                    made = await settled(
                        loop.run_in_executor(self.executor, make_socket, own, family)
                    )
                except OSError as exc:
                    if exc.errno in ELSEWHERE:
                        continue
                    raise
                try:
                    async with asyncio.timeout(self.limit_s):
                        await loop.sock_connect(made, (address, port))
                except (OSError, TimeoutError) as exc:
                    made.close()
                    # Python's TimeoutError is an OSError, with or without a number.
                    if isinstance(exc, TimeoutError) or exc.errno in ELSEWHERE:
                        continue
                    raise
                except BaseException:
                    made.close()
                    raise
                return made
        finally:
            if own is not None:
                os.close(own)
        raise PortClosed


async def settled(making: asyncio.Future[socket.socket]) -> socket.socket:
    """Its result. When cancelled, wait for the thread first, for it uses our descriptor, and drop what it made."""
    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:
        await asyncio.wait({making})
        if not making.cancelled() and making.exception() is None:
            making.result().close()
        raise


def make_socket(netns: int | None, family: int) -> socket.socket:
    """In the dialling thread."""
    if netns is None:
        return tcp_socket(family)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.setns(netns, syscalls.CLONE_NEWNET)
        try:
            return tcp_socket(family)
        finally:
            # A thread that stayed inside would keep the namespace alive, and dial there for its own network.
            syscalls.setns(home, syscalls.CLONE_NEWNET)
    finally:
        os.close(home)


def tcp_socket(family: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made
