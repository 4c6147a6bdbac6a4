"""How much of a machine one sandbox gets."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    cpu_count: int = 2
    """CPUs' worth of time per second, enforced as a quota."""
    memory_mib: int = 1024
    """Hard limit, page cache included."""
    disk_mib: int = 10240
    """Size reported to clients; not enforced yet (SECURITY.md)."""
    pids: int = 1024
    """Processes and threads at once."""
