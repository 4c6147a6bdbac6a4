"""What the fork server is told: a plan per sandbox, written by the driver as a file, named in the request.

A file and not the message, because environment variables of a sandbox may be megabytes; and because envd
must come back with the same words after it was killed, also when the agent has been restarted since.
Requests and answers are JSON datagrams; `id` pairs them.

    {"id": 1, "op": "start", "directory": D}   mounts, container, envd    -> {"id": 1, "started": {...}}
    {"id": 2, "op": "envd", "directory": D}    envd again, same container  -> {"id": 2, "started": {...}}
    {"id": 3, "op": "prepare", "first_id": N}  make the id range ready     -> {"id": 3}
    any failure                                                            -> {"id": N, "error": "...", "errno": n | null}
"""

from pathlib import Path

import msgspec


class Envd(msgspec.Struct, frozen=True, kw_only=True):
    sandbox_id: str
    template_id: str
    access_token: str | None
    env_vars: dict[str, str]
    default_user: str
    default_workdir: str | None
    cpu_count: int
    memory_bytes: int


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    sandbox_id: str
    layers: list[str]
    """Lowest first."""
    first_id: int
    """Host id of root inside."""
    id_range: int
    netns_path: str
    stage: str
    """Directory that a starting child covers with a tmpfs of its own and makes its mounts in: every id may
    pass through it, which cannot be said of the sandbox's own directory."""
    runtime_command: list[str]
    """`crun --root ... `: the start of every command line."""
    hide_unified_cgroups: bool
    """crun refuses hybrid cgroups unless the version 2 tree cannot be seen."""
    capabilities: int
    """Bit mask of what guest root may have."""
    envd: Envd


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """Host process ids and their start times (linux.processes): names that stay unique."""

    init_pid: int
    init_started: int
    envd_pid: int
    envd_started: int


class Request(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    op: str
    directory: str = ""
    first_id: int = 0
    program: str = ""
    """Path of the OCI runtime, for a start."""


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    id: int
    started: Started | None = None
    error: str | None = None
    errno: int | None = None


# Below a sandbox's own directory.
PLAN = "plan.json"
BUNDLE = "bundle"
"""config.json of the container."""
WRITABLE = "disk"
"""disk/upper holds what the guest wrote, ids as inside; disk/work is overlayfs's own."""
ROOT = "root"
"""Below the stage: the root of the sandbox, as the container's configuration names it."""
SYSTEM = "sys"
"""Below the stage: the sysfs that shows the sandbox's own network and no other."""
PID_FILE = "init.pid"
RUNTIME_LOG = "runtime.log"


def load(directory: Path) -> Plan:
    return msgspec.json.decode((directory / PLAN).read_bytes(), type=Plan)


def save(directory: Path, plan: Plan) -> None:
    scratch = directory / (PLAN + ".new")
    scratch.touch(mode=0o600)
    scratch.write_bytes(msgspec.json.encode(plan))
    scratch.replace(directory / PLAN)
