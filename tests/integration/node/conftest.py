"""A node agent in this process, with the fake runtime: real processes, sockets and files."""

import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from opene2b.core.ids import ExecutionId, ImageId, new_sandbox_id, new_uuid
from opene2b.core.paths import Home
from opene2b.core.resources import Resources
from opene2b.image import manifest as manifests
from opene2b.image.manifest import Manifest
from opene2b.node.agent import Agent
from opene2b.node.places import LoopbackPlaces
from opene2b.node.table import Order
from opene2b.runtime.fake import family
from opene2b.runtime.fake.driver import FakeRuntime

ENVD = """
import argparse, http.server, json, signal, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(204)
        self.end_headers()
    def log_message(self, *args):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(json.dumps({"port": server.server_port}), flush=True)
server.serve_forever()
"""
"""Stands in for envd where the test is of the agent: it starts in a third of the time."""


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    # Paths of unix sockets are short, so not below the test's own long name.
    home = Home(tmp_path_factory.mktemp("n"))
    (home.layers / "one").mkdir(parents=True)
    manifests.save(home, Manifest(image_id=ImageId("base"), layers=["one"], env_vars={"A": "1"}))
    home.run.mkdir()
    return home


@pytest.fixture
def runtime(home: Home) -> Iterator[FakeRuntime]:
    runtime = FakeRuntime(command=(sys.executable, "-S", "-c", ENVD))
    yield runtime
    left = []
    for started in (home.node / "sandboxes").glob("*/disk/started.json"):
        found = json.loads(started.read_bytes())
        if found["started"] is not None:
            left.append(found)
            family.end(found)
            family.reap(found["pid"])
    # A test that means to leave sandboxes ends them itself.
    assert left == []


@pytest.fixture
def make_order() -> Callable[..., Order]:
    return new_order


@pytest.fixture
def order() -> Order:
    return new_order()


def new_order(**changes: object) -> Order:
    values: dict[str, object] = {
        "sandbox_id": new_sandbox_id(),
        "execution_id": ExecutionId(new_uuid()),
        "template_id": "base",
        "image_id": ImageId("base"),
        "resources": Resources(),
        "traffic_access_token": "traffic",
        **changes,
    }
    return Order(**values)  # type: ignore[arg-type]


OpenAgent = Callable[..., Awaitable[Agent]]


@pytest.fixture
async def open_agent(home: Home, runtime: FakeRuntime) -> AsyncIterator[OpenAgent]:
    """Opens agents over the same home; at the end, ends every sandbox of the last one and closes all."""
    agents: list[Agent] = []

    async def open_one(*, capacity: int = 8, **limits: float) -> Agent:
        if agents:
            await agents[-1].close()
        agent = Agent(
            home=home, runtime=runtime, places=LoopbackPlaces(capacity=capacity), **limits
        )
        agents.append(agent)
        await agent.open()
        return agent

    yield open_one
    runtime.behavior.leaks = False
    if agents and not agents[-1].is_closing:
        for status in agents[-1].statuses():
            await agents[-1].kill(status.sandbox_id)
        await agents[-1].close()


@pytest.fixture
async def agent(open_agent: OpenAgent) -> Agent:
    return await open_agent()
