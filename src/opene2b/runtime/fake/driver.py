"""A driver for tests. It ISOLATES NOTHING: what a "sandbox" runs, runs on this machine as whoever runs the agent.

It keeps the promises of the protocol all the same: sandboxes outlive the agent, are found again by process id
and start time, and end with everything they started (as far as that can be told without a cgroup: what
lies below envd's process or in its session; a daemon that left both escapes).
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from opene2b.core.errors import DeadlineExceeded, Internal
from opene2b.core.ids import SandboxId
from opene2b.core.paths import Home
from opene2b.linux import processes
from opene2b.runtime.fake import family
from opene2b.runtime.protocol import Capabilities, Exit, Handle, Isolation, SandboxSpec, Status

log = logging.getLogger(__name__)

READY_LIMIT_S = 20.0
"""A cold interpreter on a busy machine takes seconds."""
LINE_LIMIT_BYTES = 4096
STARTED = "started.json"
LOG = "envd.log"
CONFIG = "envd.json"
ENVD = (sys.executable, "-m", "opene2b.envd")


@dataclass(slots=True, kw_only=True)
class Behavior:
    """What goes wrong on purpose. Read at each call, so a test may change it on the way."""

    start_delay_s: float = 0.0
    starts: bool = True
    """False: start hangs until it is cancelled."""
    start_error: Exception | None = None
    """Raised by start, after envd was up."""
    dies_after_s: float | None = None
    """envd is killed so long after its start."""
    leaks: bool = False
    """stop and destroy raise and free nothing."""


def create(*, home: Home, oci_binary: str | None) -> "FakeRuntime":
    return FakeRuntime()


class FakeRuntime:
    """See `runtime.protocol`. A handle is {sandbox_id, directory, pid, started, port}."""

    name = "fake"
    capabilities = Capabilities(isolation=Isolation.NONE, pause=True)

    def __init__(self, *, command: Sequence[str] = ENVD, behavior: Behavior | None = None) -> None:
        """
        Args:
            command: Starts envd, as `python -m opene2b.envd` does: it is given `--host`, `--port` and
                `--config-fd`, and prints {"port": N} when it is ready.
        """
        self.command = tuple(command)
        self.behavior = behavior or Behavior()
        self.timers: set[asyncio.TimerHandle] = set()

    async def open(self) -> None:
        return

    async def close(self) -> None:
        for timer in self.timers:
            timer.cancel()
        self.timers.clear()

    async def start(self, spec: SandboxSpec) -> Handle:
        for layer in spec.layers:
            if not layer.is_dir():
                raise Internal(f"layer {layer.name} is missing", reason="layer_missing")
        try:
            handle = await self.start_envd(spec)
        except BaseException:
            await asyncio.shield(self.undo(spec.directory, spec.sandbox_id))
            raise
        if self.behavior.dies_after_s is not None:
            loop = asyncio.get_running_loop()
            self.timers.add(loop.call_later(self.behavior.dies_after_s, family.end, handle))
        return handle

    async def start_envd(self, spec: SandboxSpec) -> Handle:
        await asyncio.sleep(self.behavior.start_delay_s)
        if not self.behavior.starts:
            await asyncio.get_running_loop().create_future()
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            pid = self.spawn(spec, writing)
        except OSError:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        # Before anything else: an agent that dies now finds the process through this file.
        started = processes.start_time(pid)
        (spec.directory / STARTED).write_text(json.dumps({"pid": pid, "started": started}))
        port = await read_port(reading, spec)
        if self.behavior.start_error is not None:
            raise self.behavior.start_error
        return {
            "sandbox_id": spec.sandbox_id,
            "directory": str(spec.directory),
            "pid": pid,
            "started": started,
            "port": port,
        }

    def spawn(self, spec: SandboxSpec, writing: int) -> int:
        """No `Popen`: it insists on being the one who waits, and sandboxes outlive the agent."""
        config = spec.directory / CONFIG
        config.touch(mode=0o600)
        # User and directory of the image are not on this machine: envd takes those of the agent.
        known = {"sandbox_id", "template_id", "access_token", "env_vars"}
        told = {name: value for name, value in asdict(spec.envd).items() if name in known}
        config.write_text(json.dumps({**told, "env_vars": dict(spec.envd.env_vars)}))
        output = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        return os.posix_spawn(
            self.command[0],
            [*self.command, "--host", "127.0.0.1", "--port", "0", "--config-fd", "3"],
            {**os.environ, "PYTHONUNBUFFERED": "1"},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, writing, 1),
                (os.POSIX_SPAWN_OPEN, 2, str(spec.directory / LOG), output, 0o600),
                (os.POSIX_SPAWN_OPEN, 3, str(config), os.O_RDONLY, 0),
            ],
            setsid=True,
        )

    async def recover(self, handle: Handle) -> Status:
        if processes.start_time(handle["pid"]) != handle["started"]:
            return Status.ENDED
        return Status.PAUSED if family.is_stopped(handle["pid"]) else Status.RUNNING

    async def pause(self, handle: Handle) -> None:
        family.end(handle, signal.SIGSTOP)
        # The signal is sent; that it has been taken is seen a moment later.
        while await self.recover(handle) is Status.RUNNING:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.001)

    async def resume(self, handle: Handle) -> None:
        family.end(handle, signal.SIGCONT)

    async def wait(self, handle: Handle) -> Exit:
        await family.ended(handle["pid"], handle["started"])
        return Exit(reason="exited")

    async def stop(self, handle: Handle, *, grace_s: float) -> None:
        self.fail_if_leaking(handle["sandbox_id"])
        if grace_s > 0:
            family.end(handle, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await family.ended(handle["pid"], handle["started"])
        family.end(handle)
        await family.ended(handle["pid"], handle["started"])

    async def destroy(self, handle: Handle) -> None:
        self.fail_if_leaking(handle["sandbox_id"])
        await self.undo(Path(handle["directory"]), SandboxId(handle["sandbox_id"]))

    def fail_if_leaking(self, sandbox_id: str) -> None:
        if self.behavior.leaks:
            raise Internal(f"cannot remove what sandbox '{sandbox_id}' used", reason="leak")

    async def undo(self, spec_directory: Path, sandbox_id: SandboxId) -> None:
        try:
            found = json.loads((spec_directory / STARTED).read_bytes())
        except (FileNotFoundError, json.JSONDecodeError):
            found = None
        if found is not None and found["started"] is not None:
            family.end(found)
            await family.ended(found["pid"], found["started"])
        (spec_directory / STARTED).unlink(missing_ok=True)

    def netns_path(self, handle: Handle) -> Path | None:
        return None

    def envd_port(self, handle: Handle) -> int:
        return int(handle["port"])


async def read_port(reading: int, spec: SandboxSpec) -> int:
    """The port that envd prints when it is ready. Closes the descriptor."""
    reader = asyncio.StreamReader(limit=LINE_LIMIT_BYTES)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb", buffering=0)
    )
    try:
        async with asyncio.timeout(READY_LIMIT_S):
            line = await reader.readline()
        return int(json.loads(line)["port"])
    except TimeoutError:
        raise DeadlineExceeded(f"envd was not ready in {READY_LIMIT_S:g} s") from None
    except (ValueError, KeyError, TypeError) as exc:
        said = (spec.directory / LOG).read_text(errors="replace")[-2000:]
        raise Internal("envd did not start", detail=said or str(exc)) from exc
    finally:
        transport.close()
