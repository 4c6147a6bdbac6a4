"""`opene2b proxy` as a process."""

import asyncio
import json
import os
import signal
import socket
import sys

import http_wire
import pytest
from http_wire import LIMIT_S

from opene2b.core.paths import Home
from opene2b.testing import fake_gateway

HOST = b"Host: 8000-isandbox.localhost\r\n"


@pytest.fixture
async def process(tmp_path_factory, gateway_at_home):
    home = gateway_at_home.path.parents[1]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    env = {
        **os.environ,
        "OPENE2B_HOME": str(home),
        "OPENE2B_PROXY_PORT": str(port),
        "OPENE2B_HOST": "127.0.0.1",
    }
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "opene2b", "proxy", env=env, stderr=asyncio.subprocess.PIPE
    )
    assert child.stderr is not None
    events = []
    async with asyncio.timeout(30):
        while "proxy_ready" not in events:
            line = await child.stderr.readline()
            assert line, events
            events.append(json.loads(line)["event"])
    yield child, port
    if child.returncode is None:
        child.kill()
    await child.communicate()


@pytest.fixture
async def gateway_at_home(tmp_path_factory):
    home = Home(tmp_path_factory.mktemp("h"))
    home.gateway_socket.parent.mkdir(parents=True)
    async with fake_gateway.serve(home.gateway_socket) as made:
        yield made


async def connect_again_and_again(port):
    while True:
        (await asyncio.open_connection("127.0.0.1", port))[1].close()
        await asyncio.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_an_answer_finish_and_ends_the_process(
    process, gateway_at_home, service, number
):
    child, port = process
    go_on = asyncio.Event()

    async def answers(wire):
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhe")
        await go_on.wait()
        await wire.send(b"re")

    served = await service(answers)
    gateway_at_home.add("isandbox", {8000: served.port})
    async with http_wire.connect(port) as client:
        await client.send(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
        await client.head()
        child.send_signal(number)
        async with asyncio.timeout(LIMIT_S):
            line = await child.stderr.readline()
            while json.loads(line)["event"] != "proxy_stopping":
                line = await child.stderr.readline()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.wait_for(connect_again_and_again(port), LIMIT_S)
        go_on.set()
        body = await client.exactly(4)
        ended_well = await client.closed()
    _, rest = await asyncio.wait_for(child.communicate(), LIMIT_S)

    assert (body, ended_well) == (b"here", True)
    assert child.returncode == 0
    assert b"error" not in rest
