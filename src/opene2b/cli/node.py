"""`opene2b node`: join the parts of the node agent and run until SIGTERM. Sandboxes stay."""

import asyncio
import logging
import os
import signal
from contextlib import AsyncExitStack

from opene2b.cli import limits, logs
from opene2b.cli.config import Config
from opene2b.cli.unprivileged import CONTROL_PLANE, PROXY
from opene2b.node import gateway, lock, server
from opene2b.node.agent import Agent
from opene2b.node.places import LoopbackPlaces, Places, Preparing
from opene2b.runtime import registry
from opene2b.runtime.protocol import Isolation, Runtime

log = logging.getLogger(__name__)


def run(config: Config) -> None:
    """Raises WrongState when another agent is alive for this home; what the runtime lacks as it says it."""
    logs.to_stderr()
    limits.raise_descriptors()
    with lock.held(config.home.run / "node.pid"):
        asyncio.run(serve(config))


async def serve(config: Config) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    as_root = os.geteuid() == 0
    runtime = registry.create(config.runtime, home=config.home, oci_binary=config.oci_binary)
    # Undone in reverse: first nobody can ask any more, then the agent lets go, then the runtime.
    async with AsyncExitStack() as stack:
        await runtime.open()
        stack.push_async_callback(runtime.close)
        agent = Agent(home=config.home, runtime=runtime, places=make_places(config, runtime))
        stack.push_async_callback(agent.close)
        await agent.open()
        await stack.enter_async_context(
            gateway.serve(
                agent, config.home.gateway_socket, proxy_gid=PROXY.gid if as_root else None
            )
        )
        await stack.enter_async_context(
            server.serve(
                agent, config.home.node_socket, control_gid=CONTROL_PLANE.gid if as_root else None
            )
        )
        log.info("node_ready", extra={"runtime": runtime.name, "pid": os.getpid()})
        await stop.wait()
        log.info("node_stopping", extra={"sandboxes": len(agent.statuses())})


def make_places(config: Config, runtime: Runtime) -> Places:
    if runtime.capabilities.isolation is Isolation.NONE:
        return LoopbackPlaces(capacity=config.max_sandboxes)
    from opene2b.node.slots import Slots

    return Slots(
        subnet=config.subnet,
        capacity=config.max_sandboxes,
        warm=config.warm_slots,
        nameservers=config.nameservers,
        state=config.home.node / "slots",
        prepare=runtime.prepare if isinstance(runtime, Preparing) else None,
    )
