import pytest

from opene2b.proxy import public


@pytest.mark.parametrize(
    "target",
    [
        "/health",
        "/files?path=/init",
        "/metrics",
        "/envs#x",
        "/process.Process/Start",
        "/filesystem.Filesystem/ListDir",
        "/%66iles",
    ],
)
def test_what_clients_use_is_open(target):
    assert public.is_public(target)


@pytest.mark.parametrize(
    "target",
    [
        "/init",
        "/init?x",
        "/%69nit",
        "/%2569nit",
        "//init",
        "/./init",
        "/files/../init",
        "/INIT",
        "/init/",
        "/freeze",
        "/",
        "*",
        "/process.Process/../init",
        "/process.Process/a/b",
        "/process.Other/Start",
        "/files/x",
    ],
)
def test_everything_else_is_closed(target):
    assert not public.is_public(target)
