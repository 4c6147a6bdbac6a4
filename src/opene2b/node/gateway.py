"""The gateway: answers the proxies of this host with routes and with connected sockets (docs/gateway.md)."""

import asyncio
import contextlib
import json
import logging
import socket
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from opene2b.node import sockets
from opene2b.node.agent import Agent
from opene2b.node.dial import Dialer, PortClosed
from opene2b.node.events import Status
from opene2b.node.table import Phase

log = logging.getLogger(__name__)

ENVD_PORT = 49983
MESSAGE_LIMIT_BYTES = 64 << 10
BACKLOG = 64
QUESTIONS_LIMIT = 4096
"""Questions of one proxy under way; it is told `internal` beyond, which it never is in health."""
ANSWERS_LIMIT = 16384
"""Answers that a proxy may be behind in reading; then it is cut off, and forgets all routes by that."""


class Peer:
    """One proxy's connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.outgoing: deque[tuple[bytes, socket.socket | None]] = deque()
        self.questions: set[asyncio.Task[None]] = set()
        self.is_writing = False
        self.is_closed = False

    def send(self, message: dict[str, Any], attached: socket.socket | None = None) -> None:
        """Send or queue a message; the attached socket is sent along and closed here, whatever happens."""
        if self.is_closed:
            if attached is not None:
                attached.close()
            return
        self.outgoing.append((json.dumps(message).encode(), attached))
        if len(self.outgoing) > ANSWERS_LIMIT:
            log.warning("gateway_peer_too_slow", extra={"queued": len(self.outgoing)})
            self.close()
        elif not self.is_writing:
            self.flush()

    def flush(self) -> None:
        loop = asyncio.get_running_loop()
        while self.outgoing:
            message, attached = self.outgoing[0]
            try:
                if attached is None:
                    self.connection.send(message, socket.MSG_NOSIGNAL)
                else:
                    socket.send_fds(
                        self.connection, [message], [attached.fileno()], socket.MSG_NOSIGNAL
                    )
            except BlockingIOError:
                if not self.is_writing:
                    loop.add_writer(self.connection, self.flush)
                    self.is_writing = True
                return
            except OSError as exc:
                log.info("gateway_peer_gone", extra={"detail": str(exc)})
                self.close()
                return
            self.outgoing.popleft()
            if attached is not None:
                attached.close()
        if self.is_writing:
            loop.remove_writer(self.connection)
            self.is_writing = False

    def close(self) -> None:
        """End the connection; `Gateway.talk` reads its end and closes the descriptor."""
        if self.is_closed:
            return
        self.is_closed = True
        if self.is_writing:
            asyncio.get_running_loop().remove_writer(self.connection)
            self.is_writing = False
        for _, attached in self.outgoing:
            if attached is not None:
                attached.close()
        self.outgoing.clear()
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


class Gateway:
    """Any number of proxies; all methods on one event loop. Made by `serve`."""

    def __init__(self, agent: Agent, dialer: Dialer) -> None:
        self.agent = agent
        self.dialer = dialer
        self.peers: set[Peer] = set()

    async def accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            while True:
                try:
                    connection, _ = await loop.sock_accept(listener)
                except OSError as exc:
                    # Out of descriptors, or a peer that left the queue: neither may end the gateway.
                    log.error("gateway_accept_failed", extra={"detail": str(exc)})
                    await asyncio.sleep(0.1)
                    continue
                group.create_task(self.talk(Peer(connection)))

    async def talk(self, peer: Peer) -> None:
        loop = asyncio.get_running_loop()
        self.peers.add(peer)
        try:
            while not peer.is_closed:
                try:
                    data = await loop.sock_recv(peer.connection, MESSAGE_LIMIT_BYTES + 1)
                except OSError as exc:
                    log.info("gateway_peer_gone", extra={"detail": str(exc)})
                    break
                if not data:
                    break
                self.take(peer, data)
        finally:
            self.peers.discard(peer)
            peer.close()
            questions = set(peer.questions)
            for task in questions:
                task.cancel()
            if questions:
                await asyncio.wait(questions)
            peer.connection.close()

    def take(self, peer: Peer, data: bytes) -> None:
        """One message; what makes no sense is answered where it has an id, else dropped."""
        try:
            question = json.loads(data) if len(data) <= MESSAGE_LIMIT_BYTES else None
        except (ValueError, RecursionError):
            question = None
        if not isinstance(question, dict) or type(question.get("id")) is not int:
            log.warning("gateway_bad_message", extra={"size_bytes": len(data)})
            return
        number = question["id"]
        sandbox_id = question.get("sandbox_id")
        if not isinstance(sandbox_id, str):
            peer.send({"id": number, "error": "internal"})
        elif question.get("op") == "route":
            peer.send({"id": number, **self.route(sandbox_id)})
        elif question.get("op") == "dial" and is_port(question.get("port")):
            if len(peer.questions) >= QUESTIONS_LIMIT:
                peer.send({"id": number, "error": "internal"})
                return
            task = asyncio.create_task(
                self.dial(peer, number, sandbox_id, question.get("execution_id"), question["port"]),
                name=f"dial {sandbox_id}",
            )
            peer.questions.add(task)
            task.add_done_callback(peer.questions.discard)
        else:
            log.warning("gateway_bad_message", extra={"size_bytes": len(data)})
            peer.send({"id": number, "error": "internal"})

    def route(self, sandbox_id: str) -> dict[str, Any]:
        live = self.agent.reachable(sandbox_id)
        if live is None:
            return {"error": "not_found"}
        order = live.entry.order
        return {
            "route": {
                "execution_id": order.execution_id,
                "traffic_access_token": order.traffic_access_token,
                "mask_request_host": order.mask_request_host,
            }
        }

    async def dial(
        self, peer: Peer, number: int, sandbox_id: str, execution_id: object, port: int
    ) -> None:
        live = self.agent.reachable(sandbox_id)
        if live is None or live.entry.order.execution_id != execution_id:
            peer.send({"id": number, "error": "not_found"})
            return
        if live.entry.phase is not Phase.RUNNING and not await self.agent.turns.awake(live):
            peer.send({"id": number, "error": "internal"})
            return
        handle = live.entry.handle
        if handle is not None and port == ENVD_PORT:
            port = self.agent.runtime.envd_port(handle)
        try:
            # A service on the guest's localhost is reachable as if it were on all addresses.
            made = await self.dialer.dial(
                live.netns, ("127.0.0.1", "::1", live.entry.address), port
            )
        except PortClosed:
            peer.send({"id": number, "error": "port_closed"})
            return
        except Exception as exc:
            log.error("dial_failed", extra={"sandbox_id": sandbox_id, "detail": str(exc)})
            peer.send({"id": number, "error": "internal"})
            return
        if self.agent.running(sandbox_id) is not live:
            # It ended while we dialled; its `gone` is on the way already.
            made.close()
            peer.send({"id": number, "error": "not_found"})
            return
        peer.send({"id": number, "ok": True}, made)

    def tell_gone(self, status: Status) -> None:
        """A listener of the agent's events."""
        if status.is_wanted:
            return  # paused before: this says that somebody waits, on a connection that must not be reset
        if status.phase in {Phase.STOPPING, Phase.ENDED, Phase.PAUSED, Phase.STORED}:
            for peer in list(self.peers):
                peer.send({"gone": status.sandbox_id, "execution_id": status.execution_id})


def is_port(value: object) -> bool:
    return type(value) is int and 0 < value < 65536


@contextlib.asynccontextmanager
async def serve(agent: Agent, path: Path, *, proxy_gid: int | None) -> AsyncIterator[Gateway]:
    """Serve until the block ends. Call it holding the agent's lock: a socket found there is a dead agent's.

    Args:
        proxy_gid: Group that may connect, beside root; None: the own user only.
    """
    dialer = Dialer()
    gateway = Gateway(agent, dialer)
    with socket.socket(
        socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    ) as listener:
        with sockets.place(path, proxy_gid):
            listener.bind(str(path))
        listener.listen(BACKLOG)
        agent.events.listeners.append(gateway.tell_gone)
        accepting = asyncio.create_task(gateway.accept(listener), name="gateway")
        try:
            yield gateway
        finally:
            agent.events.listeners.remove(gateway.tell_gone)
            accepting.cancel()
            await asyncio.gather(accepting, return_exceptions=True)
            dialer.close()
            sockets.remove(path)
