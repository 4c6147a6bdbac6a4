"""`opene2b serve`: all of it on one machine.

Starts the node agent (root), the control plane and the proxy (unprivileged) as processes of their own and keeps
them running. Nothing here is on the way of a request or of a sandbox: this process may be killed at any moment.
"""

import asyncio
import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from opene2b.cli import first_key, launcher, layout, ports, setup_base
from opene2b.cli.child import Child
from opene2b.cli.config import Config
from opene2b.core.errors import ServiceError
from opene2b.core.paths import Home
from opene2b.linux import processes

SECRETS = ("OPENE2B_API_KEY", "OPENE2B_BASE_IMAGE_PASSWORD", "OPENE2B_BASE_IMAGE_USERNAME")
"""Settings that no child gets but the one that needs them."""
HEALTH_EVERY_S = 0.02
SLOW_START_S = 20.0
LEFT_S = 5.0


def run(config: Config) -> int:
    layout.need_root("opene2b serve")
    with layout.held(config.home):
        layout.make(config.home)
        end_left_behind(config.home)
        ports.need(
            config.host,
            {"E2B_API_PORT": config.api_port, "OPENE2B_PROXY_PORT": config.proxy_port},
        )
        key = first_key.ensure(config)
        return asyncio.run(Supervisor(config, key).run())


def say(sentence: str) -> None:
    print(sentence, flush=True)


class Supervisor:
    """Owns the three children; one life: `run`."""

    def __init__(self, config: Config, key: str) -> None:
        self.config = config
        self.key = key
        self.interrupted = asyncio.Event()
        self.hurried = asyncio.Event()
        env = {name: value for name, value in os.environ.items() if name not in SECRETS}
        env["PYTHONUNBUFFERED"] = "1"
        home = config.home
        writable = [home.run, home.database.parent]
        self.node = self.child("node", launcher.command(launcher.opene2b("node")), env)
        self.api = self.child(
            "api",
            launcher.command(launcher.opene2b("api"), identity="control-plane", writable=writable),
            # The control plane registers it: a digest in the database, never the key.
            {**env, "OPENE2B_API_KEY": key},
        )
        self.proxy = self.child(
            "proxy",
            launcher.command(launcher.opene2b("proxy"), identity="proxy", writable=[home.run]),
            env,
        )
        self.children = (self.api, self.proxy, self.node)
        """In the order in which they are stopped: no new requests first, then no new connections."""

    def child(self, name: str, command: list[str], env: dict[str, str]) -> Child:
        return Child(name, command, env=env, log=self.config.home.logs / f"{name}.log", say=say)

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self.on_signal)
        keepers = [
            asyncio.create_task(child.keep(), name=child.name)
            for child in (self.node, self.api, self.proxy)
        ]
        extra = [
            asyncio.create_task(self.announce(), name="announce"),
            asyncio.create_task(self.provide_base(), name="base"),
            asyncio.create_task(self.remember_children(), name="remember"),
        ]
        interrupted = asyncio.create_task(self.interrupted.wait())
        try:
            await asyncio.wait({interrupted, *keepers}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in extra:
                task.cancel()
            await asyncio.gather(*extra, return_exceptions=True)
            interrupted.cancel()
            await self.stop()
            results = await asyncio.gather(*keepers, return_exceptions=True)
        children_path(self.config.home).unlink(missing_ok=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        self.say_goodbye()
        return 0

    def on_signal(self) -> None:
        if self.interrupted.is_set():
            self.hurried.set()
        else:
            say("\nstopping the server; once more to hurry")
            self.interrupted.set()

    async def stop(self) -> None:
        orderly = asyncio.create_task(self.stop_in_order())
        hurry = asyncio.create_task(self.hurried.wait())
        await asyncio.wait({orderly, hurry}, return_when=asyncio.FIRST_COMPLETED)
        if not orderly.done():
            await asyncio.gather(*(child.kill() for child in self.children))
        hurry.cancel()
        await orderly

    async def stop_in_order(self) -> None:
        for child in self.children:
            await child.stop()

    def say_goodbye(self) -> None:
        count = layout.sandbox_count(self.config.home)
        if count:
            noun = "sandbox keeps" if count == 1 else "sandboxes keep"
            say(
                f"the server has stopped. {count} {noun} running for its next start;"
                " `opene2b down` ends them"
            )
        else:
            say("the server has stopped; no sandbox is left")

    async def announce(self) -> None:
        """Say once that the server can be used, and how."""
        started = time.monotonic()
        host = "127.0.0.1" if self.config.host in {"0.0.0.0", "::"} else self.config.host
        is_late = False
        while not (
            await answers_200(host, self.config.api_port)
            and await accepts(host, self.config.proxy_port)
        ):
            await asyncio.sleep(HEALTH_EVERY_S)
            if not is_late and time.monotonic() - started > SLOW_START_S:
                is_late = True
                say(f"still starting; what the parts say is in {self.config.home.logs}")
        for child in self.children:
            child.may_give_up = False
        shown = "localhost" if host == "127.0.0.1" else host
        say(
            f"OpenE2B is ready ({time.monotonic() - started:.1f} s). For clients:\n\n"
            f"export E2B_API_URL=http://{shown}:{self.config.api_port}\n"
            f"export E2B_SANDBOX_URL=http://{shown}:{self.config.proxy_port}\n"
            f"export E2B_API_KEY={self.key}\n\n"
            "Ctrl-C stops the server; sandboxes keep running until their time is up"
            " or `opene2b down`."
        )
        if self.config.runtime == "fake":
            say("warning: OPENE2B_RUNTIME=fake isolates nothing: for tests only")

    async def provide_base(self) -> None:
        """Build the base template when it is missing; meanwhile creates answer 503."""
        if setup_base.is_built(self.config.home):
            return
        say("the base template is missing: building it now (once)")
        try:
            await setup_base.build(self.config)
        except ServiceError as exc:
            say(f"{exc.message}\n{exc.detail or ''}".rstrip())
            say("creates answer 503 until `opene2b setup-base` or the next start has built it")

    async def remember_children(self) -> None:
        """Keep on disk who the children are, for the next start after a SIGKILL of this process."""
        known: dict[str, tuple[int, int]] = {}
        while True:
            now: dict[str, tuple[int, int]] = {}
            for child in self.children:
                if child.process is not None and child.process.returncode is None:
                    started = processes.start_time(child.process.pid)
                    if started is not None:
                        now[child.name] = (child.process.pid, started)
            if now != known:
                known = now
                scratch = children_path(self.config.home).with_suffix(".new")
                scratch.write_text(json.dumps(known))
                scratch.replace(children_path(self.config.home))
            await asyncio.sleep(0.25)


def children_path(home: Home) -> Path:
    return home.run / "children.json"


def left_behind(home: Home) -> Iterator[tuple[str, int]]:
    """(name, pidfd) of children that outlived a `serve` that was killed. The caller closes the pidfds."""
    try:
        with open(children_path(home)) as file:
            known = json.load(file)
    except (FileNotFoundError, ValueError):
        return
    for name, (pid, started) in known.items():
        fd = processes.open_process(pid, started)
        if fd is not None:
            yield name, fd


def end_left_behind(home: Home, *, limit_s: float = LEFT_S) -> None:
    """They were told to end when their parent died; one that hangs must not block a new start."""
    for name, fd in left_behind(home):
        try:
            processes.kill(fd, signal.SIGTERM)
            if not has_ended(fd, limit_s):
                print(f"{name} of an earlier server hangs and is killed", file=sys.stderr)
                processes.kill(fd)
                has_ended(fd, limit_s)
        finally:
            os.close(fd)


def has_ended(pidfd: int, limit_s: float) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(limit_s * 1000))


async def answers_200(host: str, port: int) -> bool:
    """Whether GET /health answers 200."""
    try:
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(
                    f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
                )
                status = await reader.readline()
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError):
        return False
    return status.split()[1:2] == [b"200"]


async def accepts(host: str, port: int) -> bool:
    try:
        async with asyncio.timeout(2):
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    except (OSError, TimeoutError):
        return False
    return True
