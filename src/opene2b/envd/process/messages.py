"""Messages of process.Process. Source: E2B envd contract, process.proto."""

import msgspec

from opene2b.connect.codec import Blob, Message


class ProcessConfig(Message):
    cmd: str = ""
    args: list[str] = msgspec.field(default_factory=list)
    envs: dict[str, str] = msgspec.field(default_factory=dict)
    cwd: str | None = None


class Size(Message):
    cols: int = 0
    rows: int = 0


class Pty(Message):
    size: Size | None = None


class StartRequest(Message):
    process: ProcessConfig | None = None
    pty: Pty | None = None
    tag: str | None = None
    stdin: bool | None = None
    """Unset is true."""


class Selector(Message):
    pid: int | None = None
    tag: str | None = None


class ConnectRequest(Message):
    process: Selector | None = None


class UpdateRequest(Message):
    process: Selector | None = None
    pty: Pty | None = None


class Input(Message):
    stdin: Blob | None = None
    pty: Blob | None = None


class SendInputRequest(Message):
    process: Selector | None = None
    input: Input | None = None


class SendSignalRequest(Message):
    process: Selector | None = None
    signal: str | int = 0


class CloseStdinRequest(Message):
    process: Selector | None = None


class StreamInputStart(Message):
    process: Selector | None = None


class StreamInputData(Message):
    input: Input | None = None


class Empty(Message):
    pass


class StreamInputRequest(Message):
    """Exactly one is set."""

    start: StreamInputStart | None = None
    data: StreamInputData | None = None
    keepalive: Empty | None = None


class StartEvent(Message):
    pid: int


class DataEvent(Message):
    """Exactly one is set."""

    stdout: bytes | None = None
    stderr: bytes | None = None
    pty: bytes | None = None


class EndEvent(Message):
    exit_code: int = 0
    exited: bool = False
    status: str = ""
    error: str | None = None


class ProcessEvent(Message):
    """Exactly one is set."""

    start: StartEvent | None = None
    data: DataEvent | None = None
    end: EndEvent | None = None
    keepalive: Empty | None = None


class EventResponse(Message):
    """StartResponse and ConnectResponse."""

    event: ProcessEvent


class ProcessInfo(Message):
    config: ProcessConfig
    pid: int
    tag: str | None = None


class ListResponse(Message):
    processes: list[ProcessInfo] = msgspec.field(default_factory=list)
