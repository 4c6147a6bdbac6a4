"""`opene2b keys create|list|revoke`: API keys, straight in the store.

The database belongs to the control plane's user, so as root these commands run as that user: files that root
made beside the database (its write-ahead log) would lock the control plane out.
"""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from opene2b.cli import launcher, layout
from opene2b.cli.config import Config
from opene2b.core import keys
from opene2b.core.errors import AlreadyExists, InvalidArgument, Unsupported
from opene2b.core.ids import KeyId, TeamId, new_uuid
from opene2b.core.records import ApiKey, Team
from opene2b.store.protocol import Store

LONGEST_NAME = 100


def run(config: Config, arguments: Sequence[str]) -> int:
    """Exit code of the command."""
    if config.in_memory_store:
        raise Unsupported(
            "with USE_IN_MEMORY_STORE=true there is only the first key, OPENE2B_API_KEY"
        )
    if os.geteuid() == 0:
        layout.make(config.home)
        command = launcher.command(
            launcher.opene2b("keys", *arguments),
            identity="control-plane",
            writable=[config.home.run, config.home.database.parent],
        )
        return subprocess.run(command, check=False).returncode
    if not os.access(config.home.database.parent, os.W_OK):
        raise Unsupported("opene2b keys needs root: run it with sudo")
    asyncio.run(perform(config, arguments))
    return 0


async def perform(config: Config, arguments: Sequence[str]) -> None:
    async with opened(config) as store:
        team = await default_team(store)
        match arguments:
            case ["create", name]:
                print(await create(store, team.id, name))
            case ["list"]:
                for key in await store.keys(team.id):
                    print(described(key))
            case ["revoke", key_id]:
                revoked = await store.revoke_key(KeyId(key_id), at=datetime.now(UTC))
                print(f"revoked {revoked.masked}")
            case _:
                raise InvalidArgument(f"unknown: keys {' '.join(arguments)}")


@asynccontextmanager
async def opened(config: Config) -> AsyncIterator[Store]:
    from opene2b.store.sqlite import SqliteStore

    store = SqliteStore(config.home.database)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def default_team(store: Store) -> Team:
    """The one team of an installation without accounts."""
    return await store.ensure_team(
        Team(id=TeamId(new_uuid()), name="default", slug="default", created_at=datetime.now(UTC))
    )


async def create(store: Store, team_id: TeamId, name: str) -> str:
    """Make a key; returns it in clear, which nothing can do again."""
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise InvalidArgument(f"a key's name has 1 to {LONGEST_NAME} printable characters")
    key = keys.generate_key()
    await store.add_key(record(key, team_id, name))
    return key


async def register(store: Store, team_id: TeamId, key: str, name: str) -> None:
    """Let a key that was made elsewhere in. A key that is known already stays as it is, revoked ones too."""
    try:
        await store.add_key(record(key, team_id, name))
    except AlreadyExists:
        return


def record(key: str, team_id: TeamId, name: str) -> ApiKey:
    return ApiKey(
        id=KeyId(new_uuid()),
        team_id=team_id,
        name=name,
        digest=keys.digest(key),
        masked=keys.mask(key),
        created_at=datetime.now(UTC),
    )


def described(key: ApiKey) -> str:
    used = f"{key.last_used_at:%Y-%m-%d %H:%M}" if key.last_used_at else "never"
    state = f"revoked {key.revoked_at:%Y-%m-%d %H:%M}" if key.revoked_at else f"last used {used}"
    return f"{key.id}  {key.masked}  {key.created_at:%Y-%m-%d %H:%M}  {state}  {key.name}"
