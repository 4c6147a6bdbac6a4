import os

import pytest

from opene2b.cli import layout
from opene2b.core.errors import WrongState
from opene2b.core.paths import Home


def test_a_home_has_one_server(tmp_path):
    home = Home(tmp_path)
    with layout.held(home), pytest.raises(WrongState, match=rf"process {os.getpid()}"):
        with layout.held(home):
            pass

    assert not layout.is_held(home)


def test_a_home_is_free_again_after_its_server(tmp_path):
    home = Home(tmp_path)
    with layout.held(home):
        assert layout.is_held(home)
    with layout.held(home):
        assert layout.is_held(home)


def test_a_home_that_was_never_used_is_free(tmp_path):
    assert not layout.is_held(Home(tmp_path / "nowhere"))


def test_sandboxes_on_record_are_counted(tmp_path):
    home = Home(tmp_path)
    before = layout.sandbox_count(home)
    (home.node / "sandboxes/iabc").mkdir(parents=True)

    assert (before, layout.sandbox_count(home)) == (0, 1)


def test_a_link_in_place_of_a_directory_is_not_followed(tmp_path):
    (tmp_path / "victim").mkdir()
    (tmp_path / "control").symlink_to(tmp_path / "victim")

    with pytest.raises(NotADirectoryError):
        layout.directory(tmp_path / "control", 0o700)
