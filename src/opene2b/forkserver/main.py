"""The loop of the fork server: `python -m opene2b.forkserver FD`, where FD is its socket.

It lives exactly as long as the node agent holds the other end: end of file is its order to end. Sandboxes
and the envds in them go on; they are not its children for longer than it takes to start them.
"""

import ctypes
import errno
import gc
import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import msgspec

import opene2b.envd.main as envd
from opene2b.core.errors import ServiceError
from opene2b.envd import rehearsal
from opene2b.envd.config import Config
from opene2b.forkserver import enter, launch
from opene2b.forkserver import plan as plans
from opene2b.forkserver.enter import Restrictions
from opene2b.forkserver.plan import Answer, Plan, Request, Started
from opene2b.forkserver.profile import PROFILE, capability_mask
from opene2b.forkserver.sealed import SealedPrograms
from opene2b.linux import cgroups, credentials, processes, seccomp, syscalls
from opene2b.linux.cgroups import Hierarchies

READY_LIMIT_S = 10.0
ID_RANGE = 65536


class NothingMoreToImport:
    """Ends every import: after entering the guest, a module would be looked for among the guest's files."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> NoReturn:
        raise ImportError(f"envd may not import {name} inside a sandbox")


class ForkServer:
    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.hierarchies: Hierarchies = cgroups.discover()
        self.restrictions = Restrictions(
            capabilities=capability_mask(),
            last_capability=syscalls.last_capability(),
            seccomp_program=seccomp.compile_profile(PROFILE),
        )
        self.own_capabilities = permitted_capabilities()
        self.programs = SealedPrograms()
        self.user_namespaces: dict[int, int] = {}
        """First host id of a range -> descriptor of a user namespace that maps it."""
        self.children: dict[int, int] = {}
        """Process id of a child at work -> id of the request that it will answer."""

    def run(self) -> None:
        credentials.share_one_arena()
        try:
            rehearsal.rehearse()
        except (OSError, ServiceError) as exc:
            # Everything works without it, only slower.
            print(f"rehearsal_failed: {exc!r}", file=sys.stderr, flush=True)
        # envd and pid 1 of every sandbox become our children when the child that started them ends.
        # The kernel frees a pid namespace only when all its processes were reaped, and not every
        # machine's init does that at once.
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # A terminal's Ctrl-C is for the supervisor; our end is the end of the agent.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        selector = selectors.DefaultSelector()
        selector.register(self.connection, selectors.EVENT_READ)
        selector.register(wake_read, selectors.EVENT_READ)
        # Children share our memory as long as nobody writes to it: keep the collector's marks out.
        gc.collect()
        gc.freeze()
        self.answer(Answer(id=0))
        while True:
            for key, _ in selector.select():
                if key.fileobj is self.connection:
                    message = self.connection.recv(65536)
                    if not message:
                        return
                    self.handle(msgspec.json.decode(message, type=Request))
                else:
                    os.read(wake_read, 4096)
            self.reap()

    def handle(self, request: Request) -> None:
        try:
            if request.op == "prepare":
                self.user_namespace(request.first_id)
                self.answer(Answer(id=request.id))
            elif request.op == "start":
                program = self.programs.get(request.program)
                self.in_child(request, lambda directory: self.start(directory, program))
            elif request.op == "envd":
                self.in_child(request, self.restart_envd)
            else:
                self.answer(Answer(id=request.id, error=f"unknown op {request.op!r}"))
        except OSError as exc:
            self.answer(Answer(id=request.id, error=str(exc), errno=exc.errno))

    def in_child(self, request: Request, work: Callable[[Path], Started]) -> None:
        pid = os.fork()
        if pid:
            self.children[pid] = request.id
            return
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            launch.restore_signals()
            started = work(Path(request.directory))
            self.answer(Answer(id=request.id, started=started))
            status = 0
        except OSError as exc:
            self.answer(Answer(id=request.id, error=str(exc), errno=exc.errno))
            status = 0
        except BaseException as exc:
            self.answer(Answer(id=request.id, error=f"{type(exc).__name__}: {exc}"))
            status = 0
        finally:
            os._exit(status)

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            request_id = self.children.pop(pid, None)
            if request_id is not None and status != 0:
                self.answer(
                    Answer(id=request_id, error=f"the starting process died (status {status})")
                )

    def answer(self, answer: Answer) -> None:
        self.connection.send(msgspec.json.encode(answer))

    def user_namespace(self, first_id: int) -> int:
        fd = self.user_namespaces.get(first_id)
        if fd is None:
            fd = launch.make_user_namespace(first_id, ID_RANGE)
            self.user_namespaces[first_id] = fd
        return fd

    def start(self, directory: Path, program: int) -> Started:
        plan = plans.load(directory)
        init_pid = launch.start_container(
            directory, plan, program, self.user_namespace(plan.first_id), self.own_capabilities
        )
        try:
            return self.put_envd(plan, init_pid)
        except BaseException:
            launch.end_container(plan)
            raise

    def restart_envd(self, directory: Path) -> Started:
        plan = plans.load(directory)
        return self.put_envd(plan, int((directory / plans.PID_FILE).read_text()))

    def put_envd(self, plan: Plan, init_pid: int) -> Started:
        """Fork envd into a running container; it outlives this child and the fork server."""
        init_started = processes.start_time(init_pid)
        if init_started is None:
            raise ProcessLookupError(errno.ESRCH, "the container has ended")
        host_proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        enter.join(init_pid, self.hierarchies)
        ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            self.be_envd(plan, ready_write)
        os.close(ready_write)
        waiting = selectors.DefaultSelector()
        waiting.register(ready_read, selectors.EVENT_READ)
        said = os.read(ready_read, 4096) if waiting.select(READY_LIMIT_S) else b"no answer"
        if said != b"ready":
            os.kill(pid, signal.SIGKILL)
            raise OSError(
                f"envd did not start: {said.decode(errors='replace') or 'it died at once'}"
            )
        return Started(
            init_pid=init_pid,
            init_started=init_started,
            envd_pid=pid,
            envd_started=start_time_at(host_proc, pid),
        )

    def be_envd(self, plan: Plan, ready: int) -> NoReturn:
        try:
            enter.become_daemon([ready], b"envd")
            listener = enter.listen()
            enter.restrict(self.restrictions)
            sys.path.clear()
            sys.meta_path[:] = [NothingMoreToImport()]
            config = Config(
                sandbox_id=plan.envd.sandbox_id,
                template_id=plan.envd.template_id,
                access_token=plan.envd.access_token,
                env_vars=plan.envd.env_vars,
                default_user=plan.envd.default_user,
                default_workdir=plan.envd.default_workdir,
                cpu_count=plan.envd.cpu_count,
                memory_bytes=plan.envd.memory_bytes,
                write_marks=True,
            )

            def say_ready() -> None:
                os.write(ready, b"ready")
                os.close(ready)

            envd.serve(listener, config, ready=say_ready)
            os._exit(0)
        except BaseException as exc:
            try:
                os.write(ready, f"{type(exc).__name__}: {exc}".encode()[:4000])
            finally:
                os._exit(1)


def start_time_at(proc_fd: int, pid: int) -> int:
    """linux.processes.start_time, through a descriptor of the host's /proc taken before it went out of sight."""
    fd = os.open(f"{pid}/stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc_fd)
    try:
        return int(os.read(fd, 4096).rpartition(b") ")[2].split()[19])
    finally:
        os.close(fd)


def permitted_capabilities() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapPrm:"):
            return int(line.split()[1], 16)
    raise OSError("no CapPrm in /proc/self/status")


def hide_arguments() -> None:
    """Overwrite our own command line: children show it inside sandboxes, and it names files of the host."""
    fields = Path("/proc/self/stat").read_bytes().rpartition(b") ")[2].split()
    start, end = int(fields[45]), int(fields[46])
    shown = b"envd"
    if end - start > len(shown):
        ctypes.memmove(start, shown.ljust(end - start, b"\0"), end - start)


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    hide_arguments()
    ForkServer(connection).run()
