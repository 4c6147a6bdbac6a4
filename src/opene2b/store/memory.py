"""Records in memory: for tests, and for servers that may forget everything when they stop."""

import dataclasses
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from opene2b.core.errors import AlreadyExists, NotFound
from opene2b.core.ids import ExecutionId, KeyId, SandboxId, TeamId, TemplateId
from opene2b.core.records import ApiKey, IdempotencyRecord, Sandbox, Team, Template
from opene2b.core.states import SandboxState
from opene2b.store.protocol import ALIVE, SandboxQuery, check_changes, too_many


class MemoryStore:
    """No method waits for anything, so each is one transaction by itself."""

    def __init__(self) -> None:
        self.teams: dict[TeamId, Team] = {}
        self.key_rows: dict[KeyId, ApiKey] = {}
        self.template_rows: dict[TemplateId, Template] = {}
        self.sandboxes: dict[SandboxId, Sandbox] = {}
        self.promises: dict[tuple[TeamId, str], IdempotencyRecord] = {}

    async def open(self) -> None:
        return

    async def close(self) -> None:
        return

    async def ensure_team(self, team: Team) -> Team:
        for known in self.teams.values():
            if known.slug == team.slug:
                return known
        self.teams[team.id] = team
        return team

    async def team(self, team_id: TeamId) -> Team | None:
        return self.teams.get(team_id)

    async def add_key(self, key: ApiKey) -> None:
        if key.id in self.key_rows or await self.key_by_digest(key.digest) is not None:
            raise AlreadyExists(f"key '{key.masked}' is there already")
        self.key_rows[key.id] = key

    async def key_by_digest(self, digest: str) -> ApiKey | None:
        return next((key for key in self.key_rows.values() if key.digest == digest), None)

    async def keys(self, team_id: TeamId) -> Sequence[ApiKey]:
        rows = [key for key in self.key_rows.values() if key.team_id == team_id]
        return sorted(rows, key=lambda key: (key.created_at, key.id))

    async def revoke_key(self, key_id: KeyId, *, at: datetime) -> ApiKey:
        key = self.key_rows.get(key_id)
        if key is None:
            raise NotFound(f"no key '{key_id}'")
        if key.revoked_at is None:
            key = self.key_rows[key_id] = dataclasses.replace(key, revoked_at=at)
        return key

    async def touch_key(self, key_id: KeyId, *, at: datetime) -> None:
        key = self.key_rows.get(key_id)
        if key is not None:
            self.key_rows[key_id] = dataclasses.replace(key, last_used_at=at)

    async def put_template(self, template: Template) -> None:
        for other in self.template_rows.values():
            taken = set(other.aliases) & set(template.aliases)
            if other.id != template.id and other.team_id == template.team_id and taken:
                raise AlreadyExists(f"alias '{min(taken)}' belongs to another template")
        self.template_rows[template.id] = template

    async def template(self, template_id: TemplateId) -> Template | None:
        return self.template_rows.get(template_id)

    async def template_by_alias(self, alias: str, *, team_id: TeamId | None) -> Template | None:
        for row in self.template_rows.values():
            if row.team_id == team_id and alias in row.aliases:
                return row
        return None

    async def find_template(self, alias: str, team_id: TeamId) -> Template | None:
        return (
            await self.template_by_alias(alias, team_id=team_id)
            or await self.template_by_alias(alias, team_id=None)
            or self.template_rows.get(TemplateId(alias))
        )

    async def templates(self, team_id: TeamId) -> Sequence[Template]:
        rows = [row for row in self.template_rows.values() if row.team_id in {team_id, None}]
        return sorted(rows, key=lambda row: (row.created_at, row.id), reverse=True)

    async def count_spawn(self, template_id: TemplateId, *, at: datetime) -> None:
        row = self.template_rows.get(template_id)
        if row is not None:
            self.template_rows[template_id] = dataclasses.replace(
                row, spawn_count=row.spawn_count + 1, last_spawned_at=at
            )

    async def add_sandbox(self, sandbox: Sandbox, *, team_limit: int | None = None) -> None:
        alive = await self.count_sandboxes(sandbox.team_id, ALIVE)
        if team_limit is not None and alive >= team_limit:
            raise too_many(team_limit)
        if sandbox.id in self.sandboxes:
            raise AlreadyExists(f"sandbox '{sandbox.id}' is there already")
        self.sandboxes[sandbox.id] = sandbox

    async def sandbox(self, sandbox_id: SandboxId) -> Sandbox | None:
        return self.sandboxes.get(sandbox_id)

    async def query_sandboxes(self, query: SandboxQuery) -> Sequence[Sandbox]:
        rows = [row for row in self.sandboxes.values() if matches(row, query)]
        rows.sort(key=lambda row: (row.started_at, row.id), reverse=not query.ascending)
        return rows[: query.limit + 1]

    async def count_sandboxes(self, team_id: TeamId, states: frozenset[SandboxState]) -> int:
        return sum(
            1 for row in self.sandboxes.values() if row.team_id == team_id and row.state in states
        )

    async def all_sandboxes(self) -> Sequence[Sandbox]:
        return list(self.sandboxes.values())

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
        check_changes(changes)
        row = self.sandboxes.get(sandbox_id)
        if row is None or row.state not in expected:
            return None
        if execution_id is not None and row.execution_id != execution_id:
            return None
        if ends_by is not None and row.end_at > ends_by:
            return None
        alive = await self.count_sandboxes(row.team_id, ALIVE)
        if team_limit is not None and row.state not in ALIVE and alive >= team_limit:
            raise too_many(team_limit)
        self.sandboxes[sandbox_id] = row = dataclasses.replace(row, **changes)
        return row

    async def delete_sandbox(self, sandbox_id: SandboxId) -> bool:
        return self.sandboxes.pop(sandbox_id, None) is not None

    async def claim_idempotency(self, record: IdempotencyRecord) -> IdempotencyRecord | None:
        known = self.promises.get((record.team_id, record.key))
        if known is None:
            self.promises[record.team_id, record.key] = record
        return known

    async def drop_idempotency(self, team_id: TeamId, key: str) -> None:
        self.promises.pop((team_id, key), None)

    async def sweep_idempotency(self, *, before: datetime) -> int:
        old = [name for name, row in self.promises.items() if row.created_at < before]
        for name in old:
            del self.promises[name]
        return len(old)


def matches(row: Sandbox, query: SandboxQuery) -> bool:
    place = (row.started_at, str(row.id))
    if query.after is not None and (
        place <= query.after if query.ascending else place >= query.after
    ):
        return False
    return (
        row.team_id == query.team_id
        and row.state in query.states
        and (query.template_id is None or row.template_id == query.template_id)
        and (query.started_after is None or row.started_at >= query.started_after)
        and all(row.metadata.get(name) == value for name, value in query.metadata.items())
    )
