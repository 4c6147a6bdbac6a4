"""Files on their way: whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from opene2b.core.errors import InvalidArgument, OutOfSpace, PermissionDenied
from opene2b.envd.filesystem import metadata
from opene2b.envd.filesystem.incoming import IncomingFile
from opene2b.envd.filesystem.owners import Owner

OWNER = Owner(uid=os.getuid(), gid=os.getgid())


def incoming(path: Path) -> IncomingFile:
    return IncomingFile(str(path), owner=OWNER, metadata={})


async def write(path: Path, content: bytes) -> None:
    with incoming(path) as file:
        file.write(content)
        file.seal()
        await file.commit()


async def test_a_new_file_has_the_usual_mode_and_its_parents(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        await write(tmp_path / "a/b/f", b"content")
    finally:
        os.umask(before)

    assert (tmp_path / "a/b/f").read_bytes() == b"content"
    assert (tmp_path / "a/b/f").stat().st_mode & 0o7777 == 0o644
    assert (tmp_path / "a/b").stat().st_mode & 0o7777 == 0o755
    assert os.listdir(tmp_path / "a/b") == ["f"]


async def test_an_existing_file_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"a longer text")
    (tmp_path / "f").chmod(0o751)
    await write(tmp_path / "f", b"new")

    assert (tmp_path / "f").read_bytes() == b"new"
    assert (tmp_path / "f").stat().st_mode & 0o7777 == 0o751


async def test_a_file_that_is_not_committed_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    with incoming(tmp_path / "f") as file:
        file.write(b"half of the n")

    assert os.listdir(tmp_path) == ["f"]
    assert (tmp_path / "f").read_bytes() == b"old"


async def test_writing_through_a_symlink_keeps_the_link(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "link").symlink_to("d/f")
    await write(tmp_path / "link", b"content")

    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "d/f").read_bytes() == b"content"


async def test_hard_links_stay_the_same_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"a longer text")
    os.link(tmp_path / "f", tmp_path / "g")
    await write(tmp_path / "f", b"new")

    assert (tmp_path / "g").read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path)) == ["f", "g"]


async def test_a_file_that_is_a_mount_is_written_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(source: str, target: str, **fds: int) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    (tmp_path / "f").write_bytes(b"a longer text")
    inode = (tmp_path / "f").stat().st_ino
    monkeypatch.setattr(os, "rename", busy)
    await write(tmp_path / "f", b"new")

    assert (tmp_path / "f").read_bytes() == b"new"
    assert (tmp_path / "f").stat().st_ino == inode
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
async def test_files_belong_to_who_wrote_them_and_new_parents_as_well(
    tmp_path: Path,
) -> None:
    user = Owner(uid=1234, gid=2345)
    (tmp_path / "old").touch()
    for name in ("a/f", "old"):
        with IncomingFile(str(tmp_path / name), owner=user, metadata={}) as file:
            file.seal()
            await file.commit()
    owners = [(tmp_path / name).stat() for name in ("a", "a/f", "old")]

    assert [(owner.st_uid, owner.st_gid) for owner in owners] == [
        (1234, 2345),
        (1234, 2345),
        (1234, 2345),
    ]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user first")
async def test_without_root_files_cannot_be_given_away(tmp_path: Path) -> None:
    other = Owner(uid=1234, gid=2345)
    with IncomingFile(str(tmp_path / "f"), owner=other, metadata={}) as file:
        os.seteuid(65534)
        try:
            with pytest.raises(PermissionDenied):
                file.seal()
        finally:
            os.seteuid(0)

    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["dir", "fifo", "file/below"])
def test_what_cannot_be_a_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")

    with pytest.raises(InvalidArgument):
        incoming(tmp_path / name)

    assert sorted(os.listdir(tmp_path)) == ["dir", "fifo", "file"]


def test_a_full_disk_is_out_of_space_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with incoming(tmp_path / "f") as file, monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OutOfSpace):
            file.write(b"x")

    assert os.listdir(tmp_path) == []


def test_two_names_of_one_target_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("f")
    with incoming(tmp_path / "f") as one, incoming(tmp_path / "link") as other:
        assert one.identity == other.identity


def test_metadata_headers_become_lower_case_keys() -> None:
    headers = {"X-Metadata-Author": "me", "Other": "x", "x-metadata-a.b_c": ""}

    assert metadata.from_headers(headers) == {"author": "me", "a.b_c": ""}


@pytest.mark.parametrize(
    "headers",
    [
        {"x-metadata-": "v"},
        {"x-metadata-a b": "v"},
        {"x-metadata-k": "ü"},
        {"x-metadata-k": "a\tb"},
        {"x-metadata-" + "k" * 300: "v"},
        {"x-metadata-k": "v" * 5000},
    ],
)
def test_unusable_metadata_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument):
        metadata.from_headers(headers)
