"""The tables, once: queries are written against them, and a test compares them with what the migrations make.

Moments are microseconds since 1970 (exact, ordered, small); JSON is text.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.types import TypeDecorator

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
EVERYBODY = ""
"""Scope of default templates' aliases, where a team's id stands for others. Not NULL: those are never equal."""


class Moment(TypeDecorator[datetime]):
    """Aware UTC datetime <-> integer."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else (value - EPOCH) // MICROSECOND

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        return None if value is None else EPOCH + value * MICROSECOND


class Json(TypeDecorator[Any]):
    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str:
        return msgspec.json.encode(value).decode()

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else msgspec.json.decode(value)


metadata = MetaData()

teams = Table(
    "teams",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("slug", Text, nullable=False),
    Column("created_at", Moment, nullable=False),
    UniqueConstraint("slug", name="teams_slug"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("team_id", Text, ForeignKey("teams.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("masked", Text, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("last_used_at", Moment),
    Column("revoked_at", Moment),
    UniqueConstraint("digest", name="api_keys_digest"),
)

templates = Table(
    "templates",
    metadata,
    Column("id", Text, primary_key=True),
    Column("team_id", Text, ForeignKey("teams.id")),
    Column("aliases", Json, nullable=False),
    Column("build_id", Text, nullable=False),
    Column("image_id", Text, nullable=False),
    Column("cpu_count", Integer, nullable=False),
    Column("memory_mib", Integer, nullable=False),
    Column("disk_mib", Integer, nullable=False),
    Column("pids", Integer, nullable=False),
    Column("public", Boolean, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("updated_at", Moment, nullable=False),
    Column("spawn_count", Integer, nullable=False),
    Column("last_spawned_at", Moment),
    Column("build_count", Integer, nullable=False),
    Column("build_status", Text, nullable=False),
)

template_aliases = Table(
    "template_aliases",
    metadata,
    Column("scope", Text, primary_key=True),
    Column("alias", Text, primary_key=True),
    Column("template_id", Text, ForeignKey("templates.id", ondelete="CASCADE"), nullable=False),
)

sandboxes = Table(
    "sandboxes",
    metadata,
    Column("id", Text, primary_key=True),
    Column("team_id", Text, nullable=False),
    Column("template_id", Text, nullable=False),
    Column("build_id", Text, nullable=False),
    Column("image_id", Text, nullable=False),
    Column("alias", Text),
    Column("execution_id", Text, nullable=False),
    Column("node_id", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("cpu_count", Integer, nullable=False),
    Column("memory_mib", Integer, nullable=False),
    Column("disk_mib", Integer, nullable=False),
    Column("pids", Integer, nullable=False),
    Column("started_at", Moment, nullable=False),
    Column("end_at", Moment, nullable=False),
    Column("max_end_at", Moment, nullable=False),
    Column("envd_access_token", Text, nullable=False),
    Column("traffic_access_token", Text),
    Column("metadata", Json, nullable=False),
    Column("env_vars", Json, nullable=False),
    Column("options", Json, nullable=False),
    Index("sandboxes_by_start", "team_id", "state", "started_at", "id"),
)

sandbox_metadata = Table(
    "sandbox_metadata",
    metadata,
    Column("sandbox_id", Text, ForeignKey("sandboxes.id", ondelete="CASCADE"), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
    Index("sandbox_metadata_by_pair", "name", "value", "sandbox_id"),
)
"""The pairs of `sandboxes.metadata` once more, so that a filter finds rows by an index."""

idempotency = Table(
    "idempotency",
    metadata,
    Column("team_id", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("body_digest", Text, nullable=False),
    Column("sandbox_id", Text, nullable=False),
    Column("created_at", Moment, nullable=False),
    Index("idempotency_by_age", "created_at"),
)
