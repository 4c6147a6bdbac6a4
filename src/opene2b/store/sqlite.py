"""Records in one SQLite file: write-ahead log, several readers, one writer at a time.

`synchronous=NORMAL`: what is committed survives the death of every process; a power cut may cost the last commits,
never the consistency of the file. Connections are in autocommit, so that one statement is one transaction without
extra rounds to the driver's thread; several statements go through `transaction`.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Select, and_, delete, event, func, insert, literal, or_, select, update
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from opene2b.core.errors import AlreadyExists, Internal, NotFound, OutOfSpace, ServiceError
from opene2b.core.ids import ExecutionId, KeyId, SandboxId, TeamId, TemplateId
from opene2b.core.records import ApiKey, IdempotencyRecord, Sandbox, Team, Template
from opene2b.core.states import SandboxState
from opene2b.store import migrate, rows, schema
from opene2b.store.protocol import SandboxQuery, check_changes
from opene2b.store.schema import (
    api_keys,
    idempotency,
    sandbox_metadata,
    sandboxes,
    teams,
    template_aliases,
    templates,
)

CONNECTIONS = 4
BUSY_MS = 10_000
"""How long a write waits for another process's write."""


class SqliteStore:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.engine: AsyncEngine | None = None
        self.writing = asyncio.Lock()
        """One writer of this process at a time: SQLite would make the others poll."""

    async def open(self) -> None:
        """Raises Unsupported: the file is a newer version's. Internal: it cannot be read or written."""
        await asyncio.to_thread(migrate.ensure, self.path)
        engine = create_async_engine(
            f"sqlite+aiosqlite:///{self.path}",
            isolation_level="AUTOCOMMIT",
            pool_size=CONNECTIONS,
            max_overflow=0,
            pool_reset_on_return=None,
        )
        event.listen(engine.sync_engine, "connect", prepare)
        self.engine = engine

    async def close(self) -> None:
        if self.engine is not None:
            await self.engine.dispose()
            self.engine = None

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        if self.engine is None:
            raise RuntimeError("the store is not open")
        with translated():
            async with self.engine.connect() as connection:
                yield connection

    @asynccontextmanager
    async def statement(self) -> AsyncIterator[AsyncConnection]:
        """For one statement that writes."""
        async with self.writing, self.reading() as connection:
            yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        async with self.writing, self.reading() as connection:
            await connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                yield connection
                await connection.exec_driver_sql("COMMIT")
            except BaseException:
                # Also when cancelled: a connection that goes back with a transaction open would block all writers.
                await asyncio.shield(connection.exec_driver_sql("ROLLBACK"))
                raise

    # teams and keys

    async def ensure_team(self, team: Team) -> Team:
        async with self.transaction() as connection:
            await connection.execute(
                upsert(teams)
                .values(rows.flat(team))
                .on_conflict_do_nothing(index_elements=["slug"])
            )
            found = await connection.execute(select(teams).where(teams.c.slug == team.slug))
            return Team(**found.one()._mapping)

    async def team(self, team_id: TeamId) -> Team | None:
        row = await self.first(select(teams).where(teams.c.id == team_id))
        return None if row is None else Team(**row)

    async def add_key(self, key: ApiKey) -> None:
        async with self.statement() as connection:
            try:
                await connection.execute(insert(api_keys).values(rows.flat(key)))
            except IntegrityError as exc:
                if "api_keys.digest" not in str(exc.orig) and "api_keys.id" not in str(exc.orig):
                    raise
                raise AlreadyExists(f"key '{key.masked}' is there already") from exc

    async def key_by_digest(self, digest: str) -> ApiKey | None:
        row = await self.first(select(api_keys).where(api_keys.c.digest == digest))
        return None if row is None else ApiKey(**row)

    async def keys(self, team_id: TeamId) -> Sequence[ApiKey]:
        query = select(api_keys).where(api_keys.c.team_id == team_id)
        found = await self.all(query.order_by(api_keys.c.created_at, api_keys.c.id))
        return [ApiKey(**row) for row in found]

    async def revoke_key(self, key_id: KeyId, *, at: datetime) -> ApiKey:
        async with self.statement() as connection:
            found = await connection.execute(
                update(api_keys)
                .where(api_keys.c.id == key_id)
                .values(revoked_at=func.coalesce(api_keys.c.revoked_at, literal(at, schema.Moment)))
                .returning(*api_keys.c)
            )
            row = found.first()
        if row is None:
            raise NotFound(f"no key '{key_id}'")
        return ApiKey(**row._mapping)

    async def touch_key(self, key_id: KeyId, *, at: datetime) -> None:
        async with self.statement() as connection:
            await connection.execute(
                update(api_keys).where(api_keys.c.id == key_id).values(last_used_at=at)
            )

    # templates

    async def put_template(self, template: Template) -> None:
        values = rows.flat(template)
        scope = template.team_id or schema.EVERYBODY
        async with self.transaction() as connection:
            await connection.execute(
                upsert(templates)
                .values(values)
                .on_conflict_do_update(index_elements=["id"], set_=values)
            )
            await connection.execute(
                delete(template_aliases).where(template_aliases.c.template_id == template.id)
            )
            for alias in template.aliases:
                try:
                    await connection.execute(
                        insert(template_aliases).values(
                            scope=scope, alias=alias, template_id=template.id
                        )
                    )
                except IntegrityError as exc:
                    if "template_aliases.alias" not in str(exc.orig):
                        raise
                    raise AlreadyExists(f"alias '{alias}' belongs to another template") from exc

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

    async def templates(self, team_id: TeamId) -> Sequence[Template]:
        found = await self.all(
            select(templates)
            .where(or_(templates.c.team_id == team_id, templates.c.team_id.is_(None)))
            .order_by(templates.c.created_at.desc(), templates.c.id.desc())
        )
        return [rows.template(row) for row in found]

    async def count_spawn(self, template_id: TemplateId, *, at: datetime) -> None:
        async with self.statement() as connection:
            await connection.execute(
                update(templates)
                .where(templates.c.id == template_id)
                .values(spawn_count=templates.c.spawn_count + 1, last_spawned_at=at)
            )

    # sandboxes

    async def add_sandbox(self, sandbox: Sandbox) -> None:
        pairs = [
            {"sandbox_id": sandbox.id, "name": name, "value": value}
            for name, value in sandbox.metadata.items()
        ]
        async with self.transaction() as connection:
            try:
                await connection.execute(insert(sandboxes), rows.flat(sandbox))
            except IntegrityError as exc:
                raise AlreadyExists(f"sandbox '{sandbox.id}' is there already") from exc
            if pairs:
                await connection.execute(insert(sandbox_metadata), pairs)

    async def sandbox(self, sandbox_id: SandboxId) -> Sandbox | None:
        row = await self.first(select(sandboxes).where(sandboxes.c.id == sandbox_id))
        return None if row is None else rows.sandbox(row)

    async def query_sandboxes(self, query: SandboxQuery) -> Sequence[Sandbox]:
        return [rows.sandbox(row) for row in await self.all(page(query))]

    async def count_sandboxes(self, team_id: TeamId, states: frozenset[SandboxState]) -> int:
        async with self.reading() as connection:
            found = await connection.execute(
                select(func.count())
                .select_from(sandboxes)
                .where(sandboxes.c.team_id == team_id, sandboxes.c.state.in_(sorted(states)))
            )
            return int(found.scalar_one())

    async def all_sandboxes(self) -> Sequence[Sandbox]:
        return [rows.sandbox(row) for row in await self.all(select(sandboxes))]

    async def update_sandbox(
        self,
        sandbox_id: SandboxId,
        *,
        expected: frozenset[SandboxState],
        execution_id: ExecutionId | None = None,
        **changes: Any,
    ) -> Sandbox | None:
        check_changes(changes)
        change = update(sandboxes).where(
            sandboxes.c.id == sandbox_id, sandboxes.c.state.in_(sorted(expected))
        )
        if execution_id is not None:
            change = change.where(sandboxes.c.execution_id == execution_id)
        async with self.statement() as connection:
            found = await connection.execute(change.values(changes).returning(*sandboxes.c))
            row = found.first()
        return None if row is None else rows.sandbox(dict(row._mapping))

    async def delete_sandbox(self, sandbox_id: SandboxId) -> bool:
        async with self.statement() as connection:
            found = await connection.execute(delete(sandboxes).where(sandboxes.c.id == sandbox_id))
            return bool(found.rowcount)

    # idempotency

    async def claim_idempotency(self, record: IdempotencyRecord) -> IdempotencyRecord | None:
        async with self.transaction() as connection:
            claimed = await connection.execute(
                upsert(idempotency).values(rows.flat(record)).on_conflict_do_nothing()
            )
            if claimed.rowcount:
                return None
            found = await connection.execute(
                select(idempotency).where(
                    idempotency.c.team_id == record.team_id, idempotency.c.key == record.key
                )
            )
            return IdempotencyRecord(**found.one()._mapping)

    async def drop_idempotency(self, team_id: TeamId, key: str) -> None:
        async with self.statement() as connection:
            await connection.execute(
                delete(idempotency).where(
                    idempotency.c.team_id == team_id, idempotency.c.key == key
                )
            )

    async def sweep_idempotency(self, *, before: datetime) -> int:
        async with self.statement() as connection:
            found = await connection.execute(
                delete(idempotency).where(idempotency.c.created_at < before)
            )
            return int(found.rowcount)

    # reading

    async def first(self, query: Select[Any]) -> dict[str, Any] | None:
        async with self.reading() as connection:
            row = (await connection.execute(query)).first()
        return None if row is None else dict(row._mapping)

    async def all(self, query: Select[Any]) -> list[dict[str, Any]]:
        async with self.reading() as connection:
            found = (await connection.execute(query)).all()
        return [dict(row._mapping) for row in found]


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


def prepare(connection: Any, record: Any) -> None:
    """For each new connection."""
    cursor = connection.cursor()
    for pragma in (
        f"busy_timeout={BUSY_MS}",
        "journal_mode=WAL",
        "synchronous=NORMAL",
        "foreign_keys=ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


@contextmanager
def translated() -> Iterator[None]:
    """What the database says, in our words."""
    try:
        yield
    except ServiceError:
        raise
    except DBAPIError as exc:
        code = getattr(exc.orig, "sqlite_errorcode", None)
        if code == sqlite3.SQLITE_FULL:
            raise OutOfSpace("the disk of the database is full", detail=str(exc.orig)) from exc
        raise Internal("the database cannot do its part", detail=str(exc.orig)) from exc
    except SQLAlchemyError as exc:
        raise Internal("the database cannot do its part", detail=str(exc)) from exc
