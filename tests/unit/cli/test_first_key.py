import re
import stat

import pytest

from opene2b.cli import config, first_key
from opene2b.core.errors import InvalidArgument


def settings(home, **env):
    return config.load({"OPENE2B_HOME": str(home), **env})


def test_a_generated_key_has_the_form_that_every_client_accepts(tmp_path):
    assert re.fullmatch(r"e2b_[0-9a-f]{40}", first_key.ensure(settings(tmp_path)))


def test_a_key_is_generated_once(tmp_path):
    assert first_key.ensure(settings(tmp_path)) == first_key.ensure(settings(tmp_path))


def test_only_the_owner_may_read_it(tmp_path):
    first_key.ensure(settings(tmp_path))

    assert stat.S_IMODE((tmp_path / "api-key").stat().st_mode) == 0o600


def test_a_key_that_was_set_is_taken_and_kept(tmp_path):
    first_key.ensure(settings(tmp_path))
    wanted = "e2b_" + "a" * 40

    assert first_key.ensure(settings(tmp_path, OPENE2B_API_KEY=wanted)) == wanted
    assert first_key.read(settings(tmp_path)) == wanted


def test_there_is_no_key_before_the_first_start(tmp_path):
    assert first_key.read(settings(tmp_path)) is None


def test_a_key_that_can_be_guessed_is_refused(tmp_path):
    with pytest.raises(InvalidArgument, match="OPENE2B_API_KEY"):
        first_key.ensure(settings(tmp_path, OPENE2B_API_KEY="secret"))
