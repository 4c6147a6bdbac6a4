import socket

import pytest

from opene2b.cli import ports
from opene2b.core.errors import Unsupported


@pytest.fixture
def taken():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_port_that_somebody_listens_on_is_taken(taken):
    assert not ports.is_free("127.0.0.1", taken)


def test_the_setting_to_change_is_named(taken):
    with pytest.raises(Unsupported, match=f"port {taken} .* set E2B_API_PORT"):
        ports.need("127.0.0.1", {"E2B_API_PORT": taken}, wait_s=0)


def test_one_port_for_two_servers_is_refused():
    with pytest.raises(Unsupported, match="A and B are the same port"):
        ports.need("127.0.0.1", {"A": 1, "B": 1}, wait_s=0)


def test_an_address_that_is_not_ours_is_refused():
    with pytest.raises(Unsupported, match="OPENE2B_HOST"):
        ports.need("192.0.2.1", {"A": 3000}, wait_s=0)
