"""The durable table: one directory per sandbox, with what a restarted agent must know in `entry.json`.

    sandboxes/<sandbox id>/entry.json    what was asked for, how far it is, the driver's handle (mode 0600: tokens)
    sandboxes/<sandbox id>/disk/         the driver's directory

Nothing is synced to disk: a crash of the host ends the sandboxes anyway, and what the page cache holds
survives the death of any process.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from opene2b.core.ids import SANDBOX_ID, ExecutionId, ImageId, SandboxId
from opene2b.core.resources import Resources

log = logging.getLogger(__name__)

ENTRY, DISK = "entry.json", "disk"


class Phase(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    """Asked to stand still, and it does, or the agent died on the way there."""
    STORED = "stored"
    """Its disk alone is kept, to be started again; processes are gone, or the agent died on the way there."""
    ENDED = "ended"
    """Its processes are gone; waits to be killed, which frees what it used."""
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the control plane asks for."""

    sandbox_id: SandboxId
    execution_id: ExecutionId
    template_id: str
    image_id: ImageId
    resources: Resources
    env_vars: Mapping[str, str] = field(default_factory=dict, repr=False)
    envd_access_token: str | None = field(default=None, repr=False)
    traffic_access_token: str | None = field(default=None, repr=False)
    mask_request_host: str | None = None
    allow_internet_access: bool = True
    auto_resume: bool = False
    """While it is paused, traffic for it waits and makes it wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    order: Order
    phase: Phase
    slot: int | None = None
    """Index of its network place; None: it holds none."""
    address: str = "127.0.0.1"
    """Its own address inside that network."""
    handle: Mapping[str, Any] | None = None
    """None: the driver has not reported a start."""
    start_seconds: float = 0.0


class Table:
    """Owner of `sandboxes/`. Calls are short and blocking."""

    def __init__(self, directory: Path) -> None:
        self.root = directory

    def directory(self, sandbox_id: SandboxId) -> Path:
        return self.root / sandbox_id

    def disk(self, sandbox_id: SandboxId) -> Path:
        """The directory that the driver gets."""
        return self.root / sandbox_id / DISK

    def open(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)

    def load(self) -> dict[SandboxId, Entry | None]:
        """Every sandbox that there is a directory of.

        None: the entry is missing or unreadable. The agent died while it was being made, so
        whatever there is of it must be undone.
        """
        found: dict[SandboxId, Entry | None] = {}
        for path in sorted(self.root.iterdir()):
            if not SANDBOX_ID.match(path.name) or not path.is_dir():
                log.warning("table_stray_file", extra={"file": path.name})
                continue
            found[SandboxId(path.name)] = self.read(path)
        return found

    def read(self, path: Path) -> Entry | None:
        try:
            entry = msgspec.json.decode((path / ENTRY).read_bytes(), type=Entry)
        except (FileNotFoundError, msgspec.DecodeError) as exc:
            log.error("table_bad_entry", extra={"sandbox_id": path.name, "detail": str(exc)})
            return None
        if entry.order.sandbox_id != path.name:
            log.error("table_bad_entry", extra={"sandbox_id": path.name, "detail": "other's entry"})
            return None
        return entry

    def make(self, entry: Entry) -> None:
        """Make the directory of a new sandbox, with its first entry, and the driver's empty one."""
        self.directory(entry.order.sandbox_id).mkdir(mode=0o700)
        self.save(entry)
        self.disk(entry.order.sandbox_id).mkdir(mode=0o700)

    def save(self, entry: Entry) -> None:
        """Replace the entry whole: a reader sees the old one or the new one."""
        target = self.directory(entry.order.sandbox_id) / ENTRY
        scratch = target.with_suffix(".new")
        fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(msgspec.json.encode(entry))
        scratch.replace(target)
