"""`opene2b api`: join the parts of the control plane and run until SIGTERM. Needs no privileges."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack

import uvicorn
import uvloop

from opene2b.api import app
from opene2b.api.call import Parts
from opene2b.cli import first_key, keys, limits, logs
from opene2b.cli.config import Config
from opene2b.core.errors import Unsupported
from opene2b.core.ids import ImageId, NodeId
from opene2b.core.resources import Resources
from opene2b.scheduler import templates, tokens
from opene2b.scheduler.node import Node
from opene2b.scheduler.reconcile import FIRST_LIMIT_S, Reconciler
from opene2b.scheduler.sandboxes import Scheduler, Settings
from opene2b.store.protocol import Store

log = logging.getLogger(__name__)

LOCAL = NodeId("local")
IDLE_S = 620
"""Keep-alive of unused connections. Source: E2B REST contract, limits."""
GRACE_S = 3.0
"""What requests under way get to finish when the process is told to end."""


class Server(uvicorn.Server):
    """uvicorn without its own signal handlers, which would end the process before the parts are closed."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run(config: Config) -> None:
    logs.to_stderr()
    limits.raise_descriptors()
    # It is not needed again, and what is started from here should not see it.
    key = os.environ.pop("OPENE2B_API_KEY", None) or first_key.read(config)
    if key is None:
        raise Unsupported(
            "there is no first API key: start `opene2b serve`, which makes one, or set OPENE2B_API_KEY"
        )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(config, key))


async def serve(config: Config, key: str) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # Undone in reverse: requests end first, then the scheduler's work, then what both stand on.
    async with AsyncExitStack() as stack:
        store = make_store(config)
        await store.open()
        stack.push_async_callback(store.close)
        team = await keys.default_team(store)
        await keys.register(store, team.id, key, "first key")
        resources = Resources(cpu_count=config.cpu_count, memory_mib=config.memory_mib)
        await templates.ensure_default(store, "base", ImageId("base"), resources)
        node = Node(f"unix:{config.home.node_socket}", node_id=LOCAL)
        stack.push_async_callback(node.close)
        seed = config.home.database.with_name("token-seed")
        scheduler = Scheduler(
            store=store,
            node=node,
            tokens=tokens.random_tokens() if config.in_memory_store else tokens.load(seed),
            settings=Settings(
                resources=resources,
                max_timeout_s=config.max_timeout_hours * 3600,
                team_max_sandboxes=config.team_max_sandboxes,
            ),
        )
        stack.push_async_callback(scheduler.close)
        reconciler = Reconciler(scheduler)
        reconciling = asyncio.create_task(reconciler.run(), name="reconciler")
        stack.callback(reconciling.cancel)
        await first_comparison(reconciler, stop)
        parts = Parts(
            store=store, scheduler=scheduler, domain=config.domain, draining=asyncio.Event()
        )
        server = Server(
            uvicorn.Config(
                app.create(parts),
                host=config.host,
                port=config.api_port,
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=IDLE_S,
                timeout_graceful_shutdown=int(GRACE_S),
            )
        )
        serving = asyncio.create_task(server.serve(), name="http")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        log.info("api_ready", extra={"port": config.api_port, "pid": os.getpid()})
        await asyncio.wait({serving, stopping, reconciling}, return_when=asyncio.FIRST_COMPLETED)
        parts.draining.set()
        server.should_exit = True
        stopping.cancel()
        await serving
        if reconciling.done():
            reconciling.result()
        log.info("api_stopped")


async def first_comparison(reconciler: Reconciler, stop: asyncio.Event) -> None:
    """Wait until records and node agree, so that the first answer is right; not for ever, for an agent may be down."""
    compared = asyncio.create_task(reconciler.first.wait())
    stopped = asyncio.create_task(stop.wait())
    waiting = {compared, stopped}
    await asyncio.wait(waiting, timeout=FIRST_LIMIT_S, return_when=asyncio.FIRST_COMPLETED)
    if not compared.done() and not stopped.done():
        log.warning("node_not_found_yet", extra={"waited_s": FIRST_LIMIT_S})
    for task in waiting:
        task.cancel()


def make_store(config: Config) -> Store:
    if config.in_memory_store:
        from opene2b.store.memory import MemoryStore

        return MemoryStore()
    from opene2b.store.sqlite import SqliteStore

    return SqliteStore(config.home.database)
