import pytest

from opene2b.api import networks
from opene2b.api.networks import Plan
from opene2b.api.wire import Network
from opene2b.core.errors import InvalidArgument, Unsupported


@pytest.mark.parametrize(
    ("network", "allow", "plan"),
    [
        (None, None, Plan(True, False)),
        (None, True, Plan(True, False)),
        (None, False, Plan(False, False)),
        (Network(), None, Plan(True, False)),
        (Network(deny_out=["0.0.0.0/0"]), None, Plan(False, False)),
        (Network(deny_out=["10.0.0.0/8", "0.0.0.0/0"]), True, Plan(False, False)),
        (Network(deny_out=["10.0.0.0/8"]), False, Plan(False, False)),
        (Network(allow_public_traffic=False), None, Plan(True, True)),
        (Network(allow_public_traffic=True), None, Plan(True, False)),
        (Network(mask_request_host="localhost:${PORT}"), None, Plan(True, False)),
        (Network(https_ports=[], dns_servers=[], allow_out=[], rules={}), None, Plan(True, False)),
    ],
)
def test_what_can_be_kept_is_planned(network, allow, plan):
    assert networks.plan(network, allow) == plan


@pytest.mark.parametrize(
    "network",
    [
        Network(deny_out=["example.com"]),
        Network(deny_out=[""]),
        Network(deny_out=["1.2.3.4/33"]),
        Network(allow_out=["example.com"]),
        Network(allow_out=["exa mple.com"], deny_out=["0.0.0.0/0"]),
        Network(dns_servers=["::1"]),
        Network(dns_servers=["8.8.8.8"] * 11),
        Network(https_ports=[49983]),
        Network(mask_request_host=""),
        Network(mask_request_host="a\r\nX-Evil: 1"),
        Network(mask_request_host="a" * 256),
    ],
)
def test_what_is_against_the_contract_is_refused(network):
    with pytest.raises(InvalidArgument):
        networks.plan(network, None)


@pytest.mark.parametrize(
    "network",
    [
        Network(deny_out=["10.0.0.0/8"]),
        Network(allow_out=["1.1.1.1"]),
        Network(allow_out=["*.example.com"], deny_out=["0.0.0.0/0"]),
        Network(dns_servers=["8.8.8.8"]),
        Network(https_ports=[8443]),
        Network(egress_proxy={"address": "a:1"}),
        Network(rules={"example.com": []}),
    ],
)
def test_what_is_valid_and_not_kept_yet_is_never_taken_silently(network):
    with pytest.raises(Unsupported, match="yet"):
        networks.plan(network, None)
