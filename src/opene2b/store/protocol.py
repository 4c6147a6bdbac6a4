"""The store protocol. All methods are safe to call from many tasks; each is one transaction.

Methods raise `core.errors` only: NotFound and AlreadyExists where they say so, Internal when the
database cannot do its part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from opene2b.core.errors import LimitExceeded
from opene2b.core.ids import ExecutionId, KeyId, SandboxId, TeamId, TemplateId
from opene2b.core.records import ApiKey, IdempotencyRecord, Sandbox, Team, Template
from opene2b.core.states import SandboxState


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxQuery:
    """What a page of sandboxes is chosen by. Order is (started_at, id)."""

    team_id: TeamId
    states: frozenset[SandboxState]
    metadata: Mapping[str, str] = field(default_factory=dict)
    """All pairs must be there, exactly."""
    template_id: TemplateId | None = None
    started_after: datetime | None = None
    """Inclusive."""
    ascending: bool = False
    after: tuple[datetime, str] | None = None
    """(started_at, id) of the last row of the page before."""
    limit: int = 100


CHANGEABLE = frozenset(
    {
        *("state", "execution_id", "node_id", "started_at", "end_at", "max_end_at", "env_vars"),
        *("options", "traffic_access_token"),
    }
)
"""Fields of a sandbox that may change during its life."""


def check_changes(changes: Mapping[str, Any]) -> None:
    """Raises ValueError: a mistake of the caller's, found before anything is written."""
    unknown = changes.keys() - CHANGEABLE
    if unknown:
        raise ValueError(f"not a changeable field of a sandbox: {', '.join(sorted(unknown))}")


ALIVE = frozenset(
    {
        SandboxState.STARTING,
        SandboxState.RUNNING,
        SandboxState.PAUSING,
        SandboxState.RESUMING,
    }
)
"""What counts against a team's limit."""


def too_many(limit: int) -> LimitExceeded:
    return LimitExceeded(
        # wire: the official server's words
        f"you have reached the maximum number of concurrent E2B sandboxes ({limit})",
        # A client that resent it at once would only be refused again.
        retryable=False,
    )


class Store(Protocol):
    async def open(self) -> None:
        """Connect and bring the schema up to date."""
        ...

    async def close(self) -> None: ...

    # teams and keys
    async def ensure_team(self, team: Team) -> Team:
        """The team with this slug; inserts the given one if there is none."""
        ...

    async def team(self, team_id: TeamId) -> Team | None: ...

    async def add_key(self, key: ApiKey) -> None:
        """Raises AlreadyExists: a key with this digest is there (revoked ones included)."""
        ...

    async def key_by_digest(self, digest: str) -> ApiKey | None: ...

    async def keys(self, team_id: TeamId) -> Sequence[ApiKey]:
        """By creation, revoked ones included."""
        ...

    async def revoke_key(self, key_id: KeyId, *, at: datetime) -> ApiKey:
        """Raises NotFound. Revoking a revoked key changes nothing."""
        ...

    async def touch_key(self, key_id: KeyId, *, at: datetime) -> None: ...

    # templates
    async def put_template(self, template: Template) -> None:
        """Insert or replace by id. Raises AlreadyExists: one of its aliases is another's of the same team."""
        ...

    async def template(self, template_id: TemplateId) -> Template | None: ...

    async def template_by_alias(self, alias: str, *, team_id: TeamId | None) -> Template | None:
        """The team's own template of this alias (team_id None: the default one)."""
        ...

    async def find_template(self, alias: str, team_id: TeamId) -> Template | None:
        """What a bare name means to a team: its own template of this alias, else the default one, else the template
        with this id."""
        ...

    async def templates(self, team_id: TeamId) -> Sequence[Template]:
        """The team's own and the default ones, newest first."""
        ...

    async def count_spawn(self, template_id: TemplateId, *, at: datetime) -> None: ...

    # sandboxes
    async def add_sandbox(self, sandbox: Sandbox, *, team_limit: int | None = None) -> None:
        """Raises AlreadyExists; LimitExceeded: its team has so many that are starting or running already."""
        ...

    async def sandbox(self, sandbox_id: SandboxId) -> Sandbox | None: ...

    async def query_sandboxes(self, query: SandboxQuery) -> Sequence[Sandbox]:
        """At most `limit + 1` rows: the one more tells that there is a next page."""
        ...

    async def count_sandboxes(self, team_id: TeamId, states: frozenset[SandboxState]) -> int: ...

    async def all_sandboxes(self) -> Sequence[Sandbox]:
        """Every row of every team: read once, at start."""
        ...

    async def update_sandbox(
        self,
        sandbox_id: SandboxId,
        *,
        expected: frozenset[SandboxState],
        execution_id: ExecutionId | None = None,
        team_limit: int | None = None,
        ends_by: datetime | None = None,
        **changes: Any,
    ) -> Sandbox | None:
        """Change fields of the row if its state is one of `expected` (and its execution the given one).

        Args:
            ends_by: Only if its end_at is not later than this.
            team_limit: Nothing is changed, and LimitExceeded raised, when the team has so many that count already.

        The compare and the change are one transaction. Returns the new row, or None when there is no
        such row or it does not match: the caller reads again and decides.
        """
        ...

    async def delete_sandbox(self, sandbox_id: SandboxId) -> bool: ...

    # idempotency
    async def claim_idempotency(self, record: IdempotencyRecord) -> IdempotencyRecord | None:
        """Keep this promise, unless one is kept under its team and key: then return that one."""
        ...

    async def drop_idempotency(self, team_id: TeamId, key: str) -> None: ...

    async def sweep_idempotency(self, *, before: datetime) -> int:
        """Delete promises made before a moment; returns how many."""
        ...
