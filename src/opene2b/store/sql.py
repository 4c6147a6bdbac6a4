"""The records in SQL: every statement, once, for every database of that kind.

A method is a plain function over a connection, which the store of a database runs in its own way: `read` and `write`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, ClassVar, TypeVar

from sqlalchemy import (
    Connection,
    Row,
    Select,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.sql.dml import ReturningUpdate

from opene2b.core.errors import AlreadyExists, NotFound
from opene2b.core.ids import ExecutionId, KeyId, SandboxId, TeamId, TemplateId
from opene2b.core.records import ApiKey, IdempotencyRecord, Sandbox, Team, Template
from opene2b.core.states import SandboxState
from opene2b.store import rows, schema
from opene2b.store.protocol import ALIVE, SandboxQuery, check_changes, too_many
from opene2b.store.schema import (
    api_keys,
    idempotency,
    sandbox_metadata,
    sandboxes,
    teams,
    template_aliases,
    templates,
)

T = TypeVar("T")


class SqlStore(ABC):
    upsert: ClassVar[Callable[..., Any]]
    """The dialect's INSERT that knows ON CONFLICT."""

    @abstractmethod
    async def read(self, work: Callable[[Connection], T]) -> T: ...

    @abstractmethod
    async def write(self, work: Callable[[Connection], T]) -> T:
        """In one transaction: all of it, or nothing when it raises."""

    # teams and keys

    async def ensure_team(self, team: Team) -> Team:
        def work(connection: Connection) -> Team:
            connection.execute(
                self.upsert(teams)
                .values(rows.flat(team))
                .on_conflict_do_nothing(index_elements=["slug"])
            )
            found = connection.execute(select(teams).where(teams.c.slug == team.slug))
            return Team(**found.one()._mapping)

        return await self.write(work)

    async def team(self, team_id: TeamId) -> Team | None:
        row = await self.first(select(teams).where(teams.c.id == team_id))
        return None if row is None else Team(**row)

    async def add_key(self, key: ApiKey) -> None:
        def work(connection: Connection) -> None:
            try:
                connection.execute(insert(api_keys).values(rows.flat(key)))
            except IntegrityError as exc:
                if "api_keys.digest" not in str(exc.orig) and "api_keys.id" not in str(exc.orig):
                    raise
                raise AlreadyExists(f"key '{key.masked}' is there already") from exc

        await self.write(work)

    async def key_by_digest(self, digest: str) -> ApiKey | None:
        row = await self.first(select(api_keys).where(api_keys.c.digest == digest))
        return None if row is None else ApiKey(**row)

    async def keys(self, team_id: TeamId) -> Sequence[ApiKey]:
        query = select(api_keys).where(api_keys.c.team_id == team_id)
        found = await self.all(query.order_by(api_keys.c.created_at, api_keys.c.id))
        return [ApiKey(**row) for row in found]

    async def revoke_key(self, key_id: KeyId, *, at: datetime) -> ApiKey:
        def work(connection: Connection) -> ApiKey:
            found = connection.execute(
                update(api_keys)
                .where(api_keys.c.id == key_id)
                .values(revoked_at=func.coalesce(api_keys.c.revoked_at, literal(at, schema.Moment)))
                .returning(*api_keys.c)
            )
            row = found.first()
            if row is None:
                raise NotFound(f"no key '{key_id}'")
            return ApiKey(**row._mapping)

        return await self.write(work)

    async def touch_key(self, key_id: KeyId, *, at: datetime) -> None:
        def work(connection: Connection) -> None:
            connection.execute(
                update(api_keys).where(api_keys.c.id == key_id).values(last_used_at=at)
            )

        await self.write(work)

    # templates

    async def put_template(self, template: Template) -> None:
        values = rows.flat(template)
        scope = template.team_id or schema.EVERYBODY

        def work(connection: Connection) -> None:
            connection.execute(
                self.upsert(templates)
                .values(values)
                .on_conflict_do_update(index_elements=["id"], set_=values)
            )
            connection.execute(
                delete(template_aliases).where(template_aliases.c.template_id == template.id)
            )
            for alias in template.aliases:
                try:
                    connection.execute(
                        insert(template_aliases).values(
                            scope=scope, alias=alias, template_id=template.id
                        )
                    )
                except IntegrityError as exc:
                    if "template_aliases.alias" not in str(exc.orig):
                        raise
                    raise AlreadyExists(f"alias '{alias}' belongs to another template") from exc

        await self.write(work)

    async def template(self, template_id: TemplateId) -> Template | None:
        row = await self.first(select(templates).where(templates.c.id == template_id))
        return None if row is None else rows.template(row)

    async def template_by_alias(self, alias: str, *, team_id: TeamId | None) -> Template | None:
        row = await self.first(
            select(templates)
            .join(template_aliases, template_aliases.c.template_id == templates.c.id)
            .where(
                template_aliases.c.scope == (team_id or schema.EVERYBODY),
                template_aliases.c.alias == alias,
            )
        )
        return None if row is None else rows.template(row)

    async def find_template(self, alias: str, team_id: TeamId) -> Template | None:
        row = await self.first(FIND_TEMPLATE, {"alias": alias, "team_id": team_id})
        return None if row is None else rows.template(row)

    async def templates(self, team_id: TeamId) -> Sequence[Template]:
        found = await self.all(
            select(templates)
            .where(or_(templates.c.team_id == team_id, templates.c.team_id.is_(None)))
            .order_by(templates.c.created_at.desc(), templates.c.id.desc())
        )
        return [rows.template(row) for row in found]

    async def count_spawn(self, template_id: TemplateId, *, at: datetime) -> None:
        def work(connection: Connection) -> None:
            connection.execute(
                update(templates)
                .where(templates.c.id == template_id)
                .values(spawn_count=templates.c.spawn_count + 1, last_spawned_at=at)
            )

        await self.write(work)

    # sandboxes

    async def add_sandbox(self, sandbox: Sandbox, *, team_limit: int | None = None) -> None:
        pairs = [
            {"sandbox_id": sandbox.id, "name": name, "value": value}
            for name, value in sandbox.metadata.items()
        ]

        def work(connection: Connection) -> None:
            if team_limit is not None:
                alive = connection.execute(counting(ALIVE), {"team": sandbox.team_id}).scalar_one()
                if alive >= team_limit:
                    raise too_many(team_limit)
            try:
                connection.execute(INSERT_SANDBOX, rows.flat(sandbox))
            except IntegrityError as exc:
                if "sandboxes.id" not in str(exc.orig):
                    raise
                raise AlreadyExists(f"sandbox '{sandbox.id}' is there already") from exc
            if pairs:
                connection.execute(insert(sandbox_metadata), pairs)

        await self.write(work)

    async def sandbox(self, sandbox_id: SandboxId) -> Sandbox | None:
        row = await self.first(ONE_SANDBOX, {"sandbox_id": sandbox_id})
        return None if row is None else rows.sandbox(row)

    async def query_sandboxes(self, query: SandboxQuery) -> Sequence[Sandbox]:
        return [rows.sandbox(row) for row in await self.all(page(query))]

    async def count_sandboxes(self, team_id: TeamId, states: frozenset[SandboxState]) -> int:
        def work(connection: Connection) -> int:
            return int(connection.execute(counting(states), {"team": team_id}).scalar_one())

        return await self.read(work)

    async def all_sandboxes(self) -> Sequence[Sandbox]:
        return [rows.sandbox(row) for row in await self.all(select(sandboxes))]

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
        change = changing(
            frozenset(changes), expected, execution_id is not None, ends_by is not None
        )
        values = {f"new_{name}": value for name, value in changes.items()}
        values["sandbox"] = sandbox_id
        if execution_id is not None:
            values["execution"] = execution_id
        if ends_by is not None:
            values["ends_by"] = ends_by

        def work(connection: Connection) -> Sandbox | None:
            found = connection.execute(change, values)
            row = found.first()
            if row is None:
                return None
            changed = rows.sandbox(dict(row._mapping))
            if team_limit is not None:
                # The row itself counts by now; what is raised undoes the change.
                alive = connection.execute(counting(ALIVE), {"team": changed.team_id}).scalar_one()
                if alive > team_limit:
                    raise too_many(team_limit)
            return changed

        return await self.write(work)

    async def delete_sandbox(self, sandbox_id: SandboxId) -> bool:
        def work(connection: Connection) -> bool:
            found = connection.execute(delete(sandboxes).where(sandboxes.c.id == sandbox_id))
            return bool(found.rowcount)

        return await self.write(work)

    # idempotency

    async def claim_idempotency(self, record: IdempotencyRecord) -> IdempotencyRecord | None:
        def work(connection: Connection) -> IdempotencyRecord | None:
            claimed = connection.execute(
                self.upsert(idempotency).values(rows.flat(record)).on_conflict_do_nothing()
            )
            if claimed.rowcount:
                return None
            found = connection.execute(
                select(idempotency).where(
                    idempotency.c.team_id == record.team_id, idempotency.c.key == record.key
                )
            )
            return IdempotencyRecord(**found.one()._mapping)

        return await self.write(work)

    async def drop_idempotency(self, team_id: TeamId, key: str) -> None:
        def work(connection: Connection) -> None:
            connection.execute(
                delete(idempotency).where(
                    idempotency.c.team_id == team_id, idempotency.c.key == key
                )
            )

        await self.write(work)

    async def sweep_idempotency(self, *, before: datetime) -> int:
        def work(connection: Connection) -> int:
            found = connection.execute(delete(idempotency).where(idempotency.c.created_at < before))
            return int(found.rowcount)

        return await self.write(work)

    # reading

    async def first(
        self, query: Select[Any], values: Mapping[str, Any] | None = None
    ) -> dict[str, Any] | None:
        def work(connection: Connection) -> Row[Any] | None:
            return connection.execute(query, values or {}).first()

        row = await self.read(work)
        return None if row is None else dict(row._mapping)

    async def all(self, query: Select[Any]) -> list[dict[str, Any]]:
        def work(connection: Connection) -> Sequence[Row[Any]]:
            return connection.execute(query).all()

        found = await self.read(work)
        return [dict(row._mapping) for row in found]


# Building a statement takes longer than SQLite takes to run it: those of a create are built once.

INSERT_SANDBOX = insert(sandboxes)
ONE_SANDBOX = select(sandboxes).where(sandboxes.c.id == bindparam("sandbox_id"))
FIND_TEMPLATE = (
    select(templates)
    .outerjoin(
        template_aliases,
        and_(
            template_aliases.c.template_id == templates.c.id,
            template_aliases.c.alias == bindparam("alias"),
        ),
    )
    .where(
        or_(
            template_aliases.c.scope.in_([bindparam("team_id"), schema.EVERYBODY]),
            templates.c.id == bindparam("alias"),
        )
    )
    # The best of at most three rows: own before default before id.
    .order_by(
        case(
            (template_aliases.c.scope == bindparam("team_id"), 0),
            (template_aliases.c.scope == schema.EVERYBODY, 1),
            else_=2,
        )
    )
    .limit(1)
)


@cache
def counting(states: frozenset[SandboxState]) -> Select[Any]:
    return (
        select(func.count())
        .select_from(sandboxes)
        .where(sandboxes.c.team_id == bindparam("team"), sandboxes.c.state.in_(sorted(states)))
    )


@cache
def changing(
    fields: frozenset[str],
    expected: frozenset[SandboxState],
    of_execution: bool,
    of_end: bool,
) -> ReturningUpdate[Any]:
    change = update(sandboxes).where(
        sandboxes.c.id == bindparam("sandbox"), sandboxes.c.state.in_(sorted(expected))
    )
    if of_execution:
        change = change.where(sandboxes.c.execution_id == bindparam("execution"))
    if of_end:
        moment = bindparam("ends_by", type_=sandboxes.c.end_at.type)
        change = change.where(sandboxes.c.end_at <= moment)
    values: dict[str, Any] = {
        name: bindparam(f"new_{name}", type_=sandboxes.c[name].type) for name in fields
    }
    # Without changes it is only the comparison, but an UPDATE has to set something.
    return change.values(values or {"state": sandboxes.c.state}).returning(*sandboxes.c)


def page(query: SandboxQuery) -> Select[Any]:
    table = sandboxes.c
    chosen = select(sandboxes).where(
        table.team_id == query.team_id, table.state.in_(sorted(query.states))
    )
    if query.template_id is not None:
        chosen = chosen.where(table.template_id == query.template_id)
    if query.started_after is not None:
        chosen = chosen.where(table.started_at >= query.started_after)
    for name, value in sorted(query.metadata.items()):
        pair = sandbox_metadata.alias()
        chosen = chosen.join(
            pair,
            and_(pair.c.sandbox_id == table.id, pair.c.name == name, pair.c.value == value),
        )
    if query.after is not None:
        moment, row_id = query.after
        if query.ascending:
            later = and_(table.started_at == moment, table.id > row_id)
            chosen = chosen.where(or_(table.started_at > moment, later))
        else:
            earlier = and_(table.started_at == moment, table.id < row_id)
            chosen = chosen.where(or_(table.started_at < moment, earlier))
    order = (
        (table.started_at, table.id)
        if query.ascending
        else (table.started_at.desc(), table.id.desc())
    )
    return chosen.order_by(*order).limit(query.limit + 1)
