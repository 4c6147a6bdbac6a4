from collections.abc import AsyncIterator

import pytest
from control_plane import ControlPlane, make_home, running

from opene2b.store.memory import MemoryStore
from opene2b.store.sqlite import SqliteStore


@pytest.fixture(params=["memory", "sqlite"])
async def plane(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ControlPlane]:
    # Paths of unix sockets are short, so not below the test's own long name.
    home = make_home(tmp_path_factory.mktemp("c"))
    store = MemoryStore() if request.param == "memory" else SqliteStore(home.root / "test.db")
    async with running(home, store=store) as plane:
        yield plane
