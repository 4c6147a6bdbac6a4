"""Records in one SQLite file: write-ahead log, readers beside one writer.

`synchronous=NORMAL`: what is committed survives the death of every process; a power cut may cost the last commits,
never the consistency of the file. Each call runs whole in a thread, one for reading and one for writing: an
asynchronous driver would hop between threads for every statement, which took longer than the statements.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from opene2b.core.errors import Internal, OutOfSpace
from opene2b.store import migrate
from opene2b.store.sql import SqlStore

T = TypeVar("T")

BUSY_MS = 10_000
"""How long a write waits for another process's write."""


class Worker:
    """A thread with a connection of its own."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine = engine
        self.thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self.connection: Connection | None = None

    async def run(self, work: Callable[[Connection], T]) -> T:
        """A caller who is cancelled leaves the work going on: it is done, or undone, whole."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, self.call, work)

    def call(self, work: Callable[[Connection], T]) -> T:
        with translated():
            if self.connection is None:
                self.connection = self.engine.connect()
            return work(self.connection)

    def close(self) -> None:
        self.thread.submit(self.disconnect).result()
        self.thread.shutdown()

    def disconnect(self) -> None:
        if self.connection is not None:
            self.connection.close()


class SqliteStore(SqlStore):
    upsert = staticmethod(insert)

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reader: Worker | None = None
        self.writer: Worker | None = None

    async def open(self) -> None:
        """Raises Unsupported: the file is a newer version's. Internal: it cannot be read or written."""
        await asyncio.to_thread(migrate.ensure, self.path)
        engine = create_engine(
            # By its part, not as text: a `?` or `%` in a path is only a character.
            URL.create("sqlite", database=str(self.path)),
            isolation_level="AUTOCOMMIT",
            poolclass=NullPool,
            hide_parameters=True,  # tokens are among them, and errors end up in logs
        )
        event.listen(engine, "connect", prepare)
        self.reader = Worker(engine, "store-read")
        self.writer = Worker(engine, "store-write")

    async def close(self) -> None:
        for worker in (self.reader, self.writer):
            if worker is not None:
                await asyncio.to_thread(worker.close)
        self.reader = self.writer = None

    async def read(self, work: Callable[[Connection], T]) -> T:
        if self.reader is None:
            raise RuntimeError("the store is not open")
        return await self.reader.run(work)

    async def write(self, work: Callable[[Connection], T]) -> T:
        if self.writer is None:
            raise RuntimeError("the store is not open")
        return await self.writer.run(lambda connection: in_transaction(connection, work))


def in_transaction(connection: Connection, work: Callable[[Connection], T]) -> T:
    # IMMEDIATE: taking the lock at the first write instead could fail when another process wrote since the first read.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    try:
        result = work(connection)
        connection.exec_driver_sql("COMMIT")
    except BaseException:
        # On a full disk, among others, SQLite has rolled back by itself, and a ROLLBACK would be the error told.
        if connection.connection.driver_connection.in_transaction:  # type: ignore[union-attr]
            connection.exec_driver_sql("ROLLBACK")
        raise
    return result


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
    except DBAPIError as exc:
        code = getattr(exc.orig, "sqlite_errorcode", None)
        if code == sqlite3.SQLITE_FULL:
            raise OutOfSpace("the disk of the database is full", detail=str(exc.orig)) from exc
        raise Internal("the database cannot do its part", detail=str(exc.orig)) from exc
    except SQLAlchemyError as exc:
        raise Internal("the database cannot do its part", detail=str(exc)) from exc
