"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "teams",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("slug", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("slug", name="teams_slug"),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("team_id", sa.Text, sa.ForeignKey("teams.id"), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("masked", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("last_used_at", sa.BigInteger),
        sa.Column("revoked_at", sa.BigInteger),
        sa.UniqueConstraint("digest", name="api_keys_digest"),
    )
    op.create_table(
        "templates",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("team_id", sa.Text, sa.ForeignKey("teams.id")),
        sa.Column("aliases", sa.Text, nullable=False),
        sa.Column("build_id", sa.Text, nullable=False),
        sa.Column("image_id", sa.Text, nullable=False),
        *resources(),
        sa.Column("public", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.Column("spawn_count", sa.Integer, nullable=False),
        sa.Column("last_spawned_at", sa.BigInteger),
        sa.Column("build_count", sa.Integer, nullable=False),
        sa.Column("build_status", sa.Text, nullable=False),
    )
    op.create_table(
        "template_aliases",
        sa.Column("scope", sa.Text, primary_key=True),
        sa.Column("alias", sa.Text, primary_key=True),
        sa.Column(
            "template_id",
            sa.Text,
            sa.ForeignKey("templates.id", ondelete="CASCADE"),
            nullable=False,
        ),
    )
    op.create_table(
        "sandboxes",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("team_id", sa.Text, nullable=False),
        sa.Column("template_id", sa.Text, nullable=False),
        sa.Column("build_id", sa.Text, nullable=False),
        sa.Column("image_id", sa.Text, nullable=False),
        sa.Column("alias", sa.Text),
        sa.Column("execution_id", sa.Text, nullable=False),
        sa.Column("node_id", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        *resources(),
        sa.Column("started_at", sa.BigInteger, nullable=False),
        sa.Column("end_at", sa.BigInteger, nullable=False),
        sa.Column("max_end_at", sa.BigInteger, nullable=False),
        sa.Column("envd_access_token", sa.Text, nullable=False),
        sa.Column("traffic_access_token", sa.Text),
        sa.Column("metadata", sa.Text, nullable=False),
        sa.Column("env_vars", sa.Text, nullable=False),
        sa.Column("options", sa.Text, nullable=False),
    )
    op.create_index("sandboxes_by_start", "sandboxes", ["team_id", "state", "started_at", "id"])
    op.create_table(
        "sandbox_metadata",
        sa.Column(
            "sandbox_id",
            sa.Text,
            sa.ForeignKey("sandboxes.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    op.create_index("sandbox_metadata_by_pair", "sandbox_metadata", ["name", "value", "sandbox_id"])
    op.create_table(
        "idempotency",
        sa.Column("team_id", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("body_digest", sa.Text, nullable=False),
        sa.Column("sandbox_id", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_index("idempotency_by_age", "idempotency", ["created_at"])


def resources() -> list[sa.Column[int]]:
    names = ("cpu_count", "memory_mib", "disk_mib", "pids")
    return [sa.Column(name, sa.Integer, nullable=False) for name in names]
