"""The control plane with a real node agent over a real socket; only the runtime isolates nothing."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx

from opene2b.api import app
from opene2b.api.call import Parts
from opene2b.core import keys
from opene2b.core.ids import ImageId, KeyId, NodeId, TeamId, new_uuid
from opene2b.core.paths import Home
from opene2b.core.records import ApiKey, Team
from opene2b.core.resources import Resources
from opene2b.image import manifest as manifests
from opene2b.image.manifest import Manifest
from opene2b.node import server
from opene2b.node.agent import Agent
from opene2b.node.places import LoopbackPlaces
from opene2b.runtime.fake.driver import FakeRuntime
from opene2b.scheduler import templates, tokens
from opene2b.scheduler.node import Node
from opene2b.scheduler.reconcile import Reconciler
from opene2b.scheduler.sandboxes import Scheduler, Settings
from opene2b.store.memory import MemoryStore
from opene2b.store.protocol import Store

ENVD = """
import http.server, json
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(204)
        self.end_headers()
    def log_message(self, *args):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(json.dumps({"port": server.server_port}), flush=True)
server.serve_forever()
"""
"""Stands in for envd where the test is of the control plane: it starts in a third of the time."""
SETTINGS = Settings(resources=Resources(), max_timeout_s=3600, team_max_sandboxes=5)
CAPACITY = 6


@dataclass(kw_only=True)
class ControlPlane:
    store: Store
    home: Home
    runtime: FakeRuntime
    agent: Agent
    scheduler: Scheduler
    reconciler: Reconciler
    parts: Parts
    team: Team
    client: httpx.AsyncClient
    """With the first team's key."""

    async def key_of_another_team(self) -> str:
        return await add_team(self.store, "other")


async def add_team(store: Store, slug: str) -> str:
    """A team and a key of it."""
    now = datetime.now(UTC)
    team = await store.ensure_team(
        Team(id=TeamId(new_uuid()), name=slug, slug=slug, created_at=now)
    )
    key = keys.generate_key()
    await store.add_key(
        ApiKey(
            id=KeyId(new_uuid()),
            team_id=team.id,
            name="test",
            digest=keys.digest(key),
            masked=keys.mask(key),
            created_at=now,
        )
    )
    return key


def make_home(root: Path) -> Home:
    home = Home(root)
    (home.layers / "one").mkdir(parents=True)
    manifests.save(home, Manifest(image_id=ImageId("base"), layers=["one"], env_vars={}))
    home.run.mkdir()
    return home


@asynccontextmanager
async def running(
    home: Home, *, store: Store | None = None, settings: Settings = SETTINGS
) -> AsyncIterator[ControlPlane]:
    """Everything but the HTTP server; sandboxes that are left are ended."""
    runtime = FakeRuntime(command=(sys.executable, "-S", "-c", ENVD))
    agent = Agent(home=home, runtime=runtime, places=LoopbackPlaces(capacity=CAPACITY))
    await agent.open()
    try:
        async with server.serve(agent, home.node_socket, control_gid=None):
            async with control_plane(home, agent, runtime, store, settings) as plane:
                try:
                    yield plane
                finally:
                    runtime.behavior.leaks = False
                    for status in agent.statuses():
                        await agent.kill(status.sandbox_id)
    finally:
        await agent.close()


@asynccontextmanager
async def control_plane(
    home: Home, agent: Agent, runtime: FakeRuntime, store: Store | None, settings: Settings
) -> AsyncIterator[ControlPlane]:
    store = store or MemoryStore()
    await store.open()
    key = await add_team(store, "default")  # one more of it at each start
    team = await store.ensure_team(
        Team(id=TeamId(new_uuid()), name="x", slug="default", created_at=datetime.now(UTC))
    )
    await templates.ensure_default(store, "base", ImageId("base"), settings.resources)
    await templates.ensure_default(store, "unbuilt", ImageId("unbuilt"), settings.resources)
    node = Node(f"unix:{home.node_socket}", node_id=NodeId("local"))
    scheduler = Scheduler(store=store, node=node, tokens=tokens.random_tokens(), settings=settings)
    reconciler = Reconciler(scheduler)
    reconciling = asyncio.create_task(reconciler.run())
    parts = Parts(store=store, scheduler=scheduler, domain="e2b.test", draining=asyncio.Event())
    try:
        await asyncio.wait_for(reconciler.first.wait(), 10)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app.create(parts)),
            base_url="http://api.test",
            headers={"X-API-Key": key},
        ) as client:
            yield ControlPlane(
                store=store,
                home=home,
                runtime=runtime,
                agent=agent,
                scheduler=scheduler,
                reconciler=reconciler,
                parts=parts,
                team=team,
                client=client,
            )
    finally:
        reconciling.cancel()
        await asyncio.gather(reconciling, return_exceptions=True)
        await scheduler.close()
        await node.close()
        await store.close()
