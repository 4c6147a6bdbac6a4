import pytest

from opene2b.proxy import host
from opene2b.proxy.host import BadTarget, Target

ID = "iabc"


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("8000-iabc.e2b.local", Target("iabc", 8000)),
        ("8000-iabc.e2b.local:49983", Target("iabc", 8000)),
        ("8000-iabc-client.e2b.local", Target("iabc", 8000)),
        ("8000-IABC.E2B.local", Target("iabc", 8000)),
        ("49983-iabc.localhost", Target("iabc", 49983)),
        ("1-iabc", Target("iabc", 1)),
    ],
)
def test_a_host_names_its_sandbox(name, target):
    assert host.find(name, None, None) == target


@pytest.mark.parametrize("name", ["8000-iabc.e2b.local", "8000-iabc.localhost"])
def test_headers_mean_nothing_on_a_sandboxes_own_host(name):
    assert host.find(name, "iother", "22") == Target("iabc", 8000)


@pytest.mark.parametrize(
    "name",
    [
        "localhost",
        "localhost:49983",
        "127.0.0.1:49983",
        "[::1]:49983",
        "sandbox.e2b.local",
        "my-server",
        "server.example",
        "10.0.0.1",
    ],
)
def test_headers_name_the_sandbox_on_every_other_host(name):
    assert host.find(name, "iabc-client", "8000") == Target("iabc", 8000)


@pytest.mark.parametrize(
    ("name", "sandbox_id", "port", "message"),
    [
        (None, ID, "1", "Invalid host"),
        ("", ID, "1", "Invalid host"),
        ("a b", ID, "1", "Invalid host"),
        ("a/b", ID, "1", "Invalid host"),
        ("a\x00", ID, "1", "Invalid host"),
        ("a:port", ID, "1", "Invalid host"),
        ("a" * 300, ID, "1", "Invalid host"),
        ("localhost", None, None, "Invalid host"),
        ("localhost", None, "1", "Invalid sandbox ID"),
        ("localhost", ID, None, "Invalid sandbox port"),
        ("localhost", "", "1", "Invalid sandbox ID"),
        ("localhost", "../x", "1", "Invalid sandbox ID"),
        ("localhost", "a" * 65, "1", "Invalid sandbox ID"),
        ("localhost", ID, "0", "Invalid sandbox port"),
        ("localhost", ID, "65536", "Invalid sandbox port"),
        ("localhost", ID, "-1", "Invalid sandbox port"),
        ("localhost", ID, "8e3", "Invalid sandbox port"),
        ("localhost", ID, "\u0661", "Invalid sandbox port"),
        ("localhost", ID, "1" * 5000, "Invalid sandbox port"),
        ("0-iabc.e2b.local", None, None, "Invalid sandbox port"),
        ("99999-iabc.e2b.local", None, None, "Invalid sandbox port"),
        ("80-.e2b.local", None, None, "Invalid sandbox ID"),
        ("80-i_c.e2b.local", None, None, "Invalid sandbox ID"),
    ],
)
def test_what_names_no_sandbox_is_refused(name, sandbox_id, port, message):
    with pytest.raises(BadTarget, match=message):
        host.find(name, sandbox_id, port)
