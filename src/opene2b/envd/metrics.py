"""What the sandbox uses: its own processes by /proc, its disk by statvfs. The rest of /proc tells of the whole machine.

Source: E2B envd contract, GET /metrics.
"""

import os
import time

import msgspec

from opene2b.envd.config import Config

TICKS = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Metrics(msgspec.Struct, kw_only=True):
    ts: int
    cpu_count: int
    cpu_used_pct: float
    mem_total: int
    mem_used: int
    mem_cache: int
    mem_total_mib: int
    mem_used_mib: int
    disk_used: int
    disk_total: int


class Meter:
    """Remembers the processor time of the last reading: usage is a difference."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.last: tuple[float, float] | None = None

    def read(self) -> Metrics:
        busy_s, memory = of_processes()
        now = time.monotonic()
        cores = self.config.cpu_count or os.cpu_count() or 1
        used = 0.0
        if self.last is not None and now > self.last[1]:
            used = 100.0 * (busy_s - self.last[0]) / (now - self.last[1]) / cores
        self.last = (busy_s, now)
        machine = of_machine()
        size = self.config.memory_bytes or machine.get("MemTotal", 0)
        disk = os.statvfs("/")
        return Metrics(
            ts=int(time.time()),
            cpu_count=cores,
            cpu_used_pct=round(min(max(used, 0.0), 100.0), 2),
            mem_total=size,
            mem_used=min(memory, size),
            # Of files that were read, the kernel tells a sandbox nothing.
            mem_cache=0,
            mem_total_mib=size >> 20,
            mem_used_mib=min(memory, size) >> 20,
            disk_used=(disk.f_blocks - disk.f_bfree) * disk.f_frsize,
            disk_total=disk.f_blocks * disk.f_frsize,
        )


def of_processes() -> tuple[float, int]:
    """Seconds of processor time of all processes, those that they reaped included, and their own memory in bytes."""
    ticks = pages = 0
    try:
        names = os.listdir("/proc")
    except OSError:
        # A guest may have no /proc: then it is unknown, which the contract writes as 0.
        return 0.0, 0
    for name in names:
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            with open(f"/proc/{name}/statm", "rb") as file:
                sizes = file.read().split()
        except OSError:
            continue  # it has ended
        # utime, stime, and both of its reaped children
        ticks += sum(int(field) for field in fields[11:15])
        pages += int(sizes[1]) - int(sizes[2])
    return ticks / TICKS, pages * PAGE_BYTES


def of_machine() -> dict[str, int]:
    found = {}
    try:
        with open("/proc/meminfo", "rb") as file:
            for line in file:
                name, _, rest = line.partition(b":")
                fields = rest.split()
                if fields and fields[0].isdigit():
                    found[name.decode("ascii", "replace")] = int(fields[0]) << 10
    except OSError:
        return found
    return found
