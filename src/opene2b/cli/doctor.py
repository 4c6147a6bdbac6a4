"""`opene2b doctor`: what this machine lacks, each with the exact remedy.

Every check is a function that returns a Finding; none changes the machine.
"""

import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from opene2b.cli import layout, ports, setup_base
from opene2b.cli.config import Config
from opene2b.core.errors import ServiceError
from opene2b.linux import cgroups
from opene2b.linux.cgroups import Layout

PYTHON = (3, 11)
KERNEL = (5, 19)
"""First with id-mapped layers in an overlay."""
FREE_BYTES = 3 << 30
"""A base template of 0.5 GB, the room its build takes, and something to write in."""
CONTROLLERS = ("cpu", "memory", "pids")
EARLIEST = 1_700_000_000
"""A clock before this (November 2023) is not set: certificates and signatures would be refused."""


class Level(StrEnum):
    OK = "ok"
    NOTE = "note"
    """Sandboxes can run, something else will not."""
    LACK = "LACK"
    """Sandboxes cannot run."""


@dataclass(frozen=True, slots=True)
class Finding:
    level: Level
    sentence: str
    remedy: str | None = None


def ok(sentence: str) -> Finding:
    return Finding(Level.OK, sentence)


def lack(sentence: str, remedy: str) -> Finding:
    return Finding(Level.LACK, sentence, remedy)


def note(sentence: str, remedy: str) -> Finding:
    return Finding(Level.NOTE, sentence, remedy)


def check_root(_: Config) -> Finding:
    if os.geteuid() == 0:
        return ok("running as root")
    return lack("not root: the node agent makes namespaces and mounts", "run it with sudo")


def check_python(_: Config) -> Finding:
    return python_finding(sys.version_info[:2])


def python_finding(version: tuple[int, int]) -> Finding:
    found = ".".join(map(str, version))
    if version >= PYTHON:
        return ok(f"Python {found}")
    return lack(f"Python {found} is too old", "install python3.11 or later")


def check_kernel(_: Config) -> Finding:
    return kernel_finding(platform.release())


def kernel_finding(release: str) -> Finding:
    numbers = re.match(r"(\d+)\.(\d+)", release)
    if numbers and tuple(map(int, numbers.groups())) >= KERNEL:
        return ok(f"Linux {release}")
    return lack(
        f"Linux {release} has no id-mapped overlay layers",
        f"boot a kernel of at least {KERNEL[0]}.{KERNEL[1]} (Debian 12, Ubuntu 22.10 or its HWE kernel)",
    )


def check_overlay(_: Config) -> Finding:
    names = {line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()}
    if "overlay" in names:
        return ok("overlay file system")
    # mount(2) loads the module by itself where it is there.
    if (
        subprocess.run(["modprobe", "-n", "overlay"], capture_output=True, check=False).returncode
        == 0
    ):
        return ok("overlay file system (as a module)")
    return lack("the kernel has no overlay file system", "load it: modprobe overlay")


def check_user_namespaces(_: Config) -> Finding:
    setting = Path("/proc/sys/user/max_user_namespaces")
    if setting.exists() and int(setting.read_text()) > 0:
        return ok("user namespaces")
    return lack(
        "user namespaces are off", "switch them on: sysctl -w user.max_user_namespaces=65536"
    )


def check_cgroups(_: Config) -> Finding:
    found = cgroups.discover()
    if found.layout is Layout.NONE:
        return lack(
            "no control groups are mounted", "mount them: mount -t cgroup2 none /sys/fs/cgroup"
        )
    have = set(found.mounts)
    if "" in found.mounts:
        have |= set((found.mounts[""] / "cgroup.controllers").read_text().split())
    missing = [name for name in CONTROLLERS if name not in have]
    if missing:
        return lack(
            f"control groups ({found.layout}) lack {', '.join(missing)}",
            f"boot with cgroup_enable={','.join(missing)} on the kernel's command line",
        )
    return ok(f"control groups ({found.layout}) with {', '.join(CONTROLLERS)}")


def check_oci_runtime(config: Config) -> Finding:
    names = [config.oci_binary] if config.oci_binary else ["crun", "runc"]
    for name in names:
        path = shutil.which(name)
        if path is None:
            continue
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        first = (said.stdout.splitlines() or ["does not say its version"])[0]
        return ok(f"{path}: {first}")
    if config.oci_binary:
        return lack(f"OPENE2B_OCI_BINARY is {config.oci_binary}, which is not there", "unset it")
    return lack("neither crun nor runc is installed", "apt-get install crun")


def check_tools(_: Config) -> Iterator[Finding]:
    for tool, package, purpose in (
        ("catatonit", "catatonit", "pid 1 of sandboxes"),
        ("nft", "nftables", "firewall of sandboxes"),
        ("ip", "iproute2", "looking at the network by hand"),
    ):
        path = shutil.which(tool)
        needed = lack if tool != "ip" else note
        yield (
            ok(f"{path} ({purpose})")
            if path
            else needed(f"{tool} is missing ({purpose})", f"apt-get install {package}")
        )


def check_seccomp(_: Config) -> Finding:
    try:
        ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return lack("libseccomp.so.2 is missing", "apt-get install libseccomp2")
    return ok("libseccomp.so.2")


def check_base(config: Config) -> Finding:
    try:
        if setup_base.is_built(config.home):
            return ok("base template")
    except PermissionError:
        return note("whether the base template is there, only root can tell", "use sudo")
    if config.base_image is None and shutil.which("mmdebstrap") is None:
        return lack(
            "there is no base template, and mmdebstrap, which builds it, is missing",
            "apt-get install mmdebstrap, or set OPENE2B_BASE_IMAGE",
        )
    return note(
        "the base template is not built yet: the first `serve` builds it",
        "or build it now: opene2b setup-base",
    )


def check_disk(config: Config) -> Finding:
    place = config.home.root
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free >= FREE_BYTES:
        return ok(f"{free >> 30} GiB free for {config.home.root}")
    return lack(
        f"only {free >> 20} MiB free for {config.home.root}",
        f"make room for {FREE_BYTES >> 30} GiB, or set OPENE2B_HOME to another disk",
    )


def check_ports(config: Config) -> Iterator[Finding]:
    if layout.is_held(config.home):
        yield ok("a server of this OPENE2B_HOME is running on its ports")
        return
    for name, port in (
        ("E2B_API_PORT", config.api_port),
        ("OPENE2B_PROXY_PORT", config.proxy_port),
    ):
        try:
            ports.need(config.host, {name: port}, wait_s=0)
        except ServiceError as exc:
            yield lack(f"port {port} cannot be used", exc.message)
        else:
            yield ok(f"port {port} is free ({name})")


def check_network(_: Config) -> Finding:
    lines = Path("/proc/net/route").read_text().splitlines()[1:]
    if any(line.split()[1] == "00000000" for line in lines):
        return ok("a default route for sandboxes to the internet")
    return note("this machine has no default route", "sandboxes will have no internet")


def check_clock(_: Config) -> Finding:
    now = time.time()
    if now > EARLIEST:
        return ok(f"clock: {time.strftime('%Y-%m-%d %H:%M', time.gmtime(now))} UTC")
    return lack("the clock is years behind", "set it: timedatectl set-ntp true")


Check = Callable[[Config], Finding | Iterator[Finding]]
CHECKS: tuple[Check, ...] = (
    check_root,
    check_python,
    check_kernel,
    check_overlay,
    check_user_namespaces,
    check_cgroups,
    check_oci_runtime,
    check_tools,
    check_seccomp,
    check_disk,
    check_ports,
    check_network,
    check_clock,
    check_base,
)


def findings(config: Config) -> Iterator[Finding]:
    for check in CHECKS:
        found = check(config)
        if isinstance(found, Finding):
            yield found
        else:
            yield from found


def run(config: Config) -> int:
    """Exit code 0: sandboxes can run here."""
    lacks = 0
    for finding in findings(config):
        lacks += finding.level is Level.LACK
        print(f"{finding.level:<5} {finding.sentence}")
        if finding.remedy:
            print(f"      -> {finding.remedy}")
    if lacks:
        print(f"\nsandboxes cannot run here yet: {lacks} thing{'' if lacks == 1 else 's'} to do")
        return 1
    print("\nsandboxes can run here")
    return 0
