"""What the published Python SDK makes of our entries."""

import os
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from e2b.envd.filesystem import filesystem_pb
from e2b.sandbox.filesystem.filesystem import EntryInfo, FileType, map_entry_info

from opene2b.envd.filesystem.entries import describe
from opene2b.envd.filesystem.owners import OwnerNames


def seen_by_sdk(path: Path) -> EntryInfo:
    text = msgspec.json.encode(describe(str(path), OwnerNames())).decode()
    return map_entry_info(filesystem_pb.EntryInfo.from_json(text))


def test_the_sdk_reads_a_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"12345")
    path.chmod(0o640)
    os.utime(path, (1_700_000_000, 1_700_000_000))
    info = seen_by_sdk(path)

    assert (info.name, info.path, info.type) == ("f", str(path), FileType.FILE)
    assert (info.size, info.mode, info.permissions) == (5, 0o640, "-rw-r-----")
    assert info.modified_time.replace(tzinfo=UTC) == datetime.fromtimestamp(1_700_000_000, UTC)
    assert info.symlink_target is None


def test_the_sdk_reads_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "target").mkdir()
    info = seen_by_sdk(tmp_path / "link")

    assert info.type is FileType.SYMLINK
    assert info.symlink_target == str(tmp_path / "target")
