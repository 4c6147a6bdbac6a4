"""Streams: nothing waits in the proxy, nothing piles up in it, and both ends learn of the other's."""

import asyncio
import contextlib
import hashlib

import http_wire
import pytest
import websockets
from http_wire import LIMIT_S
from websockets.asyncio.client import connect as connect_websocket
from websockets.asyncio.server import serve as serve_websocket

HOST = b"Host: 8000-isandbox.e2b.app\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"
MIB = 1 << 20
PILED_UP_LIMIT = 24 * MIB
"""What the kernel's buffers of three connections and ours can hold."""


async def pour(wire):
    while True:
        wire.writer.write(b"x" * MIB)
        await wire.writer.drain()


async def test_events_arrive_as_they_are_sent(sandbox, client):
    go_on = asyncio.Event()

    async def answers(wire):
        await wire.head()
        await wire.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for number in range(3):
            await wire.send(b"9\r\ndata: %d\n\n\r\n" % number)
            await go_on.wait()
            go_on.clear()
        await wire.send(b"0\r\n\r\n")

    await sandbox(answers)
    await client.send(GET)
    await client.head()
    events = []
    for _ in range(3):
        events.append(await client.chunk())
        go_on.set()
    end = await client.chunk()

    assert events == [b"data: 0\n\n", b"data: 1\n\n", b"data: 2\n\n"]
    assert end == b""


async def test_parts_of_a_request_arrive_as_they_are_sent(sandbox, client):
    arrived: asyncio.Queue[bytes] = asyncio.Queue()

    async def answers(wire):
        await wire.head()
        while part := await wire.chunk():
            await arrived.put(part)
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    await sandbox(answers)
    await client.send(b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n")
    for part in (b"one", b"two"):
        await client.send(b"%x\r\n%b\r\n" % (len(part), part))
        assert await asyncio.wait_for(arrived.get(), LIMIT_S) == part
    await client.send(b"0\r\n\r\n")

    assert (await client.message()).status == 200


async def test_both_directions_run_at_once(sandbox, client):
    async def answers(wire):
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while part := await wire.chunk():
            await wire.send(b"%x\r\n%b\r\n" % (len(part), part.upper()))
        await wire.send(b"0\r\n\r\n")

    await sandbox(answers)
    await client.send(b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n")
    await client.head()
    for part in (b"a", b"b", b"c"):
        await client.send(b"1\r\n%b\r\n" % part)
        assert await client.chunk() == part.upper()
    await client.send(b"0\r\n\r\n")

    assert await client.chunk() == b""


@pytest.mark.slow
async def test_a_large_body_goes_up_whole(sandbox, client):
    size = 50 * MIB
    block = bytes(range(256)) * 4096

    async def answers(wire):
        await wire.head()
        digest = hashlib.sha256()
        left = size
        while left:
            part = await wire.reader.read(min(left, 1 << 18))
            digest.update(part)
            left -= len(part)
        await wire.send(
            b"HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\n" + digest.hexdigest().encode()
        )

    await sandbox(answers)
    await client.send(b"PUT / HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % size)
    for _ in range(size // len(block)):
        await client.send(block)
    answer = await client.message()

    assert answer.body.decode() == hashlib.sha256(block * (size // len(block))).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_large_body_comes_down_whole(sandbox, client, framing):
    block = bytes(range(256)) * 4096

    async def answers(wire):
        await wire.head()
        head = (
            b"Transfer-Encoding: chunked" if framing == "chunked" else b"Content-Length: 52428800"
        )
        await wire.send(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n")
        for _ in range(50):
            await wire.send(b"100000\r\n%b\r\n" % block if framing == "chunked" else block)
        if framing == "chunked":
            await wire.send(b"0\r\n\r\n")

    await sandbox(answers)
    await client.send(GET)
    answer = await client.message()

    assert hashlib.sha256(answer.body).digest() == hashlib.sha256(block * 50).digest()


@pytest.mark.slow
async def test_a_service_that_does_not_read_holds_the_client_back(sandbox, port, until_still):
    release = asyncio.Event()

    async def answers(wire):
        wire.writer.transport.pause_reading()
        await release.wait()

    await sandbox(answers)
    sent = 0

    async with http_wire.connect(port) as client:
        await client.send(b"PUT / HTTP/1.1\r\n" + HOST + b"Content-Length: 1000000000\r\n\r\n")

        async def pour():
            nonlocal sent
            while True:
                client.writer.write(b"x" * MIB)
                await client.writer.drain()
                sent += MIB

        pouring = asyncio.create_task(pour())
        await until_still(lambda: sent)
        pouring.cancel()
        client.reset()
    release.set()

    assert 0 < sent < PILED_UP_LIMIT


@pytest.mark.slow
async def test_a_client_that_does_not_read_holds_the_service_back(sandbox, port, until_still):
    sent = 0

    async def answers(wire):
        nonlocal sent
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while True:
            wire.writer.write(b"x" * MIB)
            await wire.writer.drain()
            sent += MIB

    await sandbox(answers)
    async with http_wire.connect(port) as client:
        await client.send(GET)
        await client.head()
        client.writer.transport.pause_reading()
        await until_still(lambda: sent)
        client.reset()

    assert 0 < sent < PILED_UP_LIMIT


@pytest.mark.slow
async def test_a_client_that_asks_and_never_reads_is_not_read_for_ever(port, until_still):
    sent = 0
    async with http_wire.connect(port) as client:
        client.writer.transport.pause_reading()

        async def pour():
            nonlocal sent
            block = b"GET / HTTP/1.1\r\nHost: nobody\r\n\r\n" * 1000
            while True:
                client.writer.write(block)
                await client.writer.drain()
                sent += len(block)

        pouring = asyncio.create_task(pour())
        await until_still(lambda: sent)
        pouring.cancel()
        client.reset()

    assert 0 < sent < PILED_UP_LIMIT


async def test_a_service_notices_that_its_client_left(sandbox, port):
    noticed = asyncio.Event()

    async def answers(wire):
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await wire.closed()
        noticed.set()

    await sandbox(answers)
    async with http_wire.connect(port) as client:
        await client.send(GET)
        await client.head()
        await client.chunk()

    await asyncio.wait_for(noticed.wait(), LIMIT_S)


@pytest.mark.slow
async def test_a_service_that_does_not_read_notices_that_its_client_left(
    sandbox, port, monkeypatch
):
    monkeypatch.setattr("opene2b.proxy.client.LOOK_S", 0.05)
    stuck = asyncio.Event()
    noticed = asyncio.Event()

    async def answers(wire):
        await wire.head()
        wire.writer.transport.pause_reading()
        await stuck.wait()
        # Its own end is all that a service can see of the other side without reading.
        async with asyncio.timeout(LIMIT_S):
            while wire.tcp_state() != "closed":
                await asyncio.sleep(0.01)
        noticed.set()

    await sandbox(answers)
    async with http_wire.connect(port) as client:
        await client.send(b"PUT / HTTP/1.1\r\n" + HOST + b"Content-Length: 1000000000\r\n\r\n")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pour(client), 0.3)
        client.reset()
        stuck.set()
        await asyncio.wait_for(noticed.wait(), LIMIT_S)


async def test_an_answer_that_was_cut_off_does_not_look_finished(sandbox, client):
    async def answers(wire):
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhal")

    await sandbox(answers)
    await client.send(GET)
    await client.head()
    half = await client.exactly(3)

    assert half == b"hal"
    assert not await client.closed()


async def test_an_answer_in_chunks_that_was_cut_off_does_not_look_finished(sandbox, client):
    async def answers(wire):
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhal\r\n")

    await sandbox(answers)
    await client.send(GET)
    await client.head()
    half = await client.chunk()

    assert half == b"hal"
    assert not await client.closed()


async def test_an_answer_until_close_that_was_reset_does_not_look_finished(sandbox, client):
    seen = asyncio.Event()

    async def answers(wire):
        await wire.head()
        await wire.send(b"HTTP/1.0 200 OK\r\n\r\nhal")
        await seen.wait()
        wire.reset()

    await sandbox(answers)
    await client.send(GET)
    await client.head()
    half = await client.chunk()
    seen.set()

    assert half == b"hal"
    assert not await client.closed()


# upgrades

UPGRADE = b"GET / HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: own\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: own\r\n\r\n"


async def test_bytes_pass_both_ways_after_101(sandbox, client):
    async def answers(wire):
        request = await wire.head()
        assert (request.headers["connection"], request.headers["upgrade"]) == ("Upgrade", "own")
        await wire.send(SWITCH + b"first")
        await wire.send(await wire.exactly(4))

    await sandbox(answers)
    await client.send(UPGRADE)
    answer = await client.head()
    first = await client.exactly(5)
    await client.send(b"\0\r\n\xff")

    assert answer.status == 101
    assert (answer.headers["connection"], answer.headers["upgrade"]) == ("Upgrade", "own")
    assert first == b"first"
    assert await client.exactly(4) == b"\0\r\n\xff"
    assert await client.closed()


async def test_what_a_client_says_before_101_arrives_after_it(sandbox, client):
    async def answers(wire):
        await wire.head()
        await wire.send(SWITCH)
        await wire.send(await wire.exactly(8))

    await sandbox(answers)
    await client.send(UPGRADE + b"GET ")
    await client.send(b"/ no")
    await client.head()

    assert await client.exactly(8) == b"GET / no"


async def test_half_of_a_tunnel_can_be_closed(sandbox, client):
    async def answers(wire):
        await wire.head()
        await wire.send(SWITCH)
        said = await wire.rest()
        await wire.send(said + b" and goodbye")

    await sandbox(answers)
    await client.send(UPGRADE)
    await client.head()
    await client.send(b"hello")
    client.writer.write_eof()

    assert await client.rest() == b"hello and goodbye"


async def test_the_other_half_of_a_tunnel_can_be_closed(sandbox, client):
    heard = asyncio.get_running_loop().create_future()

    async def answers(wire):
        await wire.head()
        await wire.send(SWITCH + b"last words")
        wire.writer.write_eof()
        heard.set_result(await wire.rest())

    await sandbox(answers)
    await client.send(UPGRADE)
    await client.head()
    last = await client.exactly(10)
    await client.send(b"understood")
    client.writer.write_eof()

    assert last == b"last words"
    assert await asyncio.wait_for(heard, LIMIT_S) == b"understood"


async def test_a_service_may_refuse_to_upgrade(sandbox, client):
    await sandbox()
    await client.send(UPGRADE)
    answer = await client.message()

    assert answer.status == 200
    assert answer.headers["connection"] == "close"


async def test_http_2_by_upgrade_is_not_taken_up_and_the_connection_goes_on(sandbox, client):
    await sandbox()
    await client.send(
        b"GET / HTTP/1.1\r\n" + HOST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABk\r\n\r\n" + GET
    )
    first = await client.message()
    second = await client.message()

    assert first.body == second.body == b"GET / HTTP/1.1\nhost: 8000-isandbox.e2b.app\n\n"


async def test_an_upgrade_that_nobody_asked_for_is_no_answer(sandbox, client):
    async def answers(wire):
        await wire.head()
        await wire.send(SWITCH + b"free pass")
        await wire.closed()

    await sandbox(answers)
    await client.send(GET)

    assert (await client.message()).status == 502


async def test_a_change_of_protocol_without_a_name_is_no_answer(sandbox, client):
    async def answers(wire):
        await wire.head()
        await wire.send(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        await wire.closed()

    await sandbox(answers)
    await client.send(UPGRADE)

    assert (await client.message()).status == 502


async def test_a_websocket_works(gateway, port):
    async def echo(connection):
        with contextlib.suppress(websockets.ConnectionClosed):
            async for message in connection:
                await connection.send(message)

    async with serve_websocket(echo, "127.0.0.1", 0, max_size=None) as served:
        gateway.add("isandbox", {8000: next(iter(served.sockets)).getsockname()[1]})
        async with connect_websocket(
            "ws://8000-isandbox.localhost/x", host="127.0.0.1", port=port, max_size=None, proxy=None
        ) as socket:
            large = "x" * MIB
            await socket.send("hello")
            await socket.send(b"\0\1")
            await socket.send(large)
            answers = [await asyncio.wait_for(socket.recv(), LIMIT_S) for _ in range(3)]
            await socket.close(code=4001)

    assert answers == ["hello", b"\0\1", large]
    assert socket.close_code == 4001


async def test_a_websocket_hears_of_the_end_of_its_sandbox(gateway, port):
    async def wait(connection):
        await connection.wait_closed()

    async with serve_websocket(wait, "127.0.0.1", 0) as served:
        gateway.add("isandbox", {8000: next(iter(served.sockets)).getsockname()[1]})
        async with connect_websocket(
            "ws://8000-isandbox.localhost/", host="127.0.0.1", port=port, proxy=None
        ) as socket:
            gateway.end("isandbox")
            with pytest.raises(websockets.ConnectionClosedError):
                await asyncio.wait_for(socket.recv(), LIMIT_S)
