"""The messages of the Filesystem service."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from opene2b.core.errors import InvalidArgument
from opene2b.envd.filesystem.controller import Controller
from opene2b.envd.filesystem.owners import Owner, OwnerNames
from opene2b.envd.filesystem.rpc import HANDLERS


async def call(home: Path, method: str, message: dict[str, Any]) -> dict[str, Any]:
    owner = Owner(uid=os.getuid(), gid=os.getgid())
    controller = Controller(OwnerNames())
    answer = await HANDLERS[method](controller, lambda path: (str(home / path), owner), message)
    return json.loads(b"".join(answer)) if isinstance(answer, list) else answer


async def test_a_life_of_a_directory(tmp_path: Path) -> None:
    made = await call(tmp_path, "MakeDir", {"path": "a"})
    moved = await call(tmp_path, "Move", {"source": "a", "destination": "b"})
    listed = await call(tmp_path, "ListDir", {"path": "", "depth": "1", "unknown": 1})
    seen = await call(tmp_path, "Stat", {"path": "b"})
    removed = await call(tmp_path, "Remove", {"path": "b"})

    assert made["entry"]["name"] == "a"
    assert moved["entry"]["name"] == "b"
    assert listed == {"entries": [seen["entry"]]}
    assert removed == {}
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("Stat", {"path": 5}),
        ("ListDir", {"path": "", "depth": -1}),
        ("ListDir", {"path": "", "depth": 1 << 32}),
        ("Move", {"source": "a"}),
        ("Remove", {}),
    ],
)
async def test_messages_that_make_no_sense_are_refused(
    tmp_path: Path, method: str, message: dict[str, Any]
) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(InvalidArgument):
        await call(tmp_path, method, message)

    assert os.listdir(tmp_path) == ["a"]


async def test_null_is_the_default(tmp_path: Path) -> None:
    assert await call(tmp_path, "ListDir", {"path": None, "depth": None}) == {"entries": []}
