import asyncio
import contextlib
import os
import stat

import grpc
import pytest
from grpc import aio

from opene2b.core.errors import WrongState
from opene2b.core.ids import ImageId
from opene2b.gen import node_pb2, node_pb2_grpc
from opene2b.image import manifest as manifests
from opene2b.node import lock, server

LIMIT_S = 20


@contextlib.asynccontextmanager
async def connected(home):
    async with aio.insecure_channel(f"unix:{home.node_socket}") as channel:
        yield node_pb2_grpc.NodeStub(channel)


@pytest.fixture
async def node(agent, home):
    async with (
        server.serve(agent, home.node_socket, control_gid=None, node_id="n1"),
        connected(home) as stub,
    ):
        yield stub


def request(order, **changes):
    return node_pb2.CreateRequest(
        spec=node_pb2.SandboxSpec(
            **{
                "sandbox_id": order.sandbox_id,
                "execution_id": order.execution_id,
                "template_id": "base",
                "image_id": "base",
                "allow_internet_access": True,
                **changes,
            }
        )
    )


async def refused(call):
    """(status, reason) of a call that fails."""
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    trailers = dict(caught.value.trailing_metadata() or ())
    return caught.value.code(), trailers.get("opene2b-reason")


async def test_create_list_kill_over_the_wire(node, order):
    created = await node.Create(request(order), timeout=LIMIT_S)
    listed = await node.List(node_pb2.ListRequest(), timeout=LIMIT_S)
    killed = await node.Kill(node_pb2.KillRequest(sandbox_id=order.sandbox_id), timeout=LIMIT_S)
    again = await node.Kill(node_pb2.KillRequest(sandbox_id=order.sandbox_id), timeout=LIMIT_S)
    after = await node.List(node_pb2.ListRequest(), timeout=LIMIT_S)

    assert created.start_seconds > 0
    assert list(listed.sandboxes) == [
        node_pb2.SandboxStatus(
            sandbox_id=order.sandbox_id,
            execution_id=order.execution_id,
            phase=node_pb2.PHASE_RUNNING,
        )
    ]
    assert (killed.found, again.found) == (True, False)
    assert list(after.sandboxes) == []


async def test_info_tells_what_the_node_is_and_has(node, home):
    progress = manifests.progress_path(home, ImageId("next"))
    progress.parent.mkdir(parents=True)
    progress.write_text("copying files\n")
    info = await node.Info(node_pb2.InfoRequest(), timeout=LIMIT_S)

    assert (info.node_id, info.runtime, info.isolation) == ("n1", "fake", "none")
    assert info.max_sandboxes == 8
    assert [(image.image_id, image.status, image.progress) for image in info.images] == [
        ("base", "ready", ""),
        ("next", "building", "copying files"),
    ]


async def test_an_unknown_image_is_not_found_with_a_reason(node, order):
    assert await refused(node.Create(request(order, image_id="other"))) == (
        grpc.StatusCode.NOT_FOUND,
        "image_not_found",
    )


async def test_an_image_in_the_making_is_unavailable(node, home, order):
    progress = manifests.progress_path(home, ImageId("next"))
    progress.parent.mkdir(parents=True)
    progress.write_text("copying files")

    assert await refused(node.Create(request(order, image_id="next"))) == (
        grpc.StatusCode.UNAVAILABLE,
        "image_not_ready",
    )


async def test_a_full_node_is_exhausted(open_agent, home, order, make_order):
    agent = await open_agent(capacity=1)
    await agent.create(order)
    async with (
        server.serve(agent, home.node_socket, control_gid=None),
        connected(home) as stub,
    ):
        assert await refused(stub.Create(request(make_order()))) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "node_full",
        )


async def test_another_execution_already_exists(node, order, make_order):
    await node.Create(request(order))

    code, _ = await refused(node.Create(request(make_order(sandbox_id=order.sandbox_id))))
    assert code is grpc.StatusCode.ALREADY_EXISTS


@pytest.mark.parametrize("bad", ["", "../etc", "a/b", "I0", "i-0", "i" * 65])
async def test_a_sandbox_id_that_is_no_label_is_refused(node, order, bad):
    code, _ = await refused(node.Create(request(order, sandbox_id=bad)))

    assert code is grpc.StatusCode.INVALID_ARGUMENT


async def test_what_breaks_inside_is_told_without_its_text(node, runtime, order):
    runtime.behavior.start_error = RuntimeError("/secret/path")
    with pytest.raises(aio.AioRpcError) as caught:
        await node.Create(request(order))

    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "/secret/path" not in (caught.value.details() or "")


async def test_a_create_whose_caller_hung_up_is_in_the_list(node, agent, runtime, order):
    runtime.behavior.start_delay_s = 0.1
    with agent.events.subscribe() as events:
        call = node.Create(request(order))
        async with asyncio.timeout(LIMIT_S):
            await events.next()
            call.cancel()
            running = await events.next()

    assert running.phase == "running"
    assert [status.sandbox_id for status in agent.statuses()] == [order.sandbox_id]


async def test_watch_tells_every_change_from_the_subscription_on(node, order):
    call = node.Watch(node_pb2.WatchRequest())
    async with asyncio.timeout(LIMIT_S):
        await call.initial_metadata()
        await node.Create(request(order))
        await node.Kill(node_pb2.KillRequest(sandbox_id=order.sandbox_id))
        phases = [(await call.read()).changed.phase for _ in range(3)]
    call.cancel()

    assert phases == [node_pb2.PHASE_STARTING, node_pb2.PHASE_RUNNING, node_pb2.PHASE_STOPPING]


async def test_a_watcher_that_went_away_is_forgotten(node, agent):
    call = node.Watch(node_pb2.WatchRequest())
    await call.initial_metadata()
    there = len(agent.events.subscriptions)
    call.cancel()
    async with asyncio.timeout(LIMIT_S):
        while agent.events.subscriptions:
            await asyncio.sleep(0.01)

    assert there == 1


@pytest.mark.parametrize("service", [b"", b"\x0a\x14opene2b.node.v1.Node"])
async def test_the_standard_health_check_says_serving(node, home, service):
    async with aio.insecure_channel(f"unix:{home.node_socket}") as channel:
        answer = await channel.unary_unary("/grpc.health.v1.Health/Check")(service)

    assert answer == b"\x08\x01"


async def test_the_health_of_another_service_is_not_found(node, home):
    async with aio.insecure_channel(f"unix:{home.node_socket}") as channel:
        with pytest.raises(aio.AioRpcError) as caught:
            await channel.unary_unary("/grpc.health.v1.Health/Check")(b"\x0a\x01x")

    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_only_the_owner_may_connect_where_no_group_is_given(node, home):
    assert stat.S_IMODE(home.node_socket.stat().st_mode) == 0o600


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_one_group_may_connect_where_it_is_given(agent, home):
    async with server.serve(agent, home.node_socket, control_gid=64230):
        info = home.node_socket.stat()

    assert (stat.S_IMODE(info.st_mode), info.st_gid) == (0o660, 64230)


async def test_the_socket_of_a_dead_agent_is_replaced(agent, home):
    home.node_socket.write_text("stale")
    async with (
        server.serve(agent, home.node_socket, control_gid=None),
        connected(home) as stub,
    ):
        info = await stub.Info(node_pb2.InfoRequest(), timeout=LIMIT_S)

    assert info.runtime == "fake"


def test_a_second_agent_of_one_home_is_refused(home):
    with lock.held(home.run / "node.pid"):
        with pytest.raises(WrongState, match=str(os.getpid())):
            with lock.held(home.run / "node.pid"):
                pass
    with lock.held(home.run / "node.pid"):
        pass
