"""The node agent's end of the fork server: starts it, asks it, starts it again when it dies."""

import asyncio
import logging
import socket
import subprocess
import sys
from itertools import count
from pathlib import Path

import msgspec

from opene2b.core.errors import DeadlineExceeded, Internal
from opene2b.forkserver.plan import Answer, Request, Started

log = logging.getLogger(__name__)

OPEN_LIMIT_S = 20.0
"""From the start of its process to its first word; a cold interpreter on a busy machine takes seconds."""
REQUEST_LIMIT_S = 30.0


class ForkServerClient:
    """One fork server process and the requests under way. All methods on the event loop's thread."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.connection: socket.socket | None = None
        self.pending: dict[int, asyncio.Future[Answer]] = {}
        self.numbers = count(1)
        self.opening = asyncio.Lock()
        """Guards the start of the process: one at a time."""

    async def open(self) -> None:
        """Start the process and wait for its first word; a no-op when it runs.

        Raises Internal, with the reason that the process gave on its standard error.
        """
        async with self.opening:
            if self.connection is not None:
                return
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.setblocking(False)
            loop = asyncio.get_running_loop()
            greeting: asyncio.Future[Answer] = loop.create_future()
            self.pending[0] = greeting
            try:
                with theirs:
                    process = await asyncio.to_thread(spawn, theirs.fileno())
            except BaseException:
                ours.close()
                raise
            self.process, self.connection = process, ours
            loop.add_reader(ours, self.receive)
            try:
                async with asyncio.timeout(OPEN_LIMIT_S):
                    await greeting
            except TimeoutError:
                await self.close()
                raise Internal(f"the fork server did not answer in {OPEN_LIMIT_S:.0f} s") from None
            log.info("forkserver_open", extra={"pid": process.pid})

    async def close(self) -> None:
        """Let it end. Sandboxes go on."""
        process, self.process = self.process, None
        self.drop()
        if process is not None:
            await asyncio.to_thread(finish, process)

    async def start(self, directory: Path, program: str) -> Started:
        """`program`: path of the OCI runtime."""
        return await self.started("start", directory, program)

    async def start_envd(self, directory: Path) -> Started:
        return await self.started("envd", directory)

    async def started(self, op: str, directory: Path, program: str = "") -> Started:
        request = Request(id=next(self.numbers), op=op, directory=str(directory), program=program)
        answer = await self.ask(request, REQUEST_LIMIT_S)
        if answer.started is None:
            raise Internal(f"the fork server answered nothing to {op}")
        return answer.started

    async def prepare(self, first_id: int) -> None:
        await self.ask(
            Request(id=next(self.numbers), op="prepare", first_id=first_id), REQUEST_LIMIT_S
        )

    async def ask(self, request: Request, limit_s: float) -> Answer:
        """Raises OSError as the fork server had it, Internal when it died, DeadlineExceeded."""
        await self.open()
        if self.connection is None:
            raise Internal("the fork server has just died")
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.pending[request.id] = future
        try:
            await asyncio.get_running_loop().sock_sendall(
                self.connection, msgspec.json.encode(request)
            )
            async with asyncio.timeout(limit_s):
                answer = await future
        except TimeoutError:
            raise DeadlineExceeded(f"{request.op} took longer than {limit_s:.0f} s") from None
        except (BrokenPipeError, ConnectionResetError) as exc:
            raise Internal("the fork server has just died", detail=str(exc)) from exc
        finally:
            self.pending.pop(request.id, None)
        if answer.error is not None:
            raise OSError(answer.errno or 0, answer.error)
        return answer

    def receive(self) -> None:
        if self.connection is None:
            return
        try:
            message = self.connection.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            log.error("forkserver_died", extra={"pid": self.process and self.process.pid})
            process, self.process = self.process, None
            self.drop()
            if process is not None:
                # It has closed its end, so it is ending; its exit must not stay unread.
                asyncio.get_running_loop().run_in_executor(None, finish, process)
            return
        answer = msgspec.json.decode(message, type=Answer)
        future = self.pending.get(answer.id)
        if future is not None and not future.done():
            future.set_result(answer)

    def drop(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            asyncio.get_running_loop().remove_reader(connection)
            connection.close()
        for future in self.pending.values():
            if not future.done():
                future.set_exception(Internal("the fork server has died"))
        self.pending.clear()


def spawn(fd: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "opene2b.forkserver", str(fd)],
        pass_fds=(fd,),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
