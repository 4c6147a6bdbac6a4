from pathlib import Path

import pytest

from opene2b.cli import config
from opene2b.core.errors import InvalidArgument


def test_nothing_needs_to_be_set():
    found = config.load({})

    assert (found.home.root, found.api_port, found.proxy_port, found.host) == (
        Path("/var/lib/opene2b"),
        3000,
        49983,
        "127.0.0.1",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("E2B_API_PORT", "http"),
        ("E2B_API_PORT", "0"),
        ("OPENE2B_PROXY_PORT", "65536"),
        ("USE_IN_MEMORY_STORE", "perhaps"),
        ("OPENE2B_RUNTIME", "docker"),
        ("OPENE2B_MAX_SANDBOXES", "-1"),
        ("OPENE2B_SANDBOX_MEMORY_MIB", "1"),
        ("OPENE2B_SUBNET", "10.0.0.1/8"),
        ("OPENE2B_SUBNET", "10.0.0.0/30"),
        ("OPENE2B_NAMESERVERS", "9.9.9.9,dns.example"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(name, value):
    with pytest.raises(InvalidArgument, match=name):
        config.load({name: value})


def test_secrets_are_not_shown():
    found = config.load({"OPENE2B_API_KEY": "k" * 44, "OPENE2B_BASE_IMAGE_PASSWORD": "p" * 9})

    assert "kkk" not in repr(found)
    assert "ppp" not in repr(found)
