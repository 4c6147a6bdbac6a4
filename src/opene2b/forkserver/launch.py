"""Start a container: id-mapped layers, overlay, the OCI runtime. Runs in a forked child, in order, blocking.

All mounts are made in a mount namespace of the child's own. The container takes copies of them with it, and
the child's end removes the rest: whatever is killed when, no mount is left on the host.

Both the layers and the writable directory are id-mapped: on disk everything has the ids that the guest sees
(root is 0), so a layer serves every sandbox, and an upper directory can become a layer, whatever ranges they had.
"""

import os
import signal
import subprocess
from pathlib import Path

from opene2b.forkserver import plan as plans
from opene2b.forkserver.plan import Plan
from opene2b.linux import syscalls

UNIFIED = "/sys/fs/cgroup/unified"


def make_user_namespace(first_id: int, id_range: int) -> int:
    """A user namespace with this id range, kept by its descriptor alone: what id-mapped mounts are made with."""
    ready_read, ready_write = os.pipe()
    done_read, done_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(done_write)
            syscalls.unshare(syscalls.CLONE_NEWUSER)
            os.write(ready_write, b"1")
            os.read(done_read, 1)
        finally:
            os._exit(0)
    try:
        os.close(ready_write)
        if os.read(ready_read, 1) != b"1":
            raise OSError("a user namespace cannot be made on this machine")
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{name}").write_text(f"0 {first_id} {id_range}")
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        for fd in (ready_read, done_read, done_write):
            os.close(fd)
        os.waitpid(pid, 0)


def start_container(
    directory: Path, plan: Plan, program: int, user_namespace: int, all_capabilities: int
) -> int:
    """Start the container of a sandbox; returns the host pid of its pid 1.

    Args:
        program: Descriptor of the OCI runtime.

    Raises OSError, with what the OCI runtime said.
    """
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    mount_root(directory, plan, user_namespace, all_capabilities)
    if plan.hide_unified_cgroups:
        syscalls.umount(UNIFIED, syscalls.MNT_DETACH)
    log = directory / plans.RUNTIME_LOG
    pid_file = directory / plans.PID_FILE
    with log.open("wb") as output:
        result = subprocess.run(
            [
                *plan.runtime_command,
                "run",
                "--detach",
                "--pid-file",
                str(pid_file),
                "--bundle",
                str(directory / plans.BUNDLE),
                plan.sandbox_id,
            ],
            executable=f"/proc/self/fd/{program}",
            pass_fds=(program,),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=False,
        )
    if result.returncode != 0:
        said = log.read_text(errors="replace").strip()[-2000:]
        raise OSError(f"{plan.runtime_command[0]} run ended with {result.returncode}: {said}")
    return int(pid_file.read_text())


def mount_root(directory: Path, plan: Plan, user_namespace: int, all_capabilities: int) -> None:
    mounts = Path(plan.stage)
    syscalls.mount(
        "tmpfs", plan.stage, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=755,size=64k"
    )
    lower: list[str] = []
    for number, layer in enumerate(plan.layers):
        target = mounts / f"layer{number}"
        target.mkdir()
        mount_mapped(layer, target, user_namespace, read_only=True)
        # Overlay wants the uppermost first; relative names keep the option string short (it is
        # bounded by a page).
        lower.insert(0, target.name)
    writable = mounts / "disk"
    writable.mkdir()
    (mounts / plans.ROOT).mkdir()
    mount_system(plan.netns_path, mounts / plans.SYSTEM)
    mount_mapped(str(directory / plans.WRITABLE), writable, user_namespace, read_only=False)
    os.chdir(mounts)
    # Overlayfs makes its work directory and copies files up with the ids and capabilities that the
    # mounting process has now. Host root has no id inside the mapping, so this must be root inside.
    syscalls.LIBC.setfsgid(plan.first_id)
    syscalls.LIBC.setfsuid(plan.first_id)
    syscalls.set_capabilities(all_capabilities)
    try:
        syscalls.mount(
            "overlay",
            str(mounts / plans.ROOT),
            "overlay",
            0,
            f"lowerdir={':'.join(lower)},upperdir=disk/upper,workdir=disk/work",
        )
    finally:
        syscalls.LIBC.setfsuid(0)
        syscalls.LIBC.setfsgid(0)
        syscalls.set_capabilities(all_capabilities)
    os.chdir("/")


def mount_system(netns_path: str, target: Path) -> None:
    """sysfs shows the network namespace that it was mounted in. Root inside cannot mount it, for the namespace is the
    host's, and OCI runtimes would show the host's instead or give up."""
    target.mkdir()
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    away = os.open(netns_path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.setns(away)
        try:
            syscalls.mount(
                "sysfs",
                str(target),
                "sysfs",
                syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC,
            )
        finally:
            syscalls.setns(home)
    finally:
        os.close(home)
        os.close(away)


def mount_mapped(source: str, target: Path, user_namespace: int, *, read_only: bool) -> None:
    detached = syscalls.open_tree(source)
    try:
        syscalls.set_idmap(detached, user_namespace, read_only=read_only)
        syscalls.move_mount(detached, str(target))
    finally:
        os.close(detached)


def end_container(plan: Plan) -> None:
    """Undo `start_container` after a later step failed; best effort, the agent's undo comes after."""
    subprocess.run(
        [*plan.runtime_command, "delete", "--force", plan.sandbox_id],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )


def restore_signals() -> None:
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
