"""The running processes and who listens to them. No transport.

Output is encoded once and queued for every subscriber. When the queue of one is full, reading from the process
pauses until that one has taken something: memory per subscriber is bounded by QUEUE_BYTES and one chunk.
Output that nobody listens to is dropped. How a process ended is remembered for MEMORY_S, of the last MAX_REMEMBERED.
"""

import asyncio
import binascii
import functools
import os
import signal
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

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
MAX_REMEMBERED = 2000
"""Some 400 bytes each: a client that starts hundreds of programs a second must not make envd grow."""


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


class Remembered(NamedTuple):
    """A process that has ended."""

    pid: int
    tag: str | None
    last: bytes
    """Its end event."""
    until: float
    """On the loop's clock."""

    def subscribe(self) -> Subscriber:
        """Begins with the start event, and has the end."""
        subscriber = Subscriber(lambda: None)
        subscriber.put(event(ProcessEvent(start=StartEvent(pid=self.pid))))
        subscriber.put(self.last)
        subscriber.ended = True
        return subscriber

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Nothing goes on."""


class Process:
    """A running process."""

    def __init__(self, config: ProcessConfig, tag: str | None) -> None:
        self.config = config
        self.tag = tag
        self.subscribers: set[Subscriber] = set()
        self.child = Child(on_output=self.output, on_end=self.end)
        self.expired = False
        """It was killed because its time was over."""
        self.timer: asyncio.TimerHandle | None = None
        self.on_end: Callable[[bytes], None]

    @property
    def pid(self) -> int:
        return self.child.pid

    def subscribe(self) -> Subscriber:
        """From now on; begins with the start event."""
        subscriber = Subscriber(self.balance)
        subscriber.put(event(ProcessEvent(start=StartEvent(pid=self.pid))))
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
        last = event(
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
            subscriber.put(last)
            subscriber.ended = True
        self.subscribers.clear()
        self.on_end(last)

    def expire(self) -> None:
        self.expired = True
        self.child.signal(signal.SIGKILL)


def event(payload: ProcessEvent) -> bytes:
    return codec.encode(EventResponse(event=payload))


class Controller:
    def __init__(self, config: Config) -> None:
        self.config = config
        self.processes: dict[int, Process] = {}
        self.remembered: dict[int, Remembered] = {}
        """By process id, the oldest first."""
        self.sweeper: asyncio.TimerHandle | None = None

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
        process.on_end = functools.partial(self.ended, process)
        # A pid that was used again: what was remembered of the older process is of no use now.
        self.remembered.pop(process.pid, None)
        self.processes[process.pid] = process
        if timeout_s is not None:
            process.timer = asyncio.get_running_loop().call_later(timeout_s, process.expire)
        return process

    def ended(self, process: Process, last: bytes) -> None:
        del self.processes[process.pid]
        until = asyncio.get_running_loop().time() + MEMORY_S
        self.remembered[process.pid] = Remembered(process.pid, process.tag, last, until)
        self.forget()

    def forget(self) -> None:
        """What is over its time or one too many; comes again when the next one's time is over."""
        loop = asyncio.get_running_loop()
        while self.remembered:
            oldest = next(iter(self.remembered.values()))
            if len(self.remembered) <= MAX_REMEMBERED and oldest.until > loop.time():
                break
            del self.remembered[oldest.pid]
        if self.sweeper is not None and (self.sweeper.when() <= loop.time() or not self.remembered):
            self.sweeper.cancel()
            self.sweeper = None
        if self.sweeper is None and self.remembered:
            self.sweeper = loop.call_at(oldest.until, self.forget)

    def find(self, *, pid: int | None, tag: str | None) -> Process:
        """One that runs. Raises NotFound, InvalidArgument (neither is given)."""
        found = self.find_or_recall(pid=pid, tag=tag)
        if isinstance(found, Remembered):
            raise NotFound(f"process with pid {found.pid} has ended")
        return found

    def find_or_recall(self, *, pid: int | None, tag: str | None) -> Process | Remembered:
        """One that runs, or has ended lately. Raises NotFound, InvalidArgument (neither is given)."""
        if pid is not None:
            known = self.processes.get(pid) or self.remembered.get(pid)
            if known is None:
                raise NotFound(f"process with pid {pid} not found")
            return known
        if tag is None:
            raise InvalidArgument("a process is selected by pid or by tag")
        for process in reversed(self.processes.values()):
            if process.tag == tag:
                return process
        for ended in reversed(self.remembered.values()):
            if ended.tag == tag:
                return ended
        raise NotFound(f"process with tag '{tag}' not found")

    def close_input(self, process: Process) -> None:
        if process.child.master is not None:
            raise WrongState("a terminal has no standard input to close; send it Ctrl-D")
        process.child.close_input()
