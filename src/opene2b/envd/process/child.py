"""Spawn one program and watch it: pipes or a terminal, output as it comes, its end.

When the program has ended, what it wrote is read until nothing is there now, and then its end is told: a process
that it left behind with its output still open does not keep callers waiting. Such output is read and dropped
from then on, so that the one left behind never meets a closed pipe.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import signal
import struct
import subprocess
import termios
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opene2b.core.errors import Internal, InvalidArgument, PermissionDenied, WrongState
from opene2b.envd.users import User
from opene2b.linux import credentials

PIPE_CHUNK = 32 << 10
PTY_CHUNK = 16 << 10
DRAIN_LIMIT = 2 << 20
"""Bytes read after the end at most: a pipe holds 64 KiB, or 1 MiB where somebody made it larger."""

SIGNAL_WORDS = {
    signal.SIGHUP: "hangup",
    signal.SIGINT: "interrupt",
    signal.SIGQUIT: "quit",
    signal.SIGILL: "illegal instruction",
    signal.SIGTRAP: "trace/breakpoint trap",
    signal.SIGABRT: "aborted",
    signal.SIGBUS: "bus error",
    signal.SIGFPE: "floating point exception",
    signal.SIGKILL: "killed",
    signal.SIGUSR1: "user defined signal 1",
    signal.SIGSEGV: "segmentation fault",
    signal.SIGUSR2: "user defined signal 2",
    signal.SIGPIPE: "broken pipe",
    signal.SIGALRM: "alarm clock",
    signal.SIGTERM: "terminated",
}
"""As Go prints them: clients compare `signal: killed`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminal:
    rows: int
    cols: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a program ended. `exit_code` is -1 when a signal ended it."""

    exit_code: int
    exited: bool
    status: str
    error: str | None


def ended(returncode: int) -> Ended:
    if returncode < 0:
        number = -returncode
        try:
            word = SIGNAL_WORDS.get(signal.Signals(number), f"signal {number}")
        except ValueError:
            word = f"signal {number}"
        text = f"signal: {word}"
        return Ended(exit_code=-1, exited=False, status=text, error=text)
    text = f"exit status {returncode}"
    return Ended(exit_code=returncode, exited=True, status=text, error=text if returncode else None)


class Child:
    """A running program. `on_output(kind, data)` gets `stdout`, `stderr` or `pty`; `on_end` comes last, once."""

    def __init__(
        self,
        *,
        on_output: Callable[[str, bytes], None],
        on_end: Callable[[Ended], None],
    ) -> None:
        self.on_output = on_output
        self.on_end = on_end
        self.loop = asyncio.get_running_loop()
        self.process: subprocess.Popen[bytes]
        self.pid = 0
        self.outputs: dict[int, str] = {}
        """Open descriptors that we read -> kind."""
        self.input_fd: int | None = None
        self.master: int | None = None
        self.pidfd = -1
        self.has_ended = False
        self.paused = False
        self.writing = asyncio.Lock()
        """One input at a time: pieces of two callers must not mix."""

    def start(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str,
        user: User,
        stdin: bool,
        terminal: Terminal | None,
    ) -> None:
        """Raises InvalidArgument, PermissionDenied or Internal; nothing is left then."""
        with contextlib.ExitStack() as undo:
            if terminal is not None:
                master, slave = os.openpty()
                undo.callback(os.close, master)
                mine = [slave]
                set_size(master, terminal)
                streams = {"stdin": slave, "stdout": slave, "stderr": slave}
                outputs = {master: "pty"}
                input_fd = None
                if os.geteuid() == 0:
                    os.fchown(slave, user.uid, -1)
            else:
                out_read, out_write = pipe(undo)
                error_read, error_write = pipe(undo)
                mine = [out_write, error_write]
                master = None
                outputs = {out_read: "stdout", error_read: "stderr"}
                streams = {"stdin": subprocess.DEVNULL, "stdout": out_write, "stderr": error_write}
                input_fd = None
                if stdin:
                    in_read, input_fd = os.pipe2(os.O_CLOEXEC)
                    undo.callback(os.close, input_fd)
                    mine.append(in_read)
                    streams["stdin"] = in_read
            try:
                self.process = spawn(
                    command, streams, env=env, cwd=cwd, user=user, has_terminal=terminal is not None
                )
            except (FileNotFoundError, NotADirectoryError) as exc:
                raise InvalidArgument(f"cannot start '{command[0]}': no such file") from exc
            except PermissionError as exc:
                place = f" in '{cwd}'" if exc.filename == cwd else ""
                raise PermissionDenied(
                    f"cannot start '{command[0]}'{place}: permission denied"
                ) from exc
            except ValueError as exc:
                raise InvalidArgument(f"cannot start '{command[0]}': {exc}") from exc
            except (OSError, subprocess.SubprocessError) as exc:
                if isinstance(exc, OSError) and exc.errno in {errno.E2BIG, errno.ENOEXEC}:
                    raise InvalidArgument(
                        f"cannot start '{command[0]}': {exc.strerror or exc}"
                    ) from exc
                raise Internal(f"cannot start '{command[0]}': {exc}") from exc
            finally:
                for fd in mine:
                    os.close(fd)
            undo.pop_all()
        self.pid = self.process.pid
        self.master = master
        self.input_fd = input_fd
        self.outputs = outputs
        for fd in [*outputs, *([input_fd] if input_fd is not None else [])]:
            os.set_blocking(fd, False)
        self.pidfd = os.pidfd_open(self.pid)
        self.loop.add_reader(self.pidfd, self.ended)
        for fd in outputs:
            self.loop.add_reader(fd, self.read, fd)

    def read(self, fd: int) -> bool:
        """Read one chunk; False when there is nothing now (or never again)."""
        kind = self.outputs[fd]
        try:
            data = os.read(fd, PTY_CHUNK if kind == "pty" else PIPE_CHUNK)
        except BlockingIOError:
            return False
        except OSError as exc:
            # A terminal whose last user has gone says EIO where a pipe says end of file.
            if exc.errno != errno.EIO:
                raise
            data = b""
        if not data:
            self.close_output(fd)
            return False
        if not self.has_ended:
            self.on_output(kind, data)
        return True

    def close_output(self, fd: int) -> None:
        self.loop.remove_reader(fd)
        del self.outputs[fd]
        if fd == self.master:
            # Kept until the end for input and size; the end closes it.
            if not self.has_ended:
                return
            self.master = None
        os.close(fd)

    def pause(self) -> None:
        """Stop reading output: the program waits when its pipe is full."""
        if not self.paused and not self.has_ended:
            self.paused = True
            for fd in self.outputs:
                self.loop.remove_reader(fd)

    def resume(self) -> None:
        if self.paused:
            self.paused = False
            for fd in self.outputs:
                self.loop.add_reader(fd, self.read, fd)

    def ended(self) -> None:
        returncode = self.process.poll()
        if returncode is None:
            return
        self.loop.remove_reader(self.pidfd)
        os.close(self.pidfd)
        self.pidfd = -1
        for fd in list(self.outputs):
            left = DRAIN_LIMIT
            while left > 0 and fd in self.outputs and self.read(fd):
                left -= PTY_CHUNK
        self.has_ended = True
        self.close_input()
        if self.master is not None and self.master not in self.outputs:
            os.close(self.master)
            self.master = None
        if self.paused:
            # From now on output is dropped, and must be read for that.
            self.resume()
        self.on_end(ended(returncode))

    def signal(self, number: signal.Signals) -> None:
        """To the whole process group of the program: what a shell started goes with it."""
        if self.has_ended or self.process.poll() is not None:
            return
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return
        except PermissionError:
            # Every member has become another user's (sudo): as root this cannot happen.
            self.process.send_signal(number)

    async def write(self, data: bytes, *, to_terminal: bool) -> None:
        """Raises WrongState when there is no such input, or the program does not read any more."""
        async with self.writing:
            view = memoryview(data)
            while view:
                fd = self.master if to_terminal else self.input_fd
                if fd is None or self.has_ended:
                    what = "terminal" if to_terminal else "standard input"
                    raise WrongState(f"process {self.pid} has no open {what}")
                try:
                    view = view[os.write(fd, view) :]
                except BlockingIOError:
                    await self.writable(fd)
                except (BrokenPipeError, OSError) as exc:
                    raise WrongState(
                        f"process {self.pid} reads its input no more", detail=str(exc)
                    ) from exc

    async def writable(self, fd: int) -> None:
        # A copy: `fd` may be closed (and its number used again) while we wait.
        copy = os.dup(fd)
        future: asyncio.Future[None] = self.loop.create_future()

        def now() -> None:
            if not future.done():
                future.set_result(None)

        self.loop.add_writer(copy, now)
        try:
            await future
        finally:
            self.loop.remove_writer(copy)
            os.close(copy)

    def close_input(self) -> None:
        if self.input_fd is not None:
            os.close(self.input_fd)
            self.input_fd = None

    def resize(self, terminal: Terminal) -> None:
        """Raises WrongState when it has no terminal."""
        if self.master is None:
            raise WrongState(f"process {self.pid} has no terminal")
        set_size(self.master, terminal)


def spawn(
    command: Sequence[str],
    streams: Mapping[str, int],
    *,
    env: Mapping[str, str],
    cwd: str,
    user: User,
    has_terminal: bool,
) -> "subprocess.Popen[bytes]":
    """Start a program in a session of its own, as the user. Raises what subprocess does."""
    is_root = os.geteuid() == 0

    def start(**more: Any) -> "subprocess.Popen[bytes]":
        options: dict[str, Any] = {**streams, **more, "start_new_session": True, "umask": 0o022}
        return subprocess.Popen(command, env=env, cwd=cwd, **options)

    if has_terminal:
        identity = {"user": user.uid, "group": user.gid, "extra_groups": user.groups}
        return start(preexec_fn=take_terminal, **(identity if is_root else {}))
    # With nothing to do between fork and exec, Python uses vfork.
    return credentials.run_as(user.uid, user.gid, user.groups, start) if is_root else start()


def pipe(undo: contextlib.ExitStack) -> tuple[int, int]:
    """(read end, write end); only the read end is undone: the other is closed in any case."""
    read, write = os.pipe2(os.O_CLOEXEC)
    undo.callback(os.close, read)
    return read, write


def set_size(fd: int, terminal: Terminal) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", terminal.rows, terminal.cols, 0, 0))


def take_terminal() -> None:
    """In the child, after setsid: make standard input its controlling terminal."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
