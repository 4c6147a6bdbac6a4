"""Take a forked process into a container and its restrictions. Order matters; each step says why.

What protects the host's interpreter from the guest: the process is not dumpable and its memory belongs to
the host's user namespace, so no guest, root included, may open its /proc/PID/{exe,mem,maps,fd,root,cwd,environ}
or trace it; it has no descriptor of the host; it runs under the guest's seccomp filter, capabilities and cgroup.
"""

import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

from opene2b.linux import cgroups, syscalls
from opene2b.linux.cgroups import Hierarchies

NAMESPACES = ("cgroup", "ipc", "uts", "net", "pid", "mnt", "user")
"""User last: the others belong to the host's root until then."""

ENVD_PORT = 49983


@dataclass(frozen=True, slots=True, kw_only=True)
class Restrictions:
    capabilities: int
    last_capability: int
    seccomp_program: bytes


def join(init_pid: int, hierarchies: Hierarchies) -> None:
    """Move the calling process into the container's cgroup and namespaces; the next fork is in its pid namespace."""
    for directory in cgroups.of_process(init_pid, hierarchies):
        cgroups.join(directory)
    # Open everything first: once in the mount namespace, the host's /proc is out of sight.
    root = os.open(f"/proc/{init_pid}/root", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    files = [
        os.open(f"/proc/{init_pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in NAMESPACES
    ]
    # Before anything of the guest can see this process.
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    syscalls.new_session_keyring()
    for fd in files:
        syscalls.setns(fd)
        os.close(fd)
    os.fchdir(root)
    os.chroot(".")
    os.chdir("/")
    os.close(root)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    # Changing ids may have made it dumpable again, if the host's fs.suid_dumpable says so.
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)


def listen() -> socket.socket:
    """The socket that envd serves, in the network namespace just entered."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("0.0.0.0", ENVD_PORT))
    listener.listen(1024)
    return listener


def become_daemon(keep: list[int], name: bytes) -> None:
    """In the process that becomes envd: a session of its own, no descriptor but `keep`, stdio of the guest."""
    os.setsid()
    os.umask(0o022)
    log = open_log()
    null = os.open("/dev/null", os.O_RDWR)
    for target, source in ((0, null), (1, null), (2, log)):
        os.dup2(source, target)
    kept = sorted({fd for fd in keep if fd > 2})
    first = 3
    for fd in kept:
        if fd > first:
            syscalls.close_range(first, fd - 1)
        first = fd + 1
    syscalls.close_range(first)
    os.environ.clear()
    for number in range(1, signal.NSIG):
        if number not in {signal.SIGKILL, signal.SIGSTOP, 32, 33}:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    syscalls.set_name(name)


def open_log() -> int:
    """envd's own log, inside: /run/e2b/envd.log. Whatever the guest made of that path, it is only its own."""
    try:
        Path("/run/e2b").mkdir(mode=0o755, exist_ok=True)
        return os.open(
            "/run/e2b/envd.log",
            os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK,
            0o600,
        )
    except OSError:
        return os.open("/dev/null", os.O_WRONLY)


def restrict(restrictions: Restrictions) -> None:
    """Give up what guest root may not have, for this process and all it starts."""
    syscalls.drop_bounding(restrictions.capabilities, restrictions.last_capability)
    # Installing a filter needs CAP_SYS_ADMIN here, since sudo inside must go on working (no
    # no_new_privs); so it comes before the capabilities go, and allows capset.
    syscalls.set_seccomp(restrictions.seccomp_program)
    syscalls.set_capabilities(restrictions.capabilities)
