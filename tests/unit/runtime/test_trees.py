import os

import pytest

from opene2b.runtime import trees

DEEP = 3000
"""Beyond the length of a path, the depth of recursion and the number of descriptors, all at once."""


def test_a_tree_is_removed(tmp_path):
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "file").write_text("x")
    (tree / "top").write_text("x")
    trees.remove(tree)

    assert list(tmp_path.iterdir()) == []


def test_emptying_keeps_the_directory_itself(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    trees.empty(tmp_path)

    assert tmp_path.is_dir()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_any_depth_is_removed(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    fd = os.open(tree, os.O_RDONLY)
    for _ in range(DEEP):
        os.mkdir("deeper-and-deeper", dir_fd=fd)
        below = os.open("deeper-and-deeper", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    trees.remove(tree)

    assert list(tmp_path.iterdir()) == []


def test_links_are_removed_and_never_followed(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    tree = tmp_path / "tree"
    (tree / "inner").mkdir(parents=True)
    (tree / "to-directory").symlink_to(kept)
    (tree / "inner" / "to-directory").symlink_to(kept)
    (tree / "inner" / "dangling").symlink_to("/nowhere")
    trees.remove(tree)

    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (kept / "file").read_text() == "x"


def test_a_link_in_the_place_of_the_tree_is_refused(tmp_path):
    kept = tmp_path / "kept"
    (kept / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(kept)
    with pytest.raises(OSError, match="Not a directory"):
        trees.empty(tmp_path / "link")

    assert (kept / "inner").is_dir()


@pytest.mark.parametrize("mode", [0o000, 0o100, 0o200, 0o400, 0o555])
def test_modes_that_shut_out_the_owner_do_not_help(tmp_path, mode):
    outer = tmp_path / "tree" / "outer"
    (outer / "inner").mkdir(parents=True)
    (outer / "inner" / "file").write_text("x")
    (outer / "inner").chmod(mode)
    outer.chmod(mode)
    trees.remove(tmp_path / "tree")

    assert list(tmp_path.iterdir()) == []


def test_names_that_we_use_ourselves_are_no_obstacle(tmp_path):
    tree = tmp_path / "tree"
    for name in ("0", "1", "2", "a"):
        (tree / "x" / name / "0").mkdir(parents=True)
        (tree / name / "0" / "1").mkdir(parents=True)
    (tree / "x" / "3").write_text("x")
    (tree / "3").write_text("x")
    trees.remove(tree)

    assert list(tmp_path.iterdir()) == []


def test_special_files_and_odd_names_are_removed(tmp_path):
    tree = tmp_path / "tree"
    (tree / "inner").mkdir(parents=True)
    os.mkfifo(tree / "inner" / "fifo")
    odd = os.open(os.fsencode(tree) + b"/\xff\n", os.O_CREAT | os.O_WRONLY)
    os.close(odd)
    trees.remove(tree)

    assert list(tmp_path.iterdir()) == []


def test_removing_what_is_not_there_does_nothing(tmp_path):
    trees.remove(tmp_path / "nothing")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_many_entries_are_removed(tmp_path):
    tree = tmp_path / "tree"
    for number in range(40):
        (tree / f"d{number}").mkdir(parents=True)
        for file in range(100):
            (tree / f"d{number}" / f"f{file}").touch()
    before = len(os.listdir("/proc/self/fd"))
    trees.remove(tree)

    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before
