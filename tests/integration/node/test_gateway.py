import array
import asyncio
import contextlib
import json
import os
import socket
import stat
import threading

import pytest

from opene2b.linux import syscalls
from opene2b.linux.netlink import Rtnetlink
from opene2b.node import gateway
from opene2b.node.dial import Dialer, PortClosed

LIMIT_S = 20
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


class Proxy:
    """The proxy's end of the protocol."""

    def __init__(self, path):
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.connection.settimeout(LIMIT_S)
        self.connection.connect(str(path))

    def send(self, message):
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        self.connection.send(data)

    async def receive(self):
        """(message, socket or None)."""
        data, fds, _, _ = await asyncio.to_thread(
            socket.recv_fds, self.connection, 65536, 2, socket.MSG_CMSG_CLOEXEC
        )
        made = [socket.socket(fileno=fd) for fd in fds]
        assert len(made) <= 1
        return json.loads(data), made[0] if made else None

    async def ask(self, message):
        await asyncio.to_thread(self.send, message)
        return await self.receive()


@pytest.fixture
async def gate(agent, home):
    async with gateway.serve(agent, home.gateway_socket, proxy_gid=None) as made:
        yield made


@pytest.fixture
async def proxy(gate, home):
    made = Proxy(home.gateway_socket)
    with made.connection:
        yield made


@contextlib.contextmanager
def service(host="127.0.0.1", backlog=8):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.bind((host, 0))
        listener.listen(backlog)
        yield listener


def dial(order, port, number=1, **changes):
    return {
        "id": number,
        "op": "dial",
        "sandbox_id": order.sandbox_id,
        "execution_id": order.execution_id,
        "port": port,
        **changes,
    }


async def test_a_route_tells_what_the_proxy_must_know(proxy, agent, order):
    await agent.create(order)
    message, _ = await proxy.ask({"id": 7, "op": "route", "sandbox_id": order.sandbox_id})

    assert message == {
        "id": 7,
        "route": {
            "execution_id": order.execution_id,
            "traffic_access_token": "traffic",
            "mask_request_host": None,
        },
    }


async def test_an_unknown_sandbox_has_no_route(proxy):
    message, _ = await proxy.ask({"id": 7, "op": "route", "sandbox_id": "inothing"})

    assert message == {"id": 7, "error": "not_found"}


async def test_a_starting_sandbox_has_no_route_yet(proxy, agent, runtime, order):
    runtime.behavior.starts = False
    creating = asyncio.create_task(agent.create(order))
    await asyncio.sleep(0)
    message, _ = await proxy.ask({"id": 7, "op": "route", "sandbox_id": order.sandbox_id})
    await agent.kill(order.sandbox_id)
    await asyncio.wait({creating})
    creating.exception()

    assert message == {"id": 7, "error": "not_found"}


async def test_dialling_envds_port_reaches_envd(proxy, agent, order):
    await agent.create(order)
    message, made = await proxy.ask(dial(order, 49983))
    reader, writer = await asyncio.open_connection(sock=made)
    writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    line = await reader.readline()
    writer.close()

    assert message == {"id": 1, "ok": True}
    assert b" 204 " in line


async def test_a_dialled_socket_is_nonblocking_and_does_not_wait_for_more(proxy, agent, order):
    await agent.create(order)
    with service() as listener:
        _, made = await proxy.ask(dial(order, listener.getsockname()[1]))
        with made:
            assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert not os.get_blocking(made.fileno())


async def test_a_service_on_ipv6_localhost_only_is_reached(proxy, agent, order):
    await agent.create(order)
    with service("::1") as listener:
        message, made = await proxy.ask(dial(order, listener.getsockname()[1]))

    assert message == {"id": 1, "ok": True}
    made.close()


async def test_the_agent_keeps_no_copy_of_a_dialled_socket(proxy, agent, order):
    await agent.create(order)
    with service() as listener:
        before = len(os.listdir("/proc/self/fd"))
        _, made = await proxy.ask(dial(order, listener.getsockname()[1]))
        made.close()

        assert len(os.listdir("/proc/self/fd")) == before


async def test_a_closed_port_is_told(proxy, agent, order):
    await agent.create(order)
    with service() as listener:
        port = listener.getsockname()[1]
    message, made = await proxy.ask(dial(order, port))

    assert message == {"id": 1, "error": "port_closed"}
    assert made is None


async def test_a_dial_for_another_execution_is_not_found(proxy, agent, order):
    await agent.create(order)
    message, _ = await proxy.ask(dial(order, 49983, execution_id="another"))

    assert message == {"id": 1, "error": "not_found"}


async def test_every_proxy_hears_that_a_killed_sandbox_is_gone(proxy, gate, home, agent, order):
    other = Proxy(home.gateway_socket)
    with other.connection:
        # An answer shows that the second one was accepted.
        await other.ask({"id": 1, "op": "route", "sandbox_id": "inothing"})
        await proxy.ask({"id": 1, "op": "route", "sandbox_id": "inothing"})
        await agent.create(order)
        await agent.kill(order.sandbox_id)
        heard = [await proxy.receive(), await other.receive()]

    gone = {"gone": order.sandbox_id, "execution_id": order.execution_id}
    assert heard == [(gone, None), (gone, None)]


async def test_a_sandbox_that_ends_by_itself_is_gone_and_cannot_be_dialled(
    proxy, agent, runtime, order
):
    await proxy.ask({"id": 1, "op": "route", "sandbox_id": "inothing"})
    await agent.create(order)
    await runtime.stop(agent.live[order.sandbox_id].entry.handle, grace_s=0)
    heard, _ = await proxy.receive()
    message, _ = await proxy.ask(dial(order, 49983))

    assert heard == {"gone": order.sandbox_id, "execution_id": order.execution_id}
    assert message == {"id": 1, "error": "not_found"}


@pytest.mark.parametrize(
    "message",
    [
        {"id": 1},
        {"id": 1, "op": "nothing", "sandbox_id": "i1"},
        {"id": 1, "op": "route", "sandbox_id": 5},
        {"id": 1, "op": "dial", "sandbox_id": "i1", "execution_id": "e", "port": 0},
        {"id": 1, "op": "dial", "sandbox_id": "i1", "execution_id": "e", "port": 65536},
        {"id": 1, "op": "dial", "sandbox_id": "i1", "execution_id": "e", "port": "80"},
        {"id": 1, "op": "dial", "sandbox_id": "i1", "execution_id": "e", "port": True},
    ],
)
async def test_a_question_that_makes_no_sense_is_answered(proxy, message):
    assert await proxy.ask(message) == ({"id": 1, "error": "internal"}, None)


@pytest.mark.parametrize(
    "junk", [b"\xff\xfe", b"[1]", b"{}", b'{"id": "1"}', b"[" * 60000, b" " * 66000]
)
async def test_junk_is_dropped_and_the_connection_goes_on(proxy, junk):
    await asyncio.to_thread(proxy.send, junk)
    message, _ = await proxy.ask({"id": 2, "op": "route", "sandbox_id": "inothing"})

    assert message == {"id": 2, "error": "not_found"}


async def test_descriptors_that_a_proxy_sends_are_not_kept(proxy):
    before = len(os.listdir("/proc/self/fd"))
    fds = array.array("i", [0])
    question = json.dumps({"id": 2, "op": "route", "sandbox_id": "inothing"}).encode()
    proxy.connection.sendmsg([question], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    await proxy.receive()

    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_proxy_that_does_not_read_is_cut_off_and_others_are_served(
    gate, home, proxy, monkeypatch
):
    monkeypatch.setattr(gateway, "ANSWERS_LIMIT", 10)
    deaf = Proxy(home.gateway_socket)
    deaf.connection.setblocking(False)
    question = {"id": 1, "op": "route", "sandbox_id": "inothing"}
    # Its first question shows that it was accepted; then none of its answers is read.
    with deaf.connection:
        was_cut = False
        async with asyncio.timeout(LIMIT_S):
            while not was_cut:
                try:
                    deaf.send(question)
                except BlockingIOError:
                    pass
                except OSError:
                    was_cut = True
                await asyncio.sleep(0)
        message, _ = await proxy.ask(question)

    assert message == {"id": 1, "error": "not_found"}


async def test_the_gateway_ends_with_open_connections(agent, home):
    async with gateway.serve(agent, home.gateway_socket, proxy_gid=None):
        proxy = Proxy(home.gateway_socket)
        await proxy.ask({"id": 1, "op": "route", "sandbox_id": "inothing"})
    with proxy.connection:
        data = await asyncio.to_thread(proxy.connection.recv, 100)

    assert data == b""
    assert not home.gateway_socket.exists()


@pytest.mark.root
@needs_root
async def test_only_root_and_one_group_may_connect(agent, home):
    async with gateway.serve(agent, home.gateway_socket, proxy_gid=64231):
        info = home.gateway_socket.stat()

    assert (stat.S_IMODE(info.st_mode), info.st_gid) == (0o660, 64231)


@contextlib.contextmanager
def network_namespace():
    """(descriptor, port): a network namespace with a service on its loopback."""
    made = []
    done = threading.Event()

    def inside():
        syscalls.unshare(syscalls.CLONE_NEWNET)
        link = Rtnetlink()
        link.set_up("lo")
        link.close()
        listener = socket.create_server(("127.0.0.1", 0))
        fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        made.extend([fd, listener])
        done.set()

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert done.is_set()
    fd, listener = made
    try:
        yield fd, listener.getsockname()[1]
    finally:
        listener.close()
        os.close(fd)


@pytest.mark.root
@needs_root
async def test_a_socket_is_made_inside_the_network_of_the_sandbox():
    dialer = Dialer()
    try:
        with network_namespace() as (fd, port):
            made = await dialer.dial(fd, ("127.0.0.1", "::1"), port)
            made.close()
            # The same thread is back in our own network, where nothing listens there.
            with pytest.raises(PortClosed):
                await dialer.dial(None, ("127.0.0.1", "::1"), port)
            with pytest.raises(PortClosed):
                await dialer.dial(fd, ("127.0.0.1", "::1", "10.9.9.9"), 1)
    finally:
        dialer.close()


@pytest.mark.slow
async def test_an_address_that_does_not_answer_is_given_up_and_the_next_is_tried():
    dialer = Dialer(limit_s=0.2)
    with service(backlog=0) as deaf, service("::1") as listener:
        port = deaf.getsockname()[1]
        with contextlib.ExitStack() as stack:
            # A listener whose queue is full drops what comes: a connection that never completes.
            for _ in range(4):
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(("127.0.0.1", port))
            try:
                with pytest.raises(PortClosed):
                    await dialer.dial(None, ("127.0.0.1",), port)
                made = await dialer.dial(None, ("127.0.0.1", "::1"), listener.getsockname()[1])
                made.close()
            finally:
                dialer.close()
