"""A gateway (docs/gateway.md) whose sandboxes are servers on this machine's loopback.

For tests of whatever asks a gateway. Sandboxes come and end by calls; a port of a sandbox is one of this machine's,
or closed. Answers can be held back, the whole gateway can be restarted.
"""

import asyncio
import contextlib
import json
import socket
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MESSAGE_LIMIT_BYTES = 64 << 10


@dataclass(slots=True, kw_only=True)
class FakeSandbox:
    sandbox_id: str
    execution_id: str
    ports: dict[int, int] = field(default_factory=dict)
    """Port of the sandbox -> port on 127.0.0.1 that stands for it; every other port is closed."""
    traffic_access_token: str | None = None
    mask_request_host: str | None = None


class FakeGateway:
    """Made by `serve`; all methods on one event loop."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sandboxes: dict[str, FakeSandbox] = {}
        self.asked: Counter[str] = Counter()
        """Questions heard, by `route` and `dial`."""
        self.heard = asyncio.Condition()
        """Notified with every question."""
        self.answering = asyncio.Event()
        """Cleared: questions are heard, answers wait."""
        self.answering.set()
        self.peers: set[socket.socket] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.listener: socket.socket | None = None
        self.accepting: asyncio.Task[None] | None = None

    # what tests turn

    def add(
        self,
        sandbox_id: str,
        ports: Mapping[int, int] | None = None,
        *,
        execution_id: str | None = None,
        traffic_access_token: str | None = None,
        mask_request_host: str | None = None,
    ) -> FakeSandbox:
        sandbox = self.sandboxes[sandbox_id] = FakeSandbox(
            sandbox_id=sandbox_id,
            execution_id=execution_id or f"execution-of-{sandbox_id}",
            ports=dict(ports or {}),
            traffic_access_token=traffic_access_token,
            mask_request_host=mask_request_host,
        )
        return sandbox

    def end(self, sandbox_id: str) -> None:
        """The sandbox has ended; everybody is told. Its connections stay: nothing closes them but who hears it."""
        sandbox = self.sandboxes.pop(sandbox_id)
        for peer in self.peers:
            self.send(peer, {"gone": sandbox_id, "execution_id": sandbox.execution_id})

    def stop(self) -> None:
        """As an agent that died."""
        if self.accepting is not None:
            self.accepting.cancel()
        if self.listener is not None:
            self.listener.close()
            self.path.unlink(missing_ok=True)
        for task in self.tasks:
            task.cancel()

    def start(self) -> None:
        self.listener = socket.socket(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        self.listener.bind(str(self.path))
        self.listener.listen(64)
        self.accepting = asyncio.create_task(self.accept(self.listener), name="fake gateway")

    # how it works

    async def accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            peer, _ = await loop.sock_accept(listener)
            self.spawn(self.talk(peer))

    def spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def talk(self, peer: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self.peers.add(peer)
        try:
            while data := await loop.sock_recv(peer, MESSAGE_LIMIT_BYTES):
                self.spawn(self.answer(peer, json.loads(data)))
        finally:
            self.peers.discard(peer)
            peer.close()

    async def answer(self, peer: socket.socket, question: dict[str, Any]) -> None:
        async with self.heard:
            self.asked[question["op"]] += 1
            self.heard.notify_all()
        await self.answering.wait()
        number = question["id"]
        sandbox = self.sandboxes.get(question["sandbox_id"])
        if sandbox is None:
            self.send(peer, {"id": number, "error": "not_found"})
        elif question["op"] == "route":
            route = {
                "execution_id": sandbox.execution_id,
                "traffic_access_token": sandbox.traffic_access_token,
                "mask_request_host": sandbox.mask_request_host,
            }
            self.send(peer, {"id": number, "route": route})
        elif question["execution_id"] != sandbox.execution_id:
            self.send(peer, {"id": number, "error": "not_found"})
        else:
            await self.dial(peer, number, sandbox.ports.get(question["port"]))

    async def dial(self, peer: socket.socket, number: int, port: int | None) -> None:
        made = socket.socket(
            socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        with made:
            try:
                if port is None:
                    raise ConnectionRefusedError
                await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", port))
            except ConnectionRefusedError:
                self.send(peer, {"id": number, "error": "port_closed"})
            else:
                self.send(peer, {"id": number, "ok": True}, made)

    def send(
        self, peer: socket.socket, message: dict[str, Any], attached: socket.socket | None = None
    ) -> None:
        if peer not in self.peers:
            return
        data = json.dumps(message).encode()
        # A queue for who reads slowly is the real gateway's business: here a full buffer is a failed test.
        if attached is None:
            peer.send(data, socket.MSG_NOSIGNAL)
        else:
            socket.send_fds(peer, [data], [attached.fileno()], socket.MSG_NOSIGNAL)

    async def until_asked(self, op: str, times: int) -> None:
        async with self.heard:
            await self.heard.wait_for(lambda: self.asked[op] >= times)


@contextlib.asynccontextmanager
async def serve(path: Path) -> AsyncIterator[FakeGateway]:
    gateway = FakeGateway(path)
    gateway.start()
    try:
        yield gateway
    finally:
        gateway.stop()
        left = [*gateway.tasks, *([gateway.accepting] if gateway.accepting else [])]
        await asyncio.gather(*left, return_exceptions=True)
