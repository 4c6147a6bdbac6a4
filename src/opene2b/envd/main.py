"""Run envd on a socket that listens already, until SIGTERM.

Called in a process that was forked into a sandbox: nothing may be imported from here on, nothing is known of the
parent's event loop, and the random state of the parent is not ours.
"""

import asyncio
import encodings.idna  # noqa: F401 - looked up by name at the first use, so it must be here already
import logging
import os
import random
import signal
import socket
from collections.abc import Callable

from opene2b import ENVD_VERSION
from opene2b.connect.listener import HttpServer
from opene2b.envd.app import App
from opene2b.envd.config import Config
from opene2b.envd.users import Users
from opene2b.linux import credentials

MARKS = "/run/e2b"
log = logging.getLogger(__name__)


def serve(
    listener: socket.socket,
    config: Config,
    *,
    ready: Callable[[], None] | None = None,
    users: Users | None = None,
) -> None:
    """Serve until SIGTERM. `ready` is called when connections are accepted."""
    # A reader that closed its end, or a file at its size limit, is an error to report and no reason to die. What envd
    # starts gets the defaults back (subprocess does that).
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN)
    # A terminal of the guest's is never ours. A handler and not SIG_IGN, which what envd starts would inherit.
    signal.signal(signal.SIGHUP, lambda *_: None)
    credentials.share_one_arena()
    random.seed()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    if config.write_marks:
        write_marks(config)
    asyncio.run(run(listener, config, ready, users))


async def run(
    listener: socket.socket,
    config: Config,
    ready: Callable[[], None] | None,
    users: Users | None,
) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    server = HttpServer(App(config, version=ENVD_VERSION, users=users))
    await server.open(listener)
    if ready is not None:
        ready()
    await ended.wait()
    await server.close()


def write_marks(config: Config) -> None:
    """/run/e2b/.E2B_*: how programs know that they run in a sandbox. Whatever the guest put there is its own."""
    values = {
        ".E2B_SANDBOX": "true",
        ".E2B_SANDBOX_ID": config.sandbox_id,
        ".E2B_TEMPLATE_ID": config.template_id,
    }
    try:
        os.makedirs(MARKS, mode=0o755, exist_ok=True)
        for name, value in values.items():
            flags = (
                os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
            )
            fd = os.open(f"{MARKS}/{name}", flags, 0o644)
            with os.fdopen(fd, "w") as file:
                file.write(value)
    except OSError as exc:
        log.warning("marks_not_written: %s", exc)
