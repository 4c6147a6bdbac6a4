"""What a guest may ask of the kernel: an allow list of system calls, and the capabilities of its root.

What is not named fails with ENOSYS, as on a kernel that lacks it, so programs fall back. Left out on
purpose: everything that loads code into the kernel, changes the clock, swaps, reboots, traces the whole
machine, mounts, or makes namespaces (a guest that may make user namespaces reaches far more kernel code).
Source: syscalls(2), capabilities(7), clone(2), personality(2), socket(2).
"""

import errno

from opene2b.linux.seccomp import Compare, Profile, Rule

NAMESPACE_FLAGS = 0x7E020000
"""CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}."""

ALLOWED = """
accept accept4 access adjtimex alarm arch_prctl arm_fadvise64_64 bind brk cachestat capget capset chdir
chmod chown chroot clock_getres clock_gettime clock_nanosleep close close_range connect copy_file_range
creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2
epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64
fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr
flistxattr flock fork fremovexattr fsetxattr fstat fstatfs fsync ftruncate futex futex_requeue futex_wait
futex_waitv futex_wake futimesat getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups
getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid getrlimit
get_robust_list getrusage getsid getsockname getsockopt get_thread_area gettid gettimeofday getuid
getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel ioctl
io_destroy io_getevents io_pgetevents ioprio_get ioprio_set io_setup io_submit kill landlock_add_rule
landlock_create_ruleset landlock_restrict_self lchown lgetxattr link linkat listen listxattr listxattrat
llistxattr lremovexattr lseek lsetxattr lstat madvise map_shadow_stack membarrier memfd_create
memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mprotect mq_getsetattr
mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync
munlock munlockall munmap name_to_handle_at nanosleep newfstatat open openat openat2 pause pidfd_open
pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll prctl pread64 preadv preadv2
prlimit64 process_mrelease process_vm_readv process_vm_writev pselect6 ptrace pwrite64 pwritev pwritev2
read readahead readlink readlinkat readv recvfrom recvmmsg recvmsg remap_file_pages removexattr
removexattrat rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending
rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo
sched_getaffinity sched_getattr sched_getparam sched_get_priority_max sched_get_priority_min
sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam
sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop sendfile sendmmsg sendmsg
sendto setfsgid setfsuid setgid setgroups setitimer setpgid setpriority setregid setresgid setresuid
setreuid setrlimit set_robust_list setsid setsockopt set_thread_area set_tid_address setuid setxattr
setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 socketpair splice stat
statfs statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create
timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime
times tkill truncate umask uname unlink unlinkat uretprobe utime utimensat utimes vfork vmsplice wait4
waitid waitpid write writev
""".split()  # noqa: SIM905 - a page of words, not a column

REFUSED = """
acct add_key bpf delete_module finit_module fsconfig fsmount fsopen fspick init_module kexec_file_load
kexec_load keyctl lookup_dcookie mount mount_setattr move_mount open_by_handle_at open_tree
perf_event_open pivot_root quotactl quotactl_fd reboot request_key setdomainname sethostname setns
settimeofday clock_settime clock_adjtime swapoff swapon syslog umount2 unshare userfaultfd vhangup iopl
ioperm
""".split()  # noqa: SIM905 - a page of words, not a column
"""Known to exist, and refused as permission is refused."""

SOCKET_FAMILIES = (1, 2, 10, 16)
"""AF_UNIX, AF_INET, AF_INET6, AF_NETLINK."""
PERSONALITIES = (0x0, 0x0008, 0x20000, 0x20008, 0x40000, 0xFFFFFFFF)
"""Linux, with the older 32-bit and UNAME26 variants, without address randomisation (debuggers), and "tell me"."""

PROFILE = Profile(
    default_errno=errno.ENOSYS,
    rules=(
        Rule(names=ALLOWED),
        Rule(names=REFUSED, errno=errno.EPERM),
        # clone3 hides its flags in memory, where a filter cannot look: C libraries fall back to clone.
        Rule(names=("clone",), conditions=(Compare(0, "masked_eq", NAMESPACE_FLAGS, 0),)),
        *(Rule(names=("socket",), conditions=(Compare(0, "eq", n),)) for n in SOCKET_FAMILIES),
        *(Rule(names=("personality",), conditions=(Compare(0, "eq", n),)) for n in PERSONALITIES),
    ),
)

CAPABILITIES = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_FOWNER": 3,
    "CAP_FSETID": 4,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SETPCAP": 8,
    "CAP_NET_BIND_SERVICE": 10,
    # Without effect: the network namespace belongs to the host's user namespace. But a program that carries it as a
    # file capability, as ping does in many images, could not be started at all if it were out of reach.
    "CAP_NET_RAW": 13,
    "CAP_SYS_CHROOT": 18,
    "CAP_AUDIT_WRITE": 29,
    "CAP_SETFCAP": 31,
}
"""Of root inside, in its own user namespace; numbers from linux/capability.h. No NET_ADMIN: a guest
can change neither its address nor its routes."""


def capability_mask() -> int:
    return sum(1 << number for number in CAPABILITIES.values())
