"""The OCI driver: sandboxes as containers made by crun or runc, with envd forked into them."""

import asyncio
import contextlib
import errno
import json
import logging
import os
import shutil
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

from opene2b.core.errors import DeadlineExceeded, Internal, OutOfSpace, ServiceError, Unsupported
from opene2b.core.ids import SandboxId
from opene2b.core.paths import Home
from opene2b.forkserver import plan as plans
from opene2b.forkserver.enter import ENVD_PORT
from opene2b.forkserver.plan import Envd, Plan, Started
from opene2b.forkserver.profile import capability_mask
from opene2b.linux import cgroups, processes, rooted
from opene2b.linux.cgroups import Layout
from opene2b.runtime.oci import spec as specs
from opene2b.runtime.oci.client import ForkServerClient
from opene2b.runtime.protocol import Capabilities, Exit, Handle, Isolation, SandboxSpec, Status

log = logging.getLogger(__name__)

BINARIES = ("crun", "runc")
ENVD_RETRY_S = 0.2
ENVD_STEADY_S = 10.0
"""One that lived as long as this is started again at once."""
ENVD_PAUSE_LIMIT_S = 10.0
"""Between tries to bring envd back: the guest may hold its port."""


STAGES = ("/mnt", "/media", "/srv", "/opt")
"""Directories of every Linux system; one that does not hold what the runtime needs is covered while a
sandbox starts, in a mount namespace that only the starting child sees."""


def create(*, home: Home, oci_binary: str | None) -> "OciRuntime":
    return OciRuntime(home=home, binary=oci_binary)


class OciRuntime:
    """See `runtime.protocol`. A handle is {sandbox_id, directory, init_pid, init_started, envd_pid, envd_started}."""

    name = "oci"
    capabilities = Capabilities(isolation=Isolation.NAMESPACE, pause=True)

    def __init__(self, *, home: Home, binary: str | None) -> None:
        self.state = home.run / "oci"
        self.stage = choose_stage(home.root)
        self.tuned = home.run / "cgroups-tuned"
        """There while a setting of the host is ours to put back, also after an agent that was killed."""
        self.binary = binary
        self.forkserver = ForkServerClient()
        self.hierarchies = cgroups.discover()
        self.command: list[str] = []
        self.init_binary = home.run / "init"
        self.reclaiming: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        self.command = [
            find_binary(self.binary),
            "--root",
            str(self.state),
            *(["--cgroup-manager=cgroupfs"] if "crun" in find_binary(self.binary) else []),
        ]
        found = shutil.which("catatonit")
        if found is None:
            raise Unsupported("catatonit is missing: install the package catatonit")
        self.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        place_init(Path(found), self.init_binary)
        if cgroups.favor_changes(self.hierarchies, on=True):
            self.tuned.touch()
        await self.forkserver.open()

    async def close(self) -> None:
        await self.forkserver.close()
        if self.tuned.exists():
            cgroups.favor_changes(self.hierarchies, on=False)
            self.tuned.unlink()

    async def start(self, spec: SandboxSpec) -> Handle:
        try:
            self.write_files(spec)
            starting = asyncio.create_task(
                self.forkserver.start(spec.directory, self.command[0]),
                name=f"start {spec.sandbox_id}",
            )
            try:
                started = await asyncio.shield(starting)
            except BaseException:
                await asyncio.shield(self.abandon(starting, spec))
                raise
        except OSError as exc:
            if exc.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise OutOfSpace("no space left for a sandbox", detail=str(exc)) from exc
            raise Internal(
                f"cannot start sandbox '{spec.sandbox_id}'",
                reason="sandbox_create_failed",
                detail=str(exc),
            ) from exc
        return handle(spec, started)

    async def abandon(self, starting: asyncio.Task[Started], spec: SandboxSpec) -> None:
        """Undo a start that failed or was cancelled, once its child has ended: undone in its middle, it would go on and
        leave what nobody knows of."""
        await asyncio.wait({starting})
        await self.undo(spec.directory, spec.sandbox_id)

    def write_files(self, spec: SandboxSpec) -> None:
        """Everything that the fork server's child will need, below the sandbox's own directory."""
        directory = spec.directory
        upper = directory / plans.WRITABLE / "upper"
        is_first = not upper.exists()
        for path in (upper, directory / plans.WRITABLE / "work", directory / plans.BUNDLE):
            path.mkdir(parents=True, mode=0o755, exist_ok=True)
        name_itself(upper, spec, is_first=is_first)
        config = specs.config(
            root=Path(self.stage) / plans.ROOT,
            init_binary=self.init_binary,
            index=spec.place.index,
            netns_path=str(spec.place.netns_path),
            hostname=spec.hostname,
            sandbox_id=spec.sandbox_id,
            resources=spec.resources,
        )
        (directory / plans.BUNDLE / "config.json").write_text(json.dumps(config))
        plans.save(
            directory,
            Plan(
                sandbox_id=spec.sandbox_id,
                layers=[str(layer) for layer in spec.layers],
                first_id=specs.first_id(spec.place.index),
                id_range=specs.ID_RANGE,
                netns_path=str(spec.place.netns_path),
                stage=self.stage,
                runtime_command=self.command,
                hide_unified_cgroups="crun" in self.command[0]
                and self.hierarchies.layout is Layout.HYBRID,
                capabilities=capability_mask(),
                envd=Envd(
                    **{**asdict(spec.envd), "env_vars": dict(spec.envd.env_vars)},
                    cpu_count=spec.resources.cpu_count,
                    memory_bytes=spec.resources.memory_mib << 20,
                ),
            ),
        )

    async def recover(self, handle: Handle) -> Status:
        if processes.start_time(handle["init_pid"]) != handle["init_started"]:
            return Status.ENDED
        frozen = await asyncio.to_thread(cgroups.is_frozen, self.groups(handle))
        return Status.PAUSED if frozen else Status.RUNNING

    async def wait(self, handle: Handle) -> Exit:
        """Also keeps envd there: when it ends before its sandbox, it is forked again."""
        async with asyncio.TaskGroup() as group:
            keeper = group.create_task(self.keep_envd(dict(handle)))
            await ended(handle["init_pid"], handle["init_started"])
            keeper.cancel()
        return Exit(reason="exited")

    async def keep_envd(self, handle: dict[str, Any]) -> None:
        pid, started = handle["envd_pid"], handle["envd_started"]
        clock = asyncio.get_running_loop().time
        begun = clock()
        pause_s = 0.0
        while True:
            await ended(pid, started)
            if processes.start_time(handle["init_pid"]) != handle["init_started"]:
                return
            # A guest that ends it again and again must not make the host work for it.
            if clock() - begun > ENVD_STEADY_S:
                pause_s = 0.0
            log.warning(
                "envd_ended", extra={"sandbox_id": handle["sandbox_id"], "pause_s": pause_s}
            )
            await asyncio.sleep(pause_s)
            pause_s = min(max(pause_s * 2, ENVD_RETRY_S), ENVD_PAUSE_LIMIT_S)
            begun = clock()
            try:
                again = await self.forkserver.start_envd(Path(handle["directory"]))
            except (OSError, ServiceError) as exc:
                log.warning(
                    "envd_start_refused",
                    extra={"sandbox_id": handle["sandbox_id"], "detail": str(exc)},
                )
                # One may be there that an earlier agent started: then its end is what to wait for.
                there = await asyncio.to_thread(self.find_envd, handle["sandbox_id"])
                if there is not None:
                    pid, started = there
                continue
            pid, started = again.envd_pid, again.envd_started

    def groups(self, handle: Handle) -> list[Path]:
        return list(cgroups.named(specs.cgroup_path(handle["sandbox_id"]), self.hierarchies))

    async def pause(self, handle: Handle) -> None:
        groups = self.groups(handle)
        try:
            if not await asyncio.to_thread(cgroups.freeze, groups):
                raise Unsupported(
                    "sandboxes cannot be paused here: no cgroup hierarchy has the freezer"
                )
        except TimeoutError as exc:
            raise DeadlineExceeded(f"cannot pause sandbox '{handle['sandbox_id']}': {exc}") from exc
        # What the kernel gives back of its memory, it may give back later.
        task = asyncio.create_task(asyncio.to_thread(cgroups.reclaim, groups))
        self.reclaiming.add(task)
        task.add_done_callback(self.reclaimed)

    def reclaimed(self, task: "asyncio.Task[None]") -> None:
        self.reclaiming.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            log.info("memory_not_reclaimed", extra={"detail": str(exc)})

    async def resume(self, handle: Handle) -> None:
        await asyncio.to_thread(cgroups.thaw, self.groups(handle))

    async def stop(self, handle: Handle, *, grace_s: float) -> None:
        init = processes.open_process(handle["init_pid"], handle["init_started"])
        if init is None:
            return
        try:
            if grace_s > 0:
                for pid in await asyncio.to_thread(self.members, handle["sandbox_id"]):
                    if pid != handle["init_pid"]:
                        terminate(pid)
                await self.emptied(handle, grace_s)
            # The end of its pid 1 ends everything in the pid namespace, envd included.
            processes.kill(init)
            # One that is frozen ends when it goes on (with cgroups of version 1).
            await asyncio.to_thread(cgroups.thaw, self.groups(handle))
            await readable(init)
        finally:
            os.close(init)

    def find_envd(self, sandbox_id: str) -> tuple[int, int] | None:
        """(process id, start time) of what goes by that name. A guest may call something of its own so, and is without
        envd then for as long as that lives."""
        for pid in self.members(sandbox_id):
            try:
                name = Path(f"/proc/{pid}/comm").read_text().strip()
            except OSError:
                continue
            started = processes.start_time(pid)
            if name == "envd" and started is not None:
                return pid, started
        return None

    def members(self, sandbox_id: str) -> list[int]:
        for directory in cgroups.named(specs.cgroup_path(sandbox_id), self.hierarchies):
            return [int(line) for line in (directory / "cgroup.procs").read_text().split()]
        return []

    async def emptied(self, handle: Handle, limit_s: float) -> None:
        until = asyncio.get_running_loop().time() + limit_s
        while asyncio.get_running_loop().time() < until:
            left = await asyncio.to_thread(self.members, handle["sandbox_id"])
            if set(left) <= {handle["init_pid"], handle["envd_pid"]}:
                return
            await asyncio.sleep(0.02)

    async def destroy(self, handle: Handle) -> None:
        await self.undo(Path(handle["directory"]), SandboxId(handle["sandbox_id"]))

    async def undo(self, spec_directory: Path, sandbox_id: SandboxId) -> None:
        # What is frozen does not end.
        await asyncio.to_thread(
            cgroups.thaw, cgroups.named(specs.cgroup_path(sandbox_id), self.hierarchies)
        )
        if (self.state / sandbox_id).exists():
            process = await asyncio.create_subprocess_exec(
                *self.command,
                "delete",
                "--force",
                sandbox_id,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
            _, said = await process.communicate()
            if process.returncode != 0 and (self.state / sandbox_id).exists():
                raise Internal(
                    f"cannot remove what sandbox '{sandbox_id}' used",
                    detail=said.decode(errors="replace"),
                )
        await asyncio.to_thread(self.remove_groups, sandbox_id)
        # What the guest wrote goes with the directory, which is its maker's: removing it may take long.

    def remove_groups(self, sandbox_id: str) -> None:
        for directory in cgroups.named(specs.cgroup_path(sandbox_id), self.hierarchies):
            for pid in (directory / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            cgroups.remove(directory)

    async def prepare(self, index: int) -> None:
        """Make the id range of a slot ready, off the path of a create."""
        await self.forkserver.prepare(specs.first_id(index))

    def netns_path(self, handle: Handle) -> Path | None:
        return Path(f"/proc/{handle['init_pid']}/ns/net")

    def envd_port(self, handle: Handle) -> int:
        return ENVD_PORT


def handle(spec: SandboxSpec, started: Started) -> Handle:
    return {
        "sandbox_id": spec.sandbox_id,
        "directory": str(spec.directory),
        "init_pid": started.init_pid,
        "init_started": started.init_started,
        "envd_pid": started.envd_pid,
        "envd_started": started.envd_started,
    }


def place_init(program: Path, place: Path) -> None:
    """A copy of pid 1's program that can be started inside and not read.

    The kernel makes a process of such a program undumpable towards everybody but the host's root. Otherwise root inside
    could trace pid 1, which runs under no seccomp filter, and have it do what the filter forbids.
    """
    scratch = place.with_suffix(".new")
    shutil.copyfile(program, scratch)
    os.chown(scratch, 0, 0)
    scratch.chmod(0o711)
    scratch.replace(place)


def choose_stage(home: Path) -> str:
    for stage in STAGES:
        if Path(stage).is_dir() and not home.resolve().is_relative_to(stage):
            return stage
    raise Unsupported(f"none of {', '.join(STAGES)} is there to start sandboxes in")


def find_binary(wanted: str | None) -> str:
    for name in [wanted] if wanted else BINARIES:
        found = shutil.which(name)
        if found:
            return found
    raise Unsupported(f"{wanted or 'crun'} is missing: install the package crun (or runc)")


async def ended(pid: int, started: int) -> None:
    """Return when this process has ended; at once if it has."""
    fd = processes.open_process(pid, started)
    if fd is None:
        return
    try:
        await readable(fd)
    finally:
        os.close(fd)


def name_itself(upper: Path, spec: SandboxSpec, *, is_first: bool) -> None:
    """The files by which a guest knows its own name, address and name servers.

    Of a disk that was used before, they are the guest's: only its address is brought up to date, and whatever it made of
    its /etc leads nowhere outside.
    """
    own = f"{spec.place.address} {spec.hostname}\n"
    with rooted.Root(upper) as root:
        if is_first:
            root.write("/etc/hostname", f"{spec.hostname}\n")
            root.write(
                "/etc/hosts",
                f"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n{own}",
            )
            servers = "".join(f"nameserver {server}\n" for server in spec.place.nameservers)
            root.write("/etc/resolv.conf", servers)
            return
        try:
            text = root.read("/etc/hosts")
            if text is not None:
                lines = [
                    own if line.split()[1:] == [spec.hostname] else line
                    for line in text.splitlines(keepends=True)
                ]
                root.write("/etc/hosts", "".join(lines))
        except OSError as exc:
            # It may have made anything of that file; then it has to live with it.
            log.info("hosts_not_changed", extra={"sandbox_id": spec.sandbox_id, "detail": str(exc)})


async def readable(pidfd: int) -> None:
    """A pidfd becomes readable when its process has ended."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def has_ended() -> None:
        if not future.done():
            future.set_result(None)

    loop.add_reader(pidfd, has_ended)
    try:
        await future
    finally:
        loop.remove_reader(pidfd)


def terminate(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return
