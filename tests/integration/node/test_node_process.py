"""`opene2b node` as a process of its own: signals, sudden death, a second one."""

import asyncio
import contextlib
import json
import os
import signal
import sys

import pytest
from grpc import aio

from opene2b.core.ids import new_sandbox_id, new_uuid
from opene2b.core.paths import Home
from opene2b.gen import node_pb2, node_pb2_grpc
from opene2b.linux import processes

LIMIT_S = 30
pytestmark = pytest.mark.slow


class Node:
    def __init__(self, home: Home) -> None:
        self.home = home
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> list[dict]:
        """Returns its log up to `node_ready`, or to its end."""
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "opene2b", "node"),
            env={**os.environ, "OPENE2B_HOME": str(self.home.root), "OPENE2B_RUNTIME": "fake"},
            stderr=asyncio.subprocess.PIPE,
        )
        lines = []
        async with asyncio.timeout(LIMIT_S):
            while line := await self.process.stderr.readline():
                lines.append(json.loads(line) if line.startswith(b"{") else {"text": line})
                if lines[-1].get("event") == "node_ready":
                    break
        return lines

    async def end(self, number: int) -> int:
        self.process.send_signal(number)
        async with asyncio.timeout(LIMIT_S):
            await self.process.stderr.read()
            return await self.process.wait()

    @contextlib.asynccontextmanager
    async def stub(self):
        async with aio.insecure_channel(f"unix:{self.home.node_socket}") as channel:
            yield node_pb2_grpc.NodeStub(channel)

    async def create(self) -> str:
        sandbox_id = new_sandbox_id()
        async with self.stub() as stub:
            await stub.Create(
                node_pb2.CreateRequest(
                    spec=node_pb2.SandboxSpec(
                        sandbox_id=sandbox_id, execution_id=new_uuid(), image_id="base"
                    )
                ),
                timeout=LIMIT_S,
            )
        return sandbox_id

    async def listed(self) -> dict[str, int]:
        async with self.stub() as stub:
            answer = await stub.List(node_pb2.ListRequest(), timeout=LIMIT_S)
        return {status.sandbox_id: status.phase for status in answer.sandboxes}

    async def kill(self, sandbox_id: str) -> bool:
        async with self.stub() as stub:
            answer = await stub.Kill(node_pb2.KillRequest(sandbox_id=sandbox_id), timeout=LIMIT_S)
        return answer.found


@pytest.fixture
async def node(home, runtime):
    made = Node(home)
    yield made
    if made.process is not None and made.process.returncode is None:
        await made.end(signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_sandboxes_outlive_their_agent_and_are_found_again(node, home, number):
    await node.start()
    sandbox_id = await node.create()
    started = json.loads((home.node / "sandboxes" / sandbox_id / "disk/started.json").read_bytes())
    code = await node.end(number)
    alive = processes.start_time(started["pid"]) == started["started"]
    await node.start()
    listed = await node.listed()
    found = await node.kill(sandbox_id)
    await node.end(signal.SIGTERM)

    assert code == (0 if number == signal.SIGTERM else -number)
    assert alive
    assert listed == {sandbox_id: node_pb2.PHASE_RUNNING}
    assert found is True
    assert processes.start_time(started["pid"]) is None
    assert list((home.node / "sandboxes").iterdir()) == []
    assert list((home.node / "trash").iterdir()) == []


async def test_an_idle_agent_leaves_no_socket(node, home):
    await node.start()
    code = await node.end(signal.SIGTERM)

    assert code == 0
    assert sorted(path.name for path in home.run.iterdir()) == ["node.pid"]


async def test_a_second_agent_says_why_it_does_not_start(node, home):
    await node.start()
    second = Node(home)
    said = await second.start()
    code = await second.process.wait()
    still = await node.listed()

    assert code == 1
    assert b"another node agent is alive" in said[-1]["text"]
    assert still == {}
