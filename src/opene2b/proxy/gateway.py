"""The node agent of this host, asked for routes and connected sockets (docs/gateway.md)."""

import array
import asyncio
import json
import logging
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

MESSAGE_LIMIT_BYTES = 64 << 10
ANSWER_LIMIT_S = 15.0
CONNECTED_LIMIT_S = 10.0
"""How long a request waits for an agent that is just being started again."""
RETRY_S = 0.1


ASK_TRIES = 3
"""Of a question whose answer was lost with its connection. Both questions can be put again."""


class Unavailable(Exception):
    """The agent cannot be asked."""


class Lost(Unavailable):
    """The connection ended before the answer."""


@dataclass(frozen=True, slots=True)
class Route:
    """A live sandbox."""

    sandbox_id: str
    execution_id: str
    traffic_access_token: str | None
    mask_request_host: str | None


class NotThere(Exception):
    """No such sandbox, or no longer this execution of it."""


class PortClosed(Exception):
    """Nothing listens there."""


class Gateway:
    """One connection to the agent, made again whenever it is lost. All methods on one event loop."""

    def __init__(
        self,
        path: Path,
        *,
        on_gone: Callable[[str, str], None],
        on_lost: Callable[[], None],
    ) -> None:
        """
        Args:
            on_gone: Called with (sandbox_id, execution_id) when a sandbox has ended.
            on_lost: Called when events may have been missed.
        """
        self.path = path
        self.on_gone = on_gone
        self.on_lost = on_lost
        self.numbers = count(1)
        self.waiting: dict[int, asyncio.Future[tuple[dict[str, Any], socket.socket | None]]] = {}
        self.outgoing: deque[tuple[int, bytes]] = deque()
        """Questions that the socket's buffer had no room for, with their numbers."""
        self.connection: socket.socket | None = None
        self.connected = asyncio.Event()
        self.broken = asyncio.Event()

    async def run(self) -> None:
        """Keep the connection until cancelled."""
        said = False
        while True:
            connection = socket.socket(
                socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            )
            try:
                connection.connect(str(self.path))
            except OSError as exc:
                connection.close()
                if not said:
                    log.warning("gateway_unreachable", extra={"detail": str(exc)})
                said = True
                await asyncio.sleep(RETRY_S)
                continue
            said = False
            log.info("gateway_connected")
            await self.keep(connection)
            log.warning("gateway_lost")
            await asyncio.sleep(RETRY_S)

    async def keep(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self.broken.clear()
        self.connection = connection
        loop.add_reader(connection, self.receive)
        self.connected.set()
        try:
            await self.broken.wait()
        finally:
            self.connected.clear()
            self.connection = None
            loop.remove_reader(connection)
            if self.outgoing:
                loop.remove_writer(connection)
                self.outgoing.clear()
            connection.close()
            waiting, self.waiting = self.waiting, {}
            for future in waiting.values():
                if not future.done():
                    future.set_exception(Lost("the node agent went away"))
            self.on_lost()

    def receive(self) -> None:
        """Everything that has arrived."""
        while self.connection is not None:
            try:
                data, fds = receive_with_socket(self.connection)
            except BlockingIOError:
                return
            except OSError as exc:
                log.info("gateway_broken", extra={"detail": str(exc)})
                self.lose()
                return
            attached = socket.socket(fileno=fds[0]) if fds else None
            if not data:
                self.lose()
                return
            try:
                message = json.loads(data)
            except ValueError:
                log.error("gateway_bad_message", extra={"size_bytes": len(data)})
                if attached is not None:
                    attached.close()
                self.lose()
                return
            self.take(message, attached)

    def lose(self) -> None:
        """The connection is of no more use: nobody asks before there is another."""
        self.connected.clear()
        self.broken.set()

    def send(self, number: int, message: bytes) -> None:
        if self.connection is None or not self.connected.is_set():
            raise Lost("the node agent went away")
        if not self.outgoing:
            try:
                self.connection.send(message, socket.MSG_NOSIGNAL)
                return
            except BlockingIOError:
                asyncio.get_running_loop().add_writer(self.connection, self.flush)
            except OSError as exc:
                self.lose()
                raise Lost(f"the node agent went away: {exc}") from exc
        self.outgoing.append((number, message))

    def flush(self) -> None:
        if self.connection is None:
            return
        while self.outgoing:
            number, message = self.outgoing[0]
            # Whoever has left by now needs no answer.
            if number in self.waiting:
                try:
                    self.connection.send(message, socket.MSG_NOSIGNAL)
                except BlockingIOError:
                    return
                except OSError:
                    # Seen by the reader too.
                    self.lose()
                    return
            self.outgoing.popleft()
        asyncio.get_running_loop().remove_writer(self.connection)

    def take(self, message: dict[str, Any], attached: socket.socket | None) -> None:
        if "gone" in message:
            self.on_gone(message["gone"], message["execution_id"])
            return
        future = self.waiting.pop(message["id"], None)
        if future is None or future.done():
            # Whoever asked has left.
            if attached is not None:
                attached.close()
            return
        future.set_result((message, attached))

    async def route(self, sandbox_id: str) -> Route:
        """Raises NotThere, Unavailable."""
        answer, _ = await self.ask({"op": "route", "sandbox_id": sandbox_id})
        found = answer.get("route")
        if found is None:
            raise NotThere if answer.get("error") == "not_found" else Unavailable(str(answer))
        return Route(
            sandbox_id,
            found["execution_id"],
            found["traffic_access_token"] or None,
            found["mask_request_host"] or None,
        )

    async def dial(self, route: Route, port: int) -> socket.socket:
        """A connected socket, the caller's. Raises NotThere, PortClosed, Unavailable."""
        answer, attached = await self.ask(
            {
                "op": "dial",
                "sandbox_id": route.sandbox_id,
                "execution_id": route.execution_id,
                "port": port,
            }
        )
        if attached is not None:
            return attached
        match answer.get("error"):
            case "not_found":
                raise NotThere
            case "port_closed":
                raise PortClosed
            case error:
                raise Unavailable(f"dial: {error}")

    async def ask(self, question: dict[str, Any]) -> tuple[dict[str, Any], socket.socket | None]:
        for _ in range(1, ASK_TRIES):
            try:
                return await self.ask_once(question)
            except Lost:
                continue
        return await self.ask_once(question)

    async def ask_once(
        self, question: dict[str, Any]
    ) -> tuple[dict[str, Any], socket.socket | None]:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECTED_LIMIT_S):
                await self.connected.wait()
        except TimeoutError:
            raise Unavailable("the node agent cannot be reached") from None
        number = next(self.numbers)
        future: asyncio.Future[tuple[dict[str, Any], socket.socket | None]] = loop.create_future()
        self.waiting[number] = future
        try:
            self.send(number, json.dumps({"id": number, **question}).encode())
            async with asyncio.timeout(ANSWER_LIMIT_S):
                return await future
        except BaseException as exc:
            close_untaken(future)
            if isinstance(exc, TimeoutError):
                raise Unavailable("the node agent does not answer") from None
            raise
        finally:
            self.waiting.pop(number, None)


def close_untaken(future: "asyncio.Future[tuple[dict[str, Any], socket.socket | None]]") -> None:
    """The answer came in the same moment as the end of the wait for it: its socket is nobody's."""
    if future.done() and not future.cancelled() and future.exception() is None:
        attached = future.result()[1]
        if attached is not None:
            attached.close()


def receive_with_socket(connection: socket.socket) -> tuple[bytes, list[int]]:
    data, ancillary, _, _ = connection.recvmsg(
        MESSAGE_LIMIT_BYTES, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC
    )
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds)
