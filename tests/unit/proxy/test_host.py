import pytest

from opene2b.proxy import host
from opene2b.proxy.host import BadTarget, Target

BY_NAME = [
    ("8000-iabc.e2b.app", Target("iabc", 8000)),
    ("8000-iabc.e2b.app:443", Target("iabc", 8000)),
    ("8000-iabc", Target("iabc", 8000)),
    ("8000-iabc.localhost", Target("iabc", 8000)),
    ("8000-iabc.localhost:49983", Target("iabc", 8000)),
    ("8000-iabc-6532622b.e2b.app", Target("iabc", 8000)),
    ("8000-iabc-65-32.e2b.app", Target("iabc", 8000)),
    ("8000-IABC.E2B.App", Target("iabc", 8000)),
    ("8000-iabc.e2b.app.", Target("iabc", 8000)),
    ("1-a.b", Target("a", 1)),
    ("65535-a.b", Target("a", 65535)),
]


@pytest.mark.parametrize(("name", "target"), BY_NAME)
def test_the_first_label_names_port_and_sandbox(name, target):
    assert host.find(name, None, None) == target


@pytest.mark.parametrize(("name", "target"), BY_NAME)
def test_a_host_that_names_a_sandbox_is_not_overruled_by_headers(name, target):
    assert host.find(name, "iother", "9000") == target


@pytest.mark.parametrize(
    "name",
    [
        "localhost",
        "localhost:49983",
        "127.0.0.1",
        "127.0.0.1:49983",
        "10.0.0.7",
        "[::1]",
        "[::1]:49983",
        "[fe80::1]:80",
        "sandbox.e2b.app",
        "sandbox.my.host:8443",
        "myserver",
        "myserver:49983",
        "my-server.example.com",
        "server-2.example.com",
        "under_score",
    ],
)
def test_any_other_host_is_shared_and_headers_count(name):
    assert host.find(name, "iabc", "8000") == Target("iabc", 8000)


def test_the_older_form_of_an_id_is_understood():
    assert host.find("localhost", "iabc-6532622b", "8000") == Target("iabc", 8000)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "Invalid host"),
        ("", "Invalid host"),
        ("a b", "Invalid host"),
        ("a\x00", "Invalid host"),
        ("a/b", "Invalid host"),
        ("a@b", "Invalid host"),
        ("8000-iabc.e2b.app:x", "Invalid host"),
        ("8000-iabc.e2b.app:", "Invalid host"),
        ("8000-iäbc.e2b.app", "Invalid host"),
        ("[::1", "Invalid host"),
        ("a" * 300, "Invalid host"),
        ("localhost", "Invalid host"),
        ("api.e2b.app", "Invalid host"),
        ("8000-.e2b.app", "Invalid sandbox ID"),
        ("8000--x.e2b.app", "Invalid sandbox ID"),
        ("8000-i_bc.e2b.app", "Invalid sandbox ID"),
        (f"8000-{'i' * 65}.e2b.app", "Invalid sandbox ID"),
        ("0-iabc.e2b.app", "Invalid sandbox port"),
        ("65536-iabc.e2b.app", "Invalid sandbox port"),
        ("123456-iabc.e2b.app", "Invalid sandbox port"),
    ],
)
def test_what_names_nothing_is_refused_with_its_reason(name, message):
    with pytest.raises(BadTarget) as refused:
        host.find(name, None, None)

    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("sandbox_id", "port", "start"),
    [
        (None, "8000", "Invalid sandbox ID"),
        ("iabc", None, "Invalid sandbox port"),
        ("", "8000", "Invalid sandbox ID"),
        ("../x", "8000", "Invalid sandbox ID"),
        ("iabc\n", "8000", "Invalid sandbox ID"),
        ("iabc", "", "Invalid sandbox port"),
        ("iabc", "0", "Invalid sandbox port"),
        ("iabc", "65536", "Invalid sandbox port"),
        ("iabc", "-1", "Invalid sandbox port"),
        ("iabc", "+80", "Invalid sandbox port"),
        ("iabc", "8 0", "Invalid sandbox port"),
        ("iabc", "8e3", "Invalid sandbox port"),
        ("iabc", "1" * 5000, "Invalid sandbox port"),
        ("a" * 65, "8000", "Invalid sandbox ID"),
        ("iabc", "²", "Invalid sandbox port"),
        ("iabc", "٨٠", "Invalid sandbox port"),
    ],
)
def test_headers_that_name_nothing_are_refused_with_their_reason(sandbox_id, port, start):
    with pytest.raises(BadTarget) as refused:
        host.find("localhost", sandbox_id, port)

    assert str(refused.value).startswith(start)
