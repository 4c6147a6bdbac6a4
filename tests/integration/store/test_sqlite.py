import asyncio
import itertools
import os
import signal
import sqlite3
import subprocess
import sys
import traceback

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, event

from opene2b.core.errors import AlreadyExists, Internal, LimitExceeded, OutOfSpace, Unsupported
from opene2b.core.states import SandboxState
from opene2b.store import migrate, schema
from opene2b.store.sqlite import SqliteStore
from opene2b.testing import store_suite
from opene2b.testing.store_suite import BEHAVIOURS, new_sandbox, new_team


@pytest.fixture
async def store(tmp_path):
    store = SqliteStore(tmp_path / "test.db")
    await store.open()
    yield store
    await store.close()


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda behaviour: behaviour.__name__)
async def test_the_sqlite_store(behaviour, store):
    await behaviour(store)


async def test_migrations_make_the_schema_that_queries_are_written_against(store):
    engine = create_engine(f"sqlite:///{store.path}")
    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), schema.metadata)
    engine.dispose()

    assert differences == []


def test_the_head_that_is_compared_at_start_is_the_newest_migration():
    heads = ScriptDirectory(str(migrate.MIGRATIONS)).get_heads()

    assert heads == [migrate.HEAD]
    assert migrate.HEAD in migrate.known()


async def test_a_newer_schema_is_refused_and_left_alone(store):
    await store.close()
    with sqlite3.connect(store.path) as connection:
        connection.execute("UPDATE alembic_version SET version_num='9999'")
    connection.close()
    again = SqliteStore(store.path)

    with pytest.raises(Unsupported, match="newer version"):
        await again.open()


async def test_what_is_no_database_is_named(tmp_path):
    path = tmp_path / "test.db"
    path.write_bytes(b"this is no database, and long enough to be seen as none" * 100)

    with pytest.raises(Internal, match=r"test\.db"):
        await SqliteStore(path).open()
    assert path.read_bytes().startswith(b"this is no database")


async def test_a_directory_that_is_not_there_is_named(tmp_path):
    with pytest.raises(Internal, match="missing"):
        await SqliteStore(tmp_path / "missing/test.db").open()


async def test_another_programs_database_is_named_and_left_alone(tmp_path):
    path = tmp_path / "test.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE teams (id)")
    connection.close()
    before = path.read_bytes()

    with pytest.raises(Internal, match=r"test\.db is another program's"):
        await SqliteStore(path).open()
    assert path.read_bytes() == before


OPENER = """
import asyncio, sys
from pathlib import Path
from opene2b.core.errors import Internal
from opene2b.store.sqlite import SqliteStore

try:
    asyncio.run(SqliteStore(Path(sys.argv[1])).open())
except Internal as exc:
    print(exc.message)
"""


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["the directory", "the file", "the lock"])
async def test_what_may_not_be_written_is_named(closed, tmp_path, store):
    await store.close()
    lock = tmp_path / "test.db.lock"
    place = {"the directory": tmp_path, "the file": store.path, "the lock": lock}[closed]
    place.chmod(0o500 if place.is_dir() else 0o400)
    # Root may write everything, unless it has no capabilities.
    plain = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    told = await asyncio.to_thread(
        subprocess.run,
        [*plain, sys.executable, "-c", OPENER, store.path],
        check=True,
        capture_output=True,
        text=True,
    )
    place.chmod(0o700)

    assert f"{store.path} cannot be opened" in told.stdout
    assert f"may not write {place}" in told.stdout


@pytest.mark.parametrize("name", ["a?b.db", "a%41.db", "a b#c.db"])
async def test_any_character_may_be_in_the_path(name, tmp_path):
    store = SqliteStore(tmp_path / name)
    await store.open()
    await store.ensure_team(new_team())
    names = {path.name for path in tmp_path.iterdir()}
    await store.close()

    assert names == {name, *(f"{name}{end}" for end in (".lock", "-shm", "-wal"))}


async def test_an_error_shows_no_token(store):
    with sqlite3.connect(store.path) as connection:
        connection.execute("DROP TABLE sandboxes")
    connection.close()
    sandbox = new_sandbox(new_team(), envd_access_token="a-secret-token")
    with pytest.raises(Internal) as caught:
        await store.add_sandbox(sandbox)

    assert "a-secret-token" not in "".join(traceback.format_exception(caught.value))


async def test_a_full_disk_is_told_and_the_store_goes_on(tmp_path):
    store = SqliteStore(tmp_path / "test.db")
    await store.open()
    event.listen(store.writer.engine, "connect", limit_pages)
    team = new_team()
    kept = []
    with pytest.raises(OutOfSpace):
        await fill(store, team, kept)
    await store.delete_sandbox(kept.pop())
    again = new_sandbox(team)
    await store.add_sandbox(again)
    rows = await store.all_sandboxes()
    await store.close()

    assert {row.id for row in rows} == {*kept, again.id}


async def fill(store, team, kept):
    for n in itertools.count():
        sandbox = new_sandbox(team, options={"filler": "x" * 5000, "n": n})
        await store.add_sandbox(sandbox)
        kept.append(sandbox.id)


def limit_pages(connection, record):
    connection.execute("PRAGMA max_page_count=60")


async def test_two_stores_on_one_file_see_each_others_changes(store):
    other = SqliteStore(store.path)
    await other.open()
    team = new_team()
    sandboxes = [new_sandbox(team) for _ in range(20)]
    for sandbox in sandboxes:
        await store.add_sandbox(sandbox)
    wins = await asyncio.gather(
        *(
            one.update_sandbox(sandbox.id, expected=store_suite.RUNNING, state=SandboxState.KILLING)
            for sandbox in sandboxes
            for one in (store, other)
        )
    )
    seen = [await one.all_sandboxes() for one in (store, other)]
    await other.close()

    assert sum(row is not None for row in wins) == len(sandboxes)
    assert all({row.state for row in rows} == {SandboxState.KILLING} for rows in seen)


async def test_a_limit_holds_between_two_stores_on_one_file(store):
    other = SqliteStore(store.path)
    await other.open()
    team = new_team()
    results = await asyncio.gather(
        *(
            one.add_sandbox(new_sandbox(team), team_limit=100)
            for _ in range(100)
            for one in (store, other)
        ),
        return_exceptions=True,
    )
    await other.close()

    assert results.count(None) == 100
    assert sum(isinstance(result, LimitExceeded) for result in results) == 100


async def test_many_open_a_new_file_at_once(tmp_path):
    stores = [SqliteStore(tmp_path / "test.db") for _ in range(5)]
    await asyncio.gather(*(store.open() for store in stores))
    team = new_team()
    made = await asyncio.gather(*(store.ensure_team(team) for store in stores))
    for store in stores:
        await store.close()

    assert {row.id for row in made} == {team.id}


async def test_a_cancelled_write_leaves_no_transaction_open(store):
    team = new_team()
    for _ in range(20):
        task = asyncio.create_task(store.add_sandbox(new_sandbox(team)))
        await asyncio.sleep(0.0005)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    async with asyncio.timeout(5):
        sandbox = new_sandbox(team)
        await store.add_sandbox(sandbox)

    assert await store.sandbox(sandbox.id) == sandbox


async def test_a_failed_transaction_leaves_nothing(store):
    first = store_suite.new_template(None, "taken")
    await store.put_template(first)
    second = store_suite.new_template(None, "free", "taken")
    with pytest.raises(AlreadyExists):
        await store.put_template(second)

    assert await store.template(second.id) is None


WRITER = """
import asyncio, sys
from pathlib import Path
from opene2b.store.sqlite import SqliteStore
from opene2b.testing.store_suite import new_sandbox, new_team

async def main():
    store = SqliteStore(Path(sys.argv[1]))
    await store.open()
    team = new_team()
    while True:
        sandbox = new_sandbox(team)
        await store.add_sandbox(sandbox)
        print(sandbox.id, flush=True)

asyncio.run(main())
"""


@pytest.mark.slow
def test_what_was_committed_survives_the_death_of_the_writer(tmp_path):
    path = tmp_path / "test.db"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True
    )
    told = []
    assert writer.stdout is not None
    while len(told) < 50:
        told.append(writer.stdout.readline().strip())
    os.kill(writer.pid, signal.SIGKILL)
    told += [line.strip() for line in writer.stdout if line.endswith("\n")]
    writer.stdout.close()
    writer.wait()
    kept = asyncio.run(ids_in(path))

    assert set(told) <= kept
    assert len(kept) - len(told) <= 1


async def ids_in(path):
    store = SqliteStore(path)
    await store.open()
    kept = {row.id for row in await store.all_sandboxes()}
    await store.close()
    return kept
