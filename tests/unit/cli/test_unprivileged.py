import os
import stat

import pytest

from opene2b.cli import unprivileged
from opene2b.cli.unprivileged import Identity
from opene2b.core.errors import Unsupported

STRANGER = Identity(64999, 64999)


@pytest.mark.parametrize(
    ("mode", "entered"), [(0o755, True), (0o711, True), (0o700, False), (0o750, False)]
)
def test_a_stranger_enters_what_is_open_to_others(tmp_path, mode, entered):
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(mode)

    assert STRANGER.may_enter(place.stat()) is entered


def test_an_owner_is_judged_by_the_bits_of_the_owner(tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(0o077)

    assert not Identity(os.getuid(), 64999).may_enter(place.stat())


class Kept(Identity):
    """Kept out of directories of one mode, whatever the way to the test's own directory looks like."""

    def may_enter(self, info):
        return stat.S_IMODE(info.st_mode) != 0o770


def test_the_topmost_closed_directory_is_the_obstacle(tmp_path):
    tree = tmp_path / "closed/open/closed-too/tree"
    tree.mkdir(parents=True)
    (tmp_path / "closed").chmod(0o770)
    (tmp_path / "closed/open/closed-too").chmod(0o770)

    assert unprivileged.obstacle(tree, Kept(1, 1)) == tmp_path / "closed"


def test_a_tree_that_can_be_reached_has_no_obstacle(tmp_path):
    (tmp_path / "open/tree").mkdir(parents=True)

    assert unprivileged.obstacle(tmp_path / "open/tree", Kept(1, 1)) is None


def test_following_a_path_finds_every_link_on_the_way(tmp_path):
    real = tmp_path / "versions/3.11.7/bin"
    real.mkdir(parents=True)
    (real / "python3.11").touch()
    (real / "python").symlink_to("python3.11")
    (tmp_path / "versions/current").symlink_to("3.11.7")
    (tmp_path / "python").symlink_to(tmp_path / "versions/current/bin/python")

    way = unprivileged.follow(tmp_path / "python")

    assert way.real == real / "python3.11"
    assert way.links == {
        tmp_path / "python": str(tmp_path / "versions/current/bin/python"),
        tmp_path / "versions/current": "3.11.7",
        real / "python": "python3.11",
    }


def test_a_relative_link_through_a_parent_is_followed(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a/link").symlink_to("../b/./file")

    assert unprivileged.follow(tmp_path / "a/link").real == tmp_path / "b/file"


def test_links_in_a_circle_are_refused(tmp_path):
    for number in range(50):
        (tmp_path / f"{number}").symlink_to(f"{(number + 1) % 50}")

    with pytest.raises(Unsupported, match="too many symbolic links"):
        unprivileged.follow(tmp_path / "0")


def test_trees_within_trees_are_bound_once(tmp_path):
    paths = [tmp_path / "a/b", tmp_path / "a", tmp_path / "c", tmp_path / "a/b/c"]

    assert unprivileged.innermost_free(paths) == [tmp_path / "a", tmp_path / "c"]
