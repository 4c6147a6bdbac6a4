"""The node agent as commands of the command line see it: what it runs, and ending that."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Mapping

import grpc
import grpc.aio

from opene2b.cli import launcher
from opene2b.cli.child_log import ChildLog
from opene2b.core.errors import Internal
from opene2b.core.paths import Home
from opene2b.gen import node_pb2, node_pb2_grpc

CALL_S = 10.0
KILL_S = 60.0
START_S = 30.0
STOP_S = 30.0
AT_ONCE = 16


class Agent:
    """A connection to the agent of a home; use `connected`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub = node_pb2_grpc.NodeStub(channel)  # type: ignore[no-untyped-call]  # generated

    async def answers(self, limit_s: float = CALL_S) -> bool:
        try:
            await self.stub.Info(node_pb2.InfoRequest(), timeout=limit_s)
        except grpc.aio.AioRpcError:
            return False
        return True

    async def sandboxes(self) -> list[str]:
        try:
            answer = await self.stub.List(node_pb2.ListRequest(), timeout=CALL_S)
        except grpc.aio.AioRpcError as exc:
            raise Internal("the node agent does not list its sandboxes", detail=str(exc)) from exc
        return [status.sandbox_id for status in answer.sandboxes]

    async def kill(self, sandbox_id: str) -> None:
        try:
            await self.stub.Kill(node_pb2.KillRequest(sandbox_id=sandbox_id), timeout=KILL_S)
        except grpc.aio.AioRpcError as exc:
            raise Internal(f"cannot end sandbox '{sandbox_id}'", detail=str(exc)) from exc

    async def kill_all(self) -> int:
        """End everything, also what was being made when it was called; returns how many there were."""
        count = 0
        while found := await self.sandboxes():
            gate = asyncio.Semaphore(AT_ONCE)

            async def end(sandbox_id: str, gate: asyncio.Semaphore = gate) -> None:
                async with gate:
                    await self.kill(sandbox_id)

            # All are tried: one that cannot be ended does not keep the others.
            results = await asyncio.gather(*map(end, found), return_exceptions=True)
            for result in results:
                if isinstance(result, BaseException):
                    raise result
            count += len(found)
        return count


@contextlib.asynccontextmanager
async def connected(home: Home) -> AsyncIterator[Agent]:
    async with grpc.aio.insecure_channel(f"unix:{home.node_socket}") as channel:
        yield Agent(channel)


@contextlib.asynccontextmanager
async def started(home: Home, env: Mapping[str, str]) -> AsyncIterator[Agent]:
    """An agent of our own for a home that has none running; stopped at the end, its helpers with it."""
    log = ChildLog(home.logs / "node.log")
    process = await asyncio.create_subprocess_exec(
        *launcher.command(launcher.opene2b("node")),
        env={**os.environ, **env},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=log.file,
        stderr=log.file,
        start_new_session=True,
    )
    try:
        until = time.monotonic() + START_S
        while True:
            if process.returncode is not None:
                raise Internal(
                    f"the node agent ended at once: see {log.path}", detail=tail(home, 15)
                )
            # A new channel for each try: one that failed waits before it dials again.
            async with connected(home) as agent:
                if home.node_socket.exists() and await agent.answers(1.0):
                    yield agent
                    return
            if time.monotonic() > until:
                raise Internal(f"the node agent does not answer: see {log.path}")
            await asyncio.sleep(0.05)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), STOP_S)
            except TimeoutError:
                process.kill()
                await process.wait()
        log.close()


def tail(home: Home, count: int) -> str:
    text = (home.logs / "node.log").read_text(errors="replace")
    return "\n".join(text.splitlines()[-count:])
