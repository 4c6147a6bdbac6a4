"""process.Process on the wire. Source: E2B envd contract, process.proto and its semantics."""

import asyncio
import math
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Mapping

from opene2b.connect import codec
from opene2b.connect.http import Request
from opene2b.connect.server import Context, MethodSpec, client_stream, server_stream, unary
from opene2b.core.errors import DeadlineExceeded, InvalidArgument, NotFound, Unsupported
from opene2b.envd import keepalive
from opene2b.envd.process.child import Terminal
from opene2b.envd.process.controller import Controller, Process, Remembered, Subscriber
from opene2b.envd.process.messages import (
    CloseStdinRequest,
    ConnectRequest,
    Input,
    ListResponse,
    ProcessInfo,
    Pty,
    Selector,
    SendInputRequest,
    SendSignalRequest,
    StartRequest,
    StreamInputRequest,
    UpdateRequest,
)
from opene2b.envd.requests import Requests

KEEPALIVE_EVENT = b'{"event":{"keepalive":{}}}'
SIGNALS = {
    "SIGNAL_SIGTERM": signal.SIGTERM,
    "SIGNAL_SIGKILL": signal.SIGKILL,
    15: signal.SIGTERM,
    9: signal.SIGKILL,
}
MAX_SIZE = 65535
"""Of a terminal: the kernel keeps rows and columns in 16 bits."""
EMPTY = b"{}"


class ProcessService:
    def __init__(self, controller: Controller, requests: Requests) -> None:
        self.controller = controller
        self.requests = requests

    def methods(self) -> Mapping[str, MethodSpec]:
        return {
            "process.Process/List": unary(self.list),
            "process.Process/Start": server_stream(self.start),
            "process.Process/Connect": server_stream(self.connect),
            "process.Process/Update": unary(self.update),
            "process.Process/SendInput": unary(self.send_input),
            "process.Process/StreamInput": client_stream(self.stream_input),
            "process.Process/SendSignal": unary(self.send_signal),
            "process.Process/CloseStdin": unary(self.close_stdin),
        }

    async def list(self, raw: bytes, context: Context) -> bytes:
        infos = [
            ProcessInfo(config=process.config, pid=process.pid, tag=process.tag)
            for process in self.controller.processes.values()
        ]
        return codec.encode(ListResponse(processes=infos))

    async def start(self, raw: bytes, context: Context) -> AsyncGenerator[bytes, None]:
        message = codec.decode(raw, StartRequest)
        if message.process is None:
            raise InvalidArgument("process is missing")
        process = self.controller.start(
            message.process,
            user=self.requests.user(context.request),
            tag=message.tag,
            stdin=message.stdin is not False,
            terminal=terminal_of(message.pty) if message.pty is not None else None,
            timeout_s=context.timeout_s,
        )
        async for event in self.events(process, context.request):
            yield event
        if process.expired:
            raise DeadlineExceeded(f"process {process.pid} was killed: its time is over")

    async def connect(self, raw: bytes, context: Context) -> AsyncGenerator[bytes, None]:
        selector = selected(codec.decode(raw, ConnectRequest).process)
        process = self.controller.find_or_recall(pid=selector.pid, tag=selector.tag)
        # Ends the listening only: the lifetime of the process was set by its start.
        async for event in self.events(process, context.request, limit_s=context.timeout_s):
            yield event

    async def events(
        self, process: Process | Remembered, request: Request, *, limit_s: float | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Until the end event. Leaving early leaves the process alone.

        Raises DeadlineExceeded when the time is over: looked at between events, for nothing may be cut off in its
        middle by a reader that is slow.
        """
        interval = keepalive.interval(request)
        clock = asyncio.get_running_loop().time
        until = math.inf if limit_s is None else clock() + limit_s
        subscriber: Subscriber = process.subscribe()
        try:
            while True:
                event = subscriber.take()
                if event is None and subscriber.ended:
                    return
                left_s = until - clock()
                if left_s <= 0:
                    raise DeadlineExceeded("the time to listen is over")
                if event is not None:
                    yield event
                elif not await subscriber.wait(min(interval, left_s)) and left_s > interval:
                    yield KEEPALIVE_EVENT
        finally:
            process.unsubscribe(subscriber)

    async def update(self, raw: bytes, context: Context) -> bytes:
        message = codec.decode(raw, UpdateRequest)
        process = self.find(message.process)
        if message.pty is not None:
            process.child.resize(terminal_of(message.pty))
        return EMPTY

    async def send_input(self, raw: bytes, context: Context) -> bytes:
        message = codec.decode(raw, SendInputRequest)
        await write(self.find(message.process), message.input)
        return EMPTY

    async def stream_input(self, messages: AsyncIterator[bytes], context: Context) -> bytes:
        process: Process | None = None
        async for raw in messages:
            message = codec.decode(raw, StreamInputRequest)
            if message.start is not None:
                if process is not None:
                    raise InvalidArgument("the stream has two start messages")
                process = self.find(message.start.process)
            elif message.data is not None:
                if process is None:
                    raise InvalidArgument("the stream must begin with a start message")
                await write(process, message.data.input)
            elif message.keepalive is None:
                raise InvalidArgument("a message must be one of start, data, keepalive")
        if process is None:
            raise InvalidArgument("the stream must begin with a start message")
        return EMPTY

    async def send_signal(self, raw: bytes, context: Context) -> bytes:
        message = codec.decode(raw, SendSignalRequest)
        wanted = message.signal
        number = SIGNALS.get(int(wanted) if str(wanted).isdigit() else wanted)
        if number is None:
            raise Unsupported(f"signal {message.signal!a} is not supported")
        self.find(message.process).child.signal(number)
        return EMPTY

    async def close_stdin(self, raw: bytes, context: Context) -> bytes:
        process = self.find(codec.decode(raw, CloseStdinRequest).process)
        self.controller.close_input(process)
        return EMPTY

    def find(self, selector: Selector | None) -> Process:
        selector = selected(selector)
        return self.controller.find(pid=selector.pid, tag=selector.tag)


def selected(selector: Selector | None) -> Selector:
    if selector is None:
        raise InvalidArgument("process is missing")
    return selector


async def write(process: Process, given: Input | None) -> None:
    if given is None or (given.stdin is None) == (given.pty is None):
        raise InvalidArgument("input must be one of stdin, pty")
    try:
        if given.pty is not None:
            await process.child.write(given.pty.data, to_terminal=True)
        elif given.stdin is not None:
            await process.child.write(given.stdin.data, to_terminal=False)
    except ProcessLookupError as exc:
        raise NotFound(f"process with pid {process.pid} has ended") from exc


def terminal_of(pty: Pty) -> Terminal:
    if pty.size is None:
        return Terminal(rows=24, cols=80)
    if not (0 <= pty.size.rows <= MAX_SIZE and 0 <= pty.size.cols <= MAX_SIZE):
        raise InvalidArgument(f"rows and cols must be from 0 to {MAX_SIZE}")
    return Terminal(rows=pty.size.rows, cols=pty.size.cols)
