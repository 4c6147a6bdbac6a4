"""The container's configuration, as the OCI runtime specification has it. Pure.

The container runs one program, its pid 1: `catatonit -P` does nothing but reap orphans. What clients run is
started by envd, which enters later and takes the same restrictions on itself.
Source: OCI runtime specification 1.0.2, config-linux.
"""

from pathlib import Path
from typing import Any

from opene2b.core.resources import Resources
from opene2b.forkserver.plan import SYSTEM
from opene2b.forkserver.profile import CAPABILITIES

ID_BASE = 0x70000000
ID_RANGE = 65536
"""Sandbox in slot n has the host ids ID_BASE + n * ID_RANGE and up: above every range that distributions
hand out, and with 4096 slots still below 2^31."""

INIT_PATH = "/run/.init"
CPU_PERIOD_US = 100_000
CGROUP_PARENT = "/opene2b"


def first_id(index: int) -> int:
    """The host id of root inside the sandbox of this slot."""
    return ID_BASE + index * ID_RANGE


def cgroup_path(sandbox_id: str) -> str:
    return f"{CGROUP_PARENT}/{sandbox_id}"


def config(
    *,
    root: Path,
    init_binary: Path,
    index: int,
    netns_path: str,
    hostname: str,
    sandbox_id: str,
    resources: Resources,
) -> dict[str, Any]:
    mapping = [{"containerID": 0, "hostID": first_id(index), "size": ID_RANGE}]
    memory_bytes = resources.memory_mib << 20
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": [INIT_PATH, "-P"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            # Pid 1 needs nothing; what envd and its children may have is decided when envd enters.
            "capabilities": {kind: [] for kind in ("bounding", "effective", "permitted")}
            | {"bounding": sorted(CAPABILITIES)},
            "noNewPrivileges": True,
        },
        "root": {"path": str(root), "readonly": False},
        "hostname": hostname,
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
            mount(
                "/dev/pts",
                "devpts",
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ),
            mount("/dev/shm", "tmpfs", "nosuid", "nodev", "mode=1777"),  # noqa: S108 - the guest's own
            mount("/dev/mqueue", "mqueue", "nosuid", "noexec", "nodev"),
            {
                "destination": "/sys",
                "type": "bind",
                "source": str(root.with_name(SYSTEM)),
                "options": ["bind", "ro", "nosuid", "noexec", "nodev"],
            },
            mount("/run", "tmpfs", "nosuid", "nodev", "mode=755"),
            {
                "destination": INIT_PATH,
                "type": "bind",
                "source": str(init_binary),
                "options": ["bind", "ro", "nosuid", "nodev"],
            },
        ],
        "linux": {
            "uidMappings": mapping,
            "gidMappings": mapping,
            "namespaces": [
                {"type": "user"},
                {"type": "pid"},
                {"type": "ipc"},
                {"type": "uts"},
                {"type": "mount"},
                {"type": "cgroup"},
                {"type": "network", "path": netns_path},
            ],
            "cgroupsPath": cgroup_path(sandbox_id),
            "resources": {
                "memory": {"limit": memory_bytes, "swap": memory_bytes},
                "pids": {"limit": resources.pids},
                "cpu": {
                    "quota": resources.cpu_count * CPU_PERIOD_US,
                    "period": CPU_PERIOD_US,
                },
                "devices": [{"allow": False, "access": "rwm"}, *allowed_devices()],
            },
            "maskedPaths": [
                "/proc/acpi",
                "/proc/asound",
                "/proc/interrupts",
                "/proc/kallsyms",
                "/proc/kcore",
                "/proc/keys",
                "/proc/latency_stats",
                "/proc/modules",
                "/proc/sched_debug",
                "/proc/scsi",
                "/proc/timer_list",
                "/proc/timer_stats",
                "/sys/devices/virtual/powercap",
                "/sys/firmware",
                "/sys/fs/cgroup",
            ],
            "readonlyPaths": [
                "/proc/bus",
                "/proc/fs",
                "/proc/irq",
                "/proc/sys",
                "/proc/sysrq-trigger",
            ],
        },
    }


def mount(destination: str, kind: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": kind, "options": list(options)}


def allowed_devices() -> list[dict[str, Any]]:
    """null zero full random urandom tty ptmx and the terminals of the sandbox's own devpts."""
    numbers = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)]
    allowed = [
        {"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"}
        for major, minor in numbers
    ]
    return [*allowed, {"allow": True, "type": "c", "major": 136, "access": "rwm"}]
