"""What the sandbox uses, from /proc, the cgroup where it can be seen, and statvfs.

Source: E2B envd contract, GET /metrics.
"""

import os
import time

import msgspec


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
    """Remembers the processor times of the last reading: usage is a difference."""

    def __init__(self) -> None:
        self.last: tuple[float, float] | None = None

    def read(self) -> Metrics:
        busy, total = processor_times()
        used = 0.0
        if self.last is not None and total > self.last[1]:
            used = 100.0 * (busy - self.last[0]) / (total - self.last[1])
        self.last = (busy, total)
        memory = memory_bytes()
        available = memory.get("MemAvailable", 0)
        size = memory.get("MemTotal", 0)
        disk = os.statvfs("/")
        return Metrics(
            ts=int(time.time()),
            cpu_count=os.cpu_count() or 1,
            cpu_used_pct=round(max(used, 0.0), 2),
            mem_total=size,
            mem_used=max(size - available, 0),
            mem_cache=memory.get("Cached", 0),
            mem_total_mib=size >> 20,
            mem_used_mib=max(size - available, 0) >> 20,
            disk_used=(disk.f_blocks - disk.f_bfree) * disk.f_frsize,
            disk_total=disk.f_blocks * disk.f_frsize,
        )


def processor_times() -> tuple[float, float]:
    """(busy, total) ticks since boot."""
    try:
        with open("/proc/stat", "rb") as file:
            fields = [int(text) for text in file.readline().split()[1:9]]
    except (OSError, ValueError):
        return 0.0, 0.0
    idle = fields[3] + fields[4] if len(fields) > 4 else 0
    return float(sum(fields) - idle), float(sum(fields))


def memory_bytes() -> dict[str, int]:
    found = {}
    try:
        with open("/proc/meminfo", "rb") as file:
            for line in file:
                name, _, rest = line.partition(b":")
                fields = rest.split()
                if fields and fields[0].isdigit():
                    found[name.decode("ascii", "replace")] = int(fields[0]) << 10
    except OSError:
        # A guest may have no /proc: then these are unknown, which the contract writes as 0.
        return found
    return found
