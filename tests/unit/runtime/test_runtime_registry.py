import pytest

from opene2b.core.errors import InvalidArgument, Unsupported
from opene2b.core.paths import Home
from opene2b.runtime import registry
from opene2b.runtime.protocol import Isolation


class Broken:
    def load(self):
        raise ImportError("no module named 'missing'")


def test_a_runtime_is_found_by_its_name(tmp_path):
    runtime = registry.create("fake", home=Home(tmp_path), oci_binary=None)

    assert runtime.name == "fake"
    assert runtime.capabilities.isolation is Isolation.NONE


def test_every_runtime_of_ours_is_announced():
    assert {"fake", "oci"} <= set(registry.announced())


def test_an_unknown_name_is_refused_with_those_that_are_known(tmp_path):
    with pytest.raises(InvalidArgument, match=r"'nothing'.*fake, oci"):
        registry.create("nothing", home=Home(tmp_path), oci_binary=None)


def test_a_driver_that_cannot_be_imported_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "announced", lambda: {"broken": Broken()})
    with pytest.raises(Unsupported, match="no module named 'missing'"):
        registry.create("broken", home=Home(tmp_path), oci_binary=None)
