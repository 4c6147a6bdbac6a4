"""The calls of the Filesystem service on a real file system."""

import asyncio
import errno
import os
from pathlib import Path

import pytest

from opene2b.core.errors import AlreadyExists, InvalidArgument, PathNotFound
from opene2b.envd.filesystem.controller import Controller
from opene2b.envd.filesystem.owners import Owner, OwnerNames

OWNER = Owner(uid=os.getuid(), gid=os.getgid())


@pytest.fixture
def controller() -> Controller:
    return Controller(OwnerNames())


async def paths_in(controller: Controller, top: Path, depth: int = 1) -> list[str]:
    entries = await controller.list_dir(str(top), depth=depth, each=dict)
    return [entry["path"].removeprefix(f"{top}/") for entry in entries]


async def test_a_missing_path_has_no_entry(controller: Controller, tmp_path: Path) -> None:
    with pytest.raises(PathNotFound):
        await controller.stat(str(tmp_path / "none"))


async def test_below_a_file_there_is_nothing(controller: Controller, tmp_path: Path) -> None:
    (tmp_path / "f").touch()

    with pytest.raises(PathNotFound):
        await controller.stat(str(tmp_path / "f" / "below"))


@pytest.mark.parametrize("path", ["/a\0b", "/\ud800"])
async def test_impossible_paths_are_refused(controller: Controller, path: str) -> None:
    with pytest.raises(InvalidArgument):
        await controller.stat(path)


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (0, ["a", "b", "c"]),
        (1, ["a", "b", "c"]),
        (2, ["a", "b", "b/x", "b/y", "c"]),
        (3, ["a", "b", "b/x", "b/y", "b/y/z", "c"]),
    ],
)
async def test_listing_goes_as_deep_as_asked_in_order(
    controller: Controller, tmp_path: Path, depth: int, expected: list[str]
) -> None:
    (tmp_path / "b" / "y").mkdir(parents=True)
    for name in ("c", "a", "b/x", "b/y/z"):
        (tmp_path / name).touch()

    assert await paths_in(controller, tmp_path, depth) == expected


async def test_symlinks_are_listed_and_not_descended_into(
    controller: Controller, tmp_path: Path
) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").touch()
    (tmp_path / "link").symlink_to("d")

    assert await paths_in(controller, tmp_path, 5) == ["d", "d/f", "link"]


async def test_a_symlink_to_a_directory_can_be_listed(
    controller: Controller, tmp_path: Path
) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").touch()
    (tmp_path / "link").symlink_to("d")

    assert await paths_in(controller, tmp_path / "link") == ["f"]


async def test_listing_a_file_is_an_invalid_argument(
    controller: Controller, tmp_path: Path
) -> None:
    (tmp_path / "f").touch()

    with pytest.raises(InvalidArgument):
        await controller.list_dir(str(tmp_path / "f"), depth=1, each=dict)


async def test_listing_what_is_missing_is_not_found(controller: Controller, tmp_path: Path) -> None:
    with pytest.raises(PathNotFound):
        await controller.list_dir(str(tmp_path / "none"), depth=1, each=dict)


@pytest.mark.slow
async def test_a_large_listing_lets_others_work(controller: Controller, tmp_path: Path) -> None:
    for number in range(20_000):
        (tmp_path / f"{number:05}").touch()
    listing = asyncio.create_task(controller.list_dir(str(tmp_path), depth=1, each=dict))
    turns = 0
    while not listing.done():
        await asyncio.sleep(0)
        turns += 1

    names = [entry["name"] for entry in listing.result()]
    assert names == [f"{number:05}" for number in range(20_000)]
    assert turns > 10


async def test_make_dir_makes_parents(controller: Controller, tmp_path: Path) -> None:
    entry = await controller.make_dir(str(tmp_path / "a" / "b"), owner=OWNER)

    assert entry["path"] == str(tmp_path / "a" / "b")
    assert entry["permissions"] == "drwxr-xr-x"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o755


async def test_make_dir_does_not_depend_on_the_umask(
    controller: Controller, tmp_path: Path
) -> None:
    before = os.umask(0o077)
    try:
        entry = await controller.make_dir(str(tmp_path / "a"), owner=OWNER)
    finally:
        os.umask(before)

    assert entry["mode"] == 0o755


async def test_make_dir_of_a_directory_already_exists(
    controller: Controller, tmp_path: Path
) -> None:
    with pytest.raises(AlreadyExists):
        await controller.make_dir(str(tmp_path), owner=OWNER)


@pytest.mark.parametrize("name", ["file", "file/below", "dangling"])
async def test_make_dir_where_something_else_is_is_an_invalid_argument(
    controller: Controller, tmp_path: Path, name: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")

    with pytest.raises(InvalidArgument):
        await controller.make_dir(str(tmp_path / name), owner=OWNER)


async def test_move_makes_the_parents_of_its_destination(
    controller: Controller, tmp_path: Path
) -> None:
    (tmp_path / "f").write_text("content")
    entry = await controller.move(str(tmp_path / "f"), str(tmp_path / "a/b/g"), owner=OWNER)

    assert entry["name"] == "g"
    assert (tmp_path / "a/b/g").read_text() == "content"
    assert not (tmp_path / "f").exists()


async def test_move_of_what_is_missing_makes_nothing(
    controller: Controller, tmp_path: Path
) -> None:
    with pytest.raises(PathNotFound):
        await controller.move(str(tmp_path / "f"), str(tmp_path / "a/g"), owner=OWNER)

    assert os.listdir(tmp_path) == []


async def test_move_of_a_symlink_moves_the_link(controller: Controller, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    await controller.move(str(tmp_path / "link"), str(tmp_path / "other"), owner=OWNER)

    assert os.readlink(tmp_path / "other") == "nowhere"


async def test_what_cannot_be_renamed_is_copied_with_its_modes_and_links(
    controller: Controller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tree/d").mkdir(parents=True)
    (tmp_path / "tree/d").chmod(0o710)
    (tmp_path / "tree/d/f").write_text("content")
    (tmp_path / "tree/d/f").chmod(0o751)
    (tmp_path / "tree/link").symlink_to("/nowhere")
    rename = os.rename

    def rename_within_directories_only(source: str, target: str, **fds: int) -> None:
        if "src_dir_fd" not in fds:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target, **fds)

    monkeypatch.setattr(os, "rename", rename_within_directories_only)
    await controller.move(str(tmp_path / "tree"), str(tmp_path / "new/tree"), owner=OWNER)

    assert (tmp_path / "new/tree/d/f").read_text() == "content"
    assert (tmp_path / "new/tree/d/f").stat().st_mode & 0o7777 == 0o751
    assert (tmp_path / "new/tree/d").stat().st_mode & 0o7777 == 0o710
    assert os.readlink(tmp_path / "new/tree/link") == "/nowhere"
    assert os.listdir(tmp_path) == ["new"]
    assert os.listdir(tmp_path / "new") == ["tree"]


async def test_removing_what_is_missing_is_success(controller: Controller, tmp_path: Path) -> None:
    await controller.remove(str(tmp_path / "none"))
    await controller.remove(str(tmp_path / "none" / "below"))

    assert os.listdir(tmp_path) == []


async def test_remove_takes_a_tree_and_nothing_its_links_lead_to(
    controller: Controller, tmp_path: Path
) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "f").touch()
    (tmp_path / "tree" / "d").mkdir(parents=True)
    (tmp_path / "tree" / "d" / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "tree" / "f").touch()
    await controller.remove(str(tmp_path / "tree"))

    assert not (tmp_path / "tree").exists()
    assert (tmp_path / "kept" / "f").exists()


async def test_remove_of_a_symlink_removes_the_link(controller: Controller, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "link").symlink_to("d")
    await controller.remove(str(tmp_path / "link"))

    assert os.listdir(tmp_path) == ["d"]


async def test_remove_reaches_any_depth_with_few_descriptors(
    controller: Controller, tmp_path: Path
) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    await controller.remove(str(tmp_path / "d"))

    assert os.listdir(tmp_path) == []


async def test_the_root_is_not_removed(controller: Controller) -> None:
    with pytest.raises(InvalidArgument):
        await controller.remove("/")
