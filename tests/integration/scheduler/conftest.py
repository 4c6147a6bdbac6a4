from collections.abc import AsyncIterator

import pytest
from control_plane import ControlPlane, make_home, running


@pytest.fixture
async def plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    # Paths of unix sockets are short, so not below the test's own long name.
    async with running(make_home(tmp_path_factory.mktemp("c"))) as plane:
        yield plane
