"""Run by Alembic: the connection is given by `store.migrate`."""

from alembic import context

from opene2b.store import schema

context.configure(
    connection=context.config.attributes["connection"], target_metadata=schema.metadata
)
with context.begin_transaction():
    context.run_migrations()
