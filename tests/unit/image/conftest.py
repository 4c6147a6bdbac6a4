"""Trees and layers for the tests of this folder."""

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from opene2b.image.layers import Unpacker
from opene2b.linux.rooted import Root

Entry = tuple[str, dict[str, Any]]


def entry(name: str, data: bytes | None = None, **fields: Any) -> Entry:
    """A member: with `data` a file, else by `type`; `fields` as in `tarfile.TarInfo`."""
    return name, {"data": data, **fields}


def tar(*entries: Entry) -> bytes:
    """A layer with exactly these members, allowed or not."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, fields in entries:
            info = tarfile.TarInfo(name)
            data = fields.pop("data")
            info.type = tarfile.REGTYPE if data is not None else tarfile.DIRTYPE
            info.mode = 0o644 if data is not None else 0o755
            info.uid, info.gid = os.getuid(), os.getgid()
            for key, value in fields.items():
                setattr(info, key, value)
            info.size = len(data or b"")
            archive.addfile(info, io.BytesIO(data or b""))
    return buffer.getvalue()


@pytest.fixture
def make_tar() -> Callable[..., bytes]:
    return tar


@pytest.fixture
def member() -> Callable[..., Entry]:
    return entry


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    path = tmp_path / "tree"
    path.mkdir()
    return path


@pytest.fixture
def root(tree: Path) -> Iterator[Root]:
    with Root(tree) as opened:
        yield opened


@pytest.fixture
def apply(root: Root) -> Callable[..., Unpacker]:
    """Applies layers, each given as a tuple of members, to the tree."""
    unpacker = Unpacker(root=root)

    def run(*layers: tuple[Entry, ...]) -> Unpacker:
        for layer in layers:
            unpacker.apply(io.BytesIO(tar(*layer)))
        return unpacker

    return run
