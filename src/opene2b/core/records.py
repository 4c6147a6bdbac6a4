"""What the store knows: frozen rows, all moments aware UTC, all names ours (wire spellings stop at `api/`)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from opene2b.core.ids import (
    BuildId,
    ExecutionId,
    ImageId,
    KeyId,
    NodeId,
    SandboxId,
    TeamId,
    TemplateId,
)
from opene2b.core.resources import Resources
from opene2b.core.states import SandboxState


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    id: TeamId
    name: str
    slug: str
    """Namespace of its templates: `[a-z0-9-_]+`."""
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """One key. The key itself is shown once and never stored."""

    id: KeyId
    team_id: TeamId
    name: str
    digest: str = field(repr=False)
    """Hex SHA-256 of the whole key text."""
    masked: str
    """What may be shown of it, e.g. `e2b_ab...cdef`."""
    created_at: datetime
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    id: TemplateId
    team_id: TeamId | None
    """None: a default template, open to every team."""
    aliases: tuple[str, ...]
    build_id: BuildId
    image_id: ImageId
    """What a node boots for it."""
    resources: Resources
    public: bool
    created_at: datetime
    updated_at: datetime
    spawn_count: int = 0
    last_spawned_at: datetime | None = None
    build_count: int = 1
    build_status: str = "ready"
    """`waiting building ready error`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """One sandbox, from the moment that its id is promised to its end.

    A killed sandbox has no row: what is in the store exists.
    """

    id: SandboxId
    team_id: TeamId
    template_id: TemplateId
    build_id: BuildId
    image_id: ImageId
    alias: str | None
    execution_id: ExecutionId
    node_id: NodeId
    state: SandboxState
    resources: Resources
    started_at: datetime
    end_at: datetime
    max_end_at: datetime
    """No extension goes beyond it: started_at + the longest lifetime allowed."""
    envd_access_token: str = field(repr=False)
    traffic_access_token: str | None = field(default=None, repr=False)
    metadata: Mapping[str, str] = field(default_factory=dict)
    env_vars: Mapping[str, str] = field(default_factory=dict, repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the create request said and later parts act on: `network`, `allow_internet_access`,
    `auto_pause`, `auto_resume`, `mcp`, `volume_mounts`; JSON-able, as received."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotencyRecord:
    """The promise made under one `Idempotency-Key` of one team."""

    team_id: TeamId
    key: str
    body_digest: str
    """Hex SHA-256 of the canonical request: another body under the same key is refused."""
    sandbox_id: SandboxId
    created_at: datetime
