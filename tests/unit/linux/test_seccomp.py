import ctypes
import errno
import os

from opene2b.forkserver.profile import ALLOWED, PROFILE, REFUSED
from opene2b.linux import seccomp, syscalls

SYS_UNSHARE_FLAGS = syscalls.CLONE_NEWUSER


def in_filtered_child(call) -> int:
    """The errno that a call gives under the guest's filter, 0 when it is allowed."""
    program = seccomp.compile_profile(PROFILE)
    pid = os.fork()
    if pid == 0:
        status = 255
        try:
            syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
            syscalls.set_seccomp(program)
            try:
                call()
                status = 0
            except OSError as exc:
                status = exc.errno or 254
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def test_what_is_allowed_is_not_refused():
    assert set(ALLOWED).isdisjoint(REFUSED)


def test_a_guest_may_not_make_a_user_namespace():
    result = in_filtered_child(lambda: syscalls.unshare(syscalls.CLONE_NEWUSER))

    assert result == errno.EPERM


def test_a_guest_may_not_mount():
    result = in_filtered_child(lambda: syscalls.mount("none", "/mnt", "tmpfs"))

    assert result == errno.EPERM


def test_a_call_without_a_rule_looks_as_if_the_kernel_lacked_it():
    io_uring_setup = 425

    def call() -> None:
        syscalls.check(syscalls.LIBC.syscall(io_uring_setup, 1, None), "io_uring_setup")

    result = in_filtered_child(call)

    assert result == errno.ENOSYS


def test_clone_with_a_namespace_flag_is_refused_and_without_is_allowed():
    def clone(flags: int) -> None:
        sys_clone = 220 if os.uname().machine == "aarch64" else 56
        made = syscalls.check(
            syscalls.LIBC.syscall(sys_clone, ctypes.c_ulong(flags | 17), None, None, None, None),
            "clone",
        )
        if made == 0:
            os._exit(0)
        os.waitpid(made, 0)

    assert in_filtered_child(lambda: clone(syscalls.CLONE_NEWUSER)) == errno.ENOSYS
    assert in_filtered_child(lambda: clone(0)) == 0


def test_ordinary_work_is_allowed(tmp_path):
    def work() -> None:
        path = tmp_path / "file"
        path.write_text("x")
        os.rename(path, tmp_path / "other")
        os.kill(os.getpid(), 0)
        os.pipe()

    assert in_filtered_child(work) == 0
