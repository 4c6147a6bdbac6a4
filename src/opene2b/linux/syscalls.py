"""System calls that the standard library of Python 3.11 lacks; each raises OSError on failure.

Namespace calls that concern users or mounts (`setns`, `unshare`) demand a single-threaded caller.
Source: man pages of the same names; numbers above 423 are the same on every architecture.
"""

import ctypes
import os
import platform
import struct

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
SECCOMP_MODE_FILTER = 2

SYS_PIDFD_SEND_SIGNAL = 424
SYS_OPEN_TREE = 428
SYS_MOVE_MOUNT = 429
SYS_CLOSE_RANGE = 436
SYS_MOUNT_SETATTR = 442
SYS_KEYCTL = 219 if platform.machine() == "aarch64" else 250

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 4
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_IDMAP = 0x00100000
KEYCTL_JOIN_SESSION_KEYRING = 1

LINUX_CAPABILITY_VERSION_3 = 0x20080522


def check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def unshare(flags: int) -> None:
    check(LIBC.unshare(flags), "unshare")


def setns(fd: int, flags: int = 0) -> None:
    check(LIBC.setns(fd, flags), "setns")


def mount(source: str, target: str, kind: str | None, flags: int = 0, data: str = "") -> None:
    check(
        LIBC.mount(
            os.fsencode(source),
            os.fsencode(target),
            kind.encode() if kind else None,
            ctypes.c_ulong(flags),
            data.encode() if data else None,
        ),
        f"mount {kind or 'bind'} on {target}",
    )


def umount(target: str, flags: int = 0) -> None:
    check(LIBC.umount2(os.fsencode(target), flags), f"umount {target}")


def prctl(option: int, value: int = 0, third: int = 0) -> None:
    check(LIBC.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(third), 0, 0), f"prctl {option}")


def set_name(name: bytes) -> None:
    """Name of the calling thread, at most 15 bytes: what `ps` shows in its short form."""
    check(LIBC.prctl(PR_SET_NAME, ctypes.c_char_p(name), 0, 0, 0), "prctl PR_SET_NAME")


def open_tree(path: str) -> int:
    """A detached copy of the mount that holds `path`, with `path` as its root. Caller closes."""
    return check(
        LIBC.syscall(
            SYS_OPEN_TREE, AT_FDCWD, os.fsencode(path), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC
        ),
        f"open_tree {path}",
    )


def set_idmap(mount_fd: int, userns_fd: int, *, read_only: bool = False) -> None:
    """Make a detached mount show its ids as the user namespace maps them (kernel >= 5.12).

    What lies on disk as uid 0 looks, through the mount, like the host id that the namespace maps 0 to.
    """
    attributes = struct.pack(
        "=QQQQ",
        MOUNT_ATTR_IDMAP | (MOUNT_ATTR_RDONLY if read_only else 0),
        0,
        0,
        userns_fd,
    )
    check(
        LIBC.syscall(
            SYS_MOUNT_SETATTR, mount_fd, b"", AT_EMPTY_PATH, attributes, ctypes.c_size_t(32)
        ),
        "mount_setattr (idmapped mount)",
    )


def move_mount(mount_fd: int, target: str) -> None:
    check(
        LIBC.syscall(
            SYS_MOVE_MOUNT, mount_fd, b"", AT_FDCWD, os.fsencode(target), MOVE_MOUNT_F_EMPTY_PATH
        ),
        f"move_mount to {target}",
    )


def close_range(first: int, last: int = 0xFFFFFFFF) -> None:
    check(
        LIBC.syscall(SYS_CLOSE_RANGE, ctypes.c_uint(first), ctypes.c_uint(last), 0), "close_range"
    )


def pidfd_send_signal(pidfd: int, number: int) -> None:
    check(LIBC.syscall(SYS_PIDFD_SEND_SIGNAL, pidfd, number, None, 0), "pidfd_send_signal")


def new_session_keyring() -> None:
    """Leave the session keyring of whoever started us."""
    check(LIBC.syscall(SYS_KEYCTL, KEYCTL_JOIN_SESSION_KEYRING, None, 0, 0, 0), "keyctl")


def set_capabilities(capabilities: int) -> None:
    """Set permitted and effective to this bit mask and inheritable to none, for the calling thread."""
    low, high = capabilities & 0xFFFFFFFF, capabilities >> 32
    header = struct.pack("=Ii", LINUX_CAPABILITY_VERSION_3, 0)
    data = struct.pack("=IIIIII", low, low, 0, high, high, 0)
    check(LIBC.capset(header, data), "capset")


def last_capability() -> int:
    with open("/proc/sys/kernel/cap_last_cap") as file:
        return int(file.read())


def drop_bounding(keep: int, last: int) -> None:
    """Drop every capability but the mask `keep` from the bounding set, for ever."""
    for capability in range(last + 1):
        if not keep >> capability & 1:
            prctl(PR_CAPBSET_DROP, capability)


def set_seccomp(program: bytes) -> None:
    """Install a BPF program (`struct sock_filter` times n) on the calling thread and what it forks.

    Needs CAP_SYS_ADMIN in the own user namespace, or no_new_privs.
    """
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
    pointer = ctypes.create_string_buffer(header, len(header))
    check(
        LIBC.prctl(
            PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), ctypes.byref(pointer), 0, 0
        ),
        "prctl PR_SET_SECCOMP",
    )
