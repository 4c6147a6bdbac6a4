import pytest

from opene2b.envd.app import App
from opene2b.envd.config import Config
from opene2b.proxy import public


@pytest.mark.parametrize(
    "target",
    [
        "/health",
        "/health?x=1",
        "/health#top",
        "/envs#x",
        "/%66iles",
        "/%68ealth",
        "/metrics",
        "/envs",
        "/files",
        "/files?path=/init&username=user",
        "/files?path=%2Finit",
        "/process.Process/Start",
        "/filesystem.Filesystem/ListDir",
    ],
)
def test_what_clients_use_is_open(target):
    assert public.is_public(target)


@pytest.mark.parametrize(
    "target",
    [
        "/init",
        "/init?a",
        "/freeze",
        "/",
        "//init",
        "/./init",
        "/INIT",
        "/init/",
        "/files/../init",
        "/files/x",
        "/process.Other/Start",
        "/%69nit",
        "//health",
        "/./health",
        "/health/",
        "/Health",
        "/%2568ealth",
        "/process.Process/../init",
        "/process.Process/a/b",
        "/process.Process",
        "/other.Service/Start",
        "/health\0",
        "*",
        "",
        "http://49983-i.e2b.app/health",
    ],
)
def test_everything_else_is_not(target):
    assert not public.is_public(target)


def test_of_what_envd_serves_exactly_the_control_planes_part_is_closed():
    app = App(Config(), version="0")
    methods = {f"/{name}" for name in app.methods}
    closed = {path for path in app.paths | methods if not public.is_public(path)}

    assert closed == {"/init"}
