"""A node agent that goes on while control planes come and go."""

import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import pytest
from control_plane import CAPACITY, ENVD, SETTINGS, ControlPlane, control_plane, make_home

from opene2b.core.paths import Home
from opene2b.node import server
from opene2b.node.agent import Agent
from opene2b.node.places import LoopbackPlaces
from opene2b.runtime.fake.driver import FakeRuntime
from opene2b.store.sqlite import SqliteStore


@dataclass
class Host:
    home: Home
    runtime: FakeRuntime
    agent: Agent

    def control_plane(self) -> AbstractAsyncContextManager[ControlPlane]:
        """The next life of the control plane: same records, same node."""
        store = SqliteStore(self.home.root / "test.db")
        return control_plane(self.home, self.agent, self.runtime, store, SETTINGS)


@pytest.fixture
async def host(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Host]:
    home = make_home(tmp_path_factory.mktemp("h"))
    runtime = FakeRuntime(command=(sys.executable, "-S", "-c", ENVD))
    agent = Agent(home=home, runtime=runtime, places=LoopbackPlaces(capacity=CAPACITY))
    await agent.open()
    try:
        async with server.serve(agent, home.node_socket, control_gid=None):
            yield Host(home, runtime, agent)
        for status in agent.statuses():
            await agent.kill(status.sandbox_id)
    finally:
        await agent.close()
