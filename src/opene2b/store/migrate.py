"""Bring a database to this version's schema, once, whoever comes first.

The usual case costs one SELECT; Alembic is imported only when there is something to do.
"""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from opene2b.core.errors import Internal, Unsupported

HEAD = "0001"
"""The newest revision in migrations/versions; a test compares."""
MIGRATIONS = Path(__file__).parent / "migrations"
WAIT_S = 10.0


def ensure(path: Path) -> None:
    """Blocking.

    Raises:
        Unsupported: made by a newer version.
        Internal: no database, another program's, or not to be read or written.
    """
    try:
        check_writable(path)
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
    except SQLAlchemyError as exc:
        raise Internal(f"the database {path} cannot be brought up to date: {exc}") from exc


def check_writable(path: Path) -> None:
    """Here, because SQLite reads what it may not write, and would only fail at the first request."""
    for place in (path.parent, path, *(Path(f"{path}{end}") for end in (".lock", "-wal", "-shm"))):
        if place.exists() and not os.access(place, os.W_OK):
            raise Internal(
                f"the database {path} cannot be opened: user {os.geteuid()} may not write {place}:"
                " give it to the user that OpenE2B's API runs as"
            )


def known() -> set[str]:
    return {file.name.split("_", 1)[0] for file in (MIGRATIONS / "versions").glob("[0-9]*.py")}


def revision(path: Path) -> str | None:
    """None: an empty database."""
    with closing(sqlite3.connect(path, timeout=WAIT_S)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        if not tables:
            return None
        row = None
        if "alembic_version" in tables:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        if row is None:
            # Ours has its revision from its first transaction on.
            raise Internal(
                f"the database {path} is another program's: move it away, or use another OPENE2B_HOME"
            )
        return str(row[0])


def upgrade(path: Path) -> None:
    from alembic import command
    from alembic.config import Config
    from sqlalchemy import URL, create_engine, event
    from sqlalchemy.pool import NullPool

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    # Here, under the lock: connections that change the mode at once would not wait for each other.
    with closing(sqlite3.connect(path, timeout=WAIT_S)) as made:
        made.execute("PRAGMA journal_mode=WAL")
    engine = create_engine(URL.create("sqlite", database=str(path)), poolclass=NullPool)

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
