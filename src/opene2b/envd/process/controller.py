"""The running processes and who listens to them. No transport.

Output is encoded once and queued for every subscriber. When the queue of one is full, reading from the process
pauses until that one has taken something: memory per subscriber is bounded by QUEUE_BYTES and one chunk.
Output that nobody listens to is dropped. An ended process is remembered for MEMORY_S.
"""

import asyncio
import binascii
import os
import signal
from collections import deque
from collections.abc import Callable

from opene2b.connect import codec
from opene2b.core.errors import InvalidArgument, NotFound, WrongState
from opene2b.envd import environment, paths
from opene2b.envd.config import Config
from opene2b.envd.process.child import Child, Ended, Terminal
from opene2b.envd.process.messages import (
    EndEvent,
    EventResponse,
    ProcessConfig,
    ProcessEvent,
    StartEvent,
)
from opene2b.envd.users import User

QUEUE_BYTES = 1 << 20
MEMORY_S = 30.0


class Subscriber:
    """One listener's queue of encoded events."""

    def __init__(self, on_drained: Callable[[], None]) -> None:
        self.on_drained = on_drained
        self.events: deque[bytes] = deque()
        self.size = 0
        self.ended = False
        self.arrived = asyncio.Event()

    @property
    def is_full(self) -> bool:
        return self.size > QUEUE_BYTES

    def put(self, event: bytes) -> None:
        self.events.append(event)
        self.size += len(event)
        self.arrived.set()

    def take(self) -> bytes | None:
        """The oldest event; None when there is none now."""
        if not self.events:
            return None
        event = self.events.popleft()
        was_full = self.is_full
        self.size -= len(event)
        if was_full and not self.is_full:
            self.on_drained()
        return event

    async def wait(self, limit_s: float) -> bool:
        """Wait for an event (or the end); False when none came in time."""
        if self.events or self.ended:
            return True
        self.arrived.clear()
        try:
            async with asyncio.timeout(limit_s):
                await self.arrived.wait()
        except TimeoutError:
            return False
        return True


class Process:
    """A process that was started, until MEMORY_S after its end."""

    def __init__(self, config: ProcessConfig, tag: str | None) -> None:
        self.config = config
        self.tag = tag
        self.subscribers: set[Subscriber] = set()
        self.child = Child(on_output=self.output, on_end=self.end)
        self.last: bytes | None = None
        """The end event, once it has ended."""
        self.expired = False
        """It was killed because its time was over."""
        self.timer: asyncio.TimerHandle | None = None
        self.on_forget: Callable[[], None] = lambda: None

    @property
    def pid(self) -> int:
        return self.child.pid

    def subscribe(self) -> Subscriber:
        """From now on; begins with the start event, and for an ended process has its end."""
        subscriber = Subscriber(self.balance)
        subscriber.put(event(ProcessEvent(start=StartEvent(pid=self.pid))))
        if self.last is not None:
            subscriber.put(self.last)
            subscriber.ended = True
        else:
            self.subscribers.add(subscriber)
        return subscriber

    def unsubscribe(self, subscriber: Subscriber) -> None:
        self.subscribers.discard(subscriber)
        self.balance()

    def balance(self) -> None:
        if any(subscriber.is_full for subscriber in self.subscribers):
            self.child.pause()
        else:
            self.child.resume()

    def output(self, kind: str, data: bytes) -> None:
        if not self.subscribers:
            return
        # By hand: this is where bulk output passes, and the shape is fixed.
        encoded = b'{"event":{"data":{"%b":"%b"}}}' % (
            kind.encode(),
            binascii.b2a_base64(data, newline=False),
        )
        for subscriber in self.subscribers:
            subscriber.put(encoded)
        self.balance()

    def end(self, how: Ended) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.last = event(
            ProcessEvent(
                end=EndEvent(
                    exit_code=how.exit_code,
                    exited=how.exited,
                    status=how.status,
                    error=how.error,
                )
            )
        )
        for subscriber in self.subscribers:
            subscriber.put(self.last)
            subscriber.ended = True
        self.subscribers.clear()
        asyncio.get_running_loop().call_later(MEMORY_S, self.on_forget)

    def expire(self) -> None:
        self.expired = True
        self.child.signal(signal.SIGKILL)


def event(payload: ProcessEvent) -> bytes:
    return codec.encode(EventResponse(event=payload))


class Controller:
    def __init__(self, config: Config) -> None:
        self.config = config
        self.processes: dict[int, Process] = {}

    def start(
        self,
        config: ProcessConfig,
        *,
        user: User,
        tag: str | None,
        stdin: bool,
        terminal: Terminal | None,
        timeout_s: float | None,
    ) -> Process:
        """Raises InvalidArgument: no command, a directory that does not exist; see Child.start."""
        if not config.cmd:
            raise InvalidArgument("process.cmd is missing")
        if any("\0" in text for text in (config.cmd, *config.args)):
            raise InvalidArgument("the command contains a NUL")
        env = environment.of_command(self.config, user, config.envs)
        if any(not name or "=" in name or "\0" in name + text for name, text in env.items()):
            raise InvalidArgument("an environment variable has no name, '=' in it, or a NUL")
        cwd = paths.resolve(config.cwd or "", user, self.config.default_workdir)
        if not os.path.isdir(cwd):
            raise InvalidArgument(f"cwd '{cwd}' does not exist")  # wire: the original's words
        process = Process(config, tag)
        process.child.start(
            [config.cmd, *config.args],
            env=env,
            cwd=cwd,
            user=user,
            stdin=stdin,
            terminal=terminal,
        )
        # A pid that was used again: what was remembered of the older process is of no use now.
        self.processes[process.pid] = process

        def forget() -> None:
            if self.processes.get(process.pid) is process:
                del self.processes[process.pid]

        process.on_forget = forget
        if timeout_s is not None:
            process.timer = asyncio.get_running_loop().call_later(timeout_s, process.expire)
        return process

    def running(self) -> list[Process]:
        return [process for process in self.processes.values() if process.last is None]

    def find(self, *, pid: int | None, tag: str | None) -> Process:
        """Running or remembered. Raises NotFound, InvalidArgument (neither is given)."""
        if pid is not None:
            process = self.processes.get(pid)
            if process is None:
                raise NotFound(f"process with pid {pid} not found")
            return process
        if tag is None:
            raise InvalidArgument("a process is selected by pid or by tag")
        for process in reversed(self.processes.values()):
            if process.tag == tag:
                return process
        raise NotFound(f"process with tag '{tag}' not found")

    def find_running(self, *, pid: int | None, tag: str | None) -> Process:
        process = self.find(pid=pid, tag=tag)
        if process.last is not None:
            raise NotFound(f"process with pid {process.pid} has ended")
        return process

    def close_input(self, process: Process) -> None:
        if process.child.master is not None:
            raise WrongState("a terminal has no standard input to close; send it Ctrl-D")
        process.child.close_input()
