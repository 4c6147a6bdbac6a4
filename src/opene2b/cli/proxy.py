"""`opene2b proxy`: run the sandbox proxy until SIGTERM. Needs no privileges."""

import asyncio
import logging
import os
import signal

import uvloop

from opene2b.cli import limits, logs
from opene2b.cli.config import Config
from opene2b.proxy import server

log = logging.getLogger(__name__)


def run(config: Config) -> None:
    logs.to_stderr()
    limits.raise_descriptors()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(config))


async def serve(config: Config) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with server.serve(config.home.gateway_socket, config.host, config.proxy_port):
        log.info("proxy_ready", extra={"port": config.proxy_port, "pid": os.getpid()})
        await stop.wait()
        log.info("proxy_stopping")
