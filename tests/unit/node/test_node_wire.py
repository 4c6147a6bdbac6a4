import grpc
import pytest

from opene2b.core import errors
from opene2b.core.errors import InvalidArgument, NoCapacity, ServiceError
from opene2b.gen import node_pb2
from opene2b.node import server
from opene2b.node.table import Phase


def all_errors(base=ServiceError):
    for each in base.__subclasses__():
        yield each
        yield from all_errors(each)


def test_every_error_of_ours_has_a_grpc_status():
    found = {each.__name__: server.STATUS_OF_RPC_CODE[each.rpc_code] for each in all_errors()}

    assert found["NoCapacity"] is grpc.StatusCode.UNAVAILABLE
    assert found["SandboxNotFound"] is grpc.StatusCode.NOT_FOUND
    assert found["WrongState"] is grpc.StatusCode.FAILED_PRECONDITION
    assert len(found) >= len([name for name in vars(errors) if name.endswith("NotFound")])


def test_a_full_node_is_told_apart_from_one_that_is_not_ready():
    full = server.status_of(NoCapacity("full", reason="node_full"))
    unready = server.status_of(NoCapacity("soon", reason="image_not_ready"))

    assert full is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert unready is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("phase", Phase)
def test_every_phase_has_a_wire_form_of_its_own(phase):
    assert server.PHASES[phase] == getattr(node_pb2, f"PHASE_{phase.name}")


def test_a_full_spec_is_read():
    order = server.parse_order(
        node_pb2.SandboxSpec(
            sandbox_id="iab",
            execution_id="0e1f",
            template_id="t",
            image_id="base",
            resources=node_pb2.Resources(cpu_count=1, memory_mib=2, disk_mib=3, pids=4),
            env_vars={"A": "1"},
            envd_access_token="a",
            traffic_access_token="b",
            mask_request_host="c",
            allow_internet_access=True,
        )
    )

    assert (order.sandbox_id, order.execution_id, order.image_id) == ("iab", "0e1f", "base")
    assert (order.resources.cpu_count, order.resources.pids) == (1, 4)
    assert order.env_vars == {"A": "1"}
    assert (order.envd_access_token, order.traffic_access_token) == ("a", "b")
    assert (order.mask_request_host, order.allow_internet_access) == ("c", True)


def test_absent_fields_are_none_or_the_default():
    order = server.parse_order(node_pb2.SandboxSpec(sandbox_id="iab", execution_id="0e1f"))

    assert order.resources.memory_mib > 0
    assert order.resources.pids > 0
    assert order.envd_access_token is None
    assert order.traffic_access_token is None
    assert order.mask_request_host is None


@pytest.mark.parametrize("bad", ["", "a/b", "..", "x" * 65, "a b"])
def test_an_execution_id_that_is_none_is_refused(bad):
    with pytest.raises(InvalidArgument):
        server.parse_order(node_pb2.SandboxSpec(sandbox_id="iab", execution_id=bad))
