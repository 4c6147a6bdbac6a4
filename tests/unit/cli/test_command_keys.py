from datetime import UTC, datetime

import pytest

from opene2b.cli import config, keys
from opene2b.core import keys as key_texts
from opene2b.core.errors import AlreadyExists, InvalidArgument, Unsupported
from opene2b.core.ids import TeamId

TEAM = TeamId("7a1f6a52-0c0c-4b0e-9d53-000000000001")


class Rows:
    """The two calls of a store that making a key needs."""

    def __init__(self):
        self.rows = []

    async def add_key(self, key):
        if any(row.digest == key.digest for row in self.rows):
            raise AlreadyExists("it is there")
        self.rows.append(key)


async def test_a_new_key_is_stored_as_its_digest_only():
    store = Rows()

    key = await keys.create(store, TEAM, "laptop")

    assert [row.digest for row in store.rows] == [key_texts.digest(key)]
    assert key not in repr(store.rows)


async def test_registering_a_known_key_again_changes_nothing():
    store = Rows()
    await keys.register(store, TEAM, "e2b_" + "a" * 40, "first")
    await keys.register(store, TEAM, "e2b_" + "a" * 40, "again")

    assert [row.name for row in store.rows] == ["first"]


@pytest.mark.parametrize("name", ["", "x" * 101, "two\nlines"])
async def test_a_name_that_would_spoil_the_list_is_refused(name):
    with pytest.raises(InvalidArgument, match="name"):
        await keys.create(Rows(), TEAM, name)


def test_a_listed_key_shows_its_mask_and_state():
    key = keys.record("e2b_" + "ab12" * 10, TEAM, "laptop")

    assert keys.described(key).split()[1:2] == ["e2b_ab...ab12"]
    assert "last used never" in keys.described(key)
    assert key.created_at <= datetime.now(UTC)


def test_keys_of_a_store_in_memory_cannot_be_managed(tmp_path):
    settings = config.load({"OPENE2B_HOME": str(tmp_path), "USE_IN_MEMORY_STORE": "true"})

    with pytest.raises(Unsupported, match="USE_IN_MEMORY_STORE"):
        keys.run(settings, ["list"])
