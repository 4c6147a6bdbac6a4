"""Bring a database to this version's schema, once, whoever comes first.

The usual case costs one SELECT; Alembic is imported only when there is something to do.
"""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from opene2b.core.errors import Internal, Unsupported

HEAD = "0001"
"""The newest revision in migrations/versions; a test compares."""
MIGRATIONS = Path(__file__).parent / "migrations"
WAIT_S = 10.0


def ensure(path: Path) -> None:
    """Blocking.

    Raises:
        Unsupported: made by a newer version.
        Internal: no database, or not to be read or written.
    """
    try:
        with locked(path):
            found = revision(path)
            if found == HEAD:
                return
            if found is not None and found not in known():
                raise Unsupported(
                    f"{path} was made by a newer version of OpenE2B (revision {found}): upgrade OpenE2B, or use"
                    " another OPENE2B_HOME"
                )
            upgrade(path)
    except (OSError, sqlite3.Error) as exc:
        raise Internal(f"the database {path} cannot be opened: {exc}") from exc


def known() -> set[str]:
    return {file.name.split("_", 1)[0] for file in (MIGRATIONS / "versions").glob("[0-9]*.py")}


def revision(path: Path) -> str | None:
    """None: an empty database."""
    with closing(sqlite3.connect(path, timeout=WAIT_S)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE name='alembic_version'")
        if tables.fetchone() is None:
            return None
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return None if row is None else str(row[0])


def upgrade(path: Path) -> None:
    from alembic import command
    from alembic.config import Config
    from sqlalchemy import create_engine, event
    from sqlalchemy.pool import NullPool

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    engine = create_engine(f"sqlite:///{path}", poolclass=NullPool)

    # The driver would commit before each CREATE TABLE; all of a migration is one transaction.
    @event.listens_for(engine, "connect")
    def by_hand(connection: sqlite3.Connection, record: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: object) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # type: ignore[attr-defined]

    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    engine.dispose()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
