"""Ends: of sandboxes, of ports, of idle connections, of the node agent, of the proxy itself."""

import asyncio
import json

import http_wire
import pytest
from http_wire import LIMIT_S

from opene2b.proxy import server

HOST = b"Host: 8000-isandbox.e2b.app\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"
POST = b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\n\r\na"


async def until(condition):
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.01)


async def stall(wire):
    """Begins an answer and never ends it."""
    await wire.head()
    await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
    await wire.closed()


# sandboxes


async def test_the_end_of_a_sandbox_resets_what_is_under_way(sandbox, client, gateway):
    service = await sandbox(stall)
    await client.send(GET)
    await client.head()
    await client.chunk()
    gateway.end("isandbox")

    assert not await client.closed()
    assert not await service.connections[0].closed()


async def test_the_end_of_a_sandbox_resets_who_waits_for_a_first_byte(sandbox, client, gateway):
    asked = asyncio.Event()

    async def silent(wire):
        await wire.head()
        asked.set()
        await wire.closed()

    await sandbox(silent)
    await client.send(GET)
    await asyncio.wait_for(asked.wait(), LIMIT_S)
    gateway.end("isandbox")

    assert not await client.closed()


async def test_the_end_of_a_sandbox_closes_its_idle_connections(sandbox, client, gateway, proxy):
    await sandbox()
    await client.send(GET)
    await client.message()
    before = len(proxy.pool.live["execution-of-isandbox"])
    gateway.end("isandbox")
    await until(lambda: not proxy.pool.live)
    await client.send(GET)
    answer = await client.message()

    assert before == 1
    assert answer.status == 502
    assert proxy.pool.idle == {}


async def test_the_end_of_a_sandbox_leaves_others_alone(sandbox, service, gateway, client):
    await sandbox(stall)
    gateway.add("iother", {})
    await client.send(GET)
    await client.head()
    gateway.end("iother")
    gateway.end("isandbox")

    # Ends are told in order: by the second one, the first was heard.
    assert await client.chunk() == b"a"
    assert not await client.closed()


async def test_a_dial_that_meets_the_end_of_its_sandbox_finds_none(sandbox, client, gateway):
    await sandbox()
    gateway.answering.clear()
    await client.send(GET)
    await gateway.until_asked("route", 1)
    gateway.end("isandbox")
    gateway.answering.set()

    assert (await client.message()).status == 502


async def test_a_new_execution_is_found_where_the_end_of_the_old_one_was_missed(
    sandbox, service, client, gateway
):
    await sandbox(execution_id="one")
    await client.send(GET)
    await client.message()
    other = await service(http_wire.echo)
    gateway.add("isandbox", {9000: other.port}, execution_id="two")
    await client.send(b"GET / HTTP/1.1\r\nHost: 9000-isandbox.e2b.app\r\n\r\n")

    assert (await client.message()).status == 200


async def test_no_sandbox_is_a_502_with_the_exact_body(client, proxy):
    await client.send(GET)
    answer = await client.message()

    assert answer.status == 502
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert answer.headers["access-control-allow-origin"] == "*"
    assert json.loads(answer.body) == {
        "sandboxId": "isandbox",
        "message": "The sandbox was not found",
        "code": 502,
    }


# ports


@pytest.mark.slow
async def test_a_closed_port_is_tried_five_times_for_a_second(sandbox, client, gateway):
    await sandbox()
    loop = asyncio.get_running_loop()
    began = loop.time()
    await client.send(b"GET / HTTP/1.1\r\nHost: 8001-isandbox.e2b.app\r\n\r\n")
    answer = await client.message()

    assert answer.status == 502
    assert json.loads(answer.body) == {
        "sandboxId": "isandbox",
        "message": "The sandbox is running but port is not open",
        "port": 8001,
        "code": 502,
    }
    assert gateway.asked["dial"] == 5
    assert 1.0 <= loop.time() - began < 2.0


async def test_a_port_that_opens_meanwhile_is_reached(sandbox, client, gateway):
    service = await sandbox(http_wire.echo, 9000)
    await client.send(GET)
    await gateway.until_asked("dial", 1)
    gateway.sandboxes["isandbox"].ports[8000] = service.port

    assert (await client.message()).status == 200


async def test_nobody_dials_for_a_client_that_left(sandbox, port, gateway, proxy):
    await sandbox()
    async with http_wire.connect(port) as wire:
        await wire.send(b"GET / HTTP/1.1\r\nHost: 8001-isandbox.e2b.app\r\n\r\n")
        await gateway.until_asked("dial", 1)
    await until(lambda: not proxy.tasks)

    assert gateway.asked["dial"] < 5
    assert proxy.pool.live == {}


# idle connections that end in the moment of their use


def once_then_close(answers_second_connection: bool):
    connections = 0

    async def handler(wire):
        nonlocal connections
        connections += 1
        await wire.message()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % connections)
        if connections > 1 and answers_second_connection:
            await handler(wire)
        else:
            await wire.message()  # and says nothing to it

    return handler


async def test_a_get_on_an_idle_connection_that_ends_is_sent_once_more(sandbox, client):
    service = await sandbox(once_then_close(answers_second_connection=True))
    await client.send(GET)
    await client.message()
    await client.send(GET)
    answer = await client.message()

    assert (answer.status, answer.body) == (200, b"2")
    assert len(service.connections) == 2


async def test_a_post_on_an_idle_connection_that_ends_is_not_sent_again(sandbox, client):
    service = await sandbox(once_then_close(answers_second_connection=True))
    await client.send(POST)
    await client.message()
    await client.send(POST)
    answer = await client.message()

    assert answer.status == 502
    assert "closed the connection" in json.loads(answer.body)["message"]
    assert len(service.connections) == 1


async def test_a_service_that_says_nothing_is_asked_once(sandbox, client):
    async def shuts(wire):
        await wire.head()

    service = await sandbox(shuts)
    await client.send(GET)
    answer = await client.message()

    assert answer.status == 502
    assert len(service.connections) == 1


async def test_a_service_that_is_no_http_server_is_a_502(sandbox, client):
    async def answers(wire):
        await wire.send(b"SSH-2.0-OpenSSH_9.2\r\n")
        await wire.closed()

    await sandbox(answers)
    await client.send(GET)

    assert (await client.message()).status == 502


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\na",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 400_000,
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000,
    ],
    ids=["two framings", "two lengths", "folded line", "endless head", "endless hints"],
)
async def test_answers_that_can_be_read_in_two_ways_are_not_passed_on(sandbox, port, answer):
    async def answers(wire):
        await wire.head()
        await wire.send(answer)
        await wire.closed()

    await sandbox(answers)
    async with http_wire.connect(port) as client:
        await client.send(GET)
        head = await client.head()
        while head.status == 103:
            head = await client.head()

    assert head.status == 502


async def test_an_answer_with_something_behind_it_is_given_and_its_connection_ended(
    sandbox, client
):
    async def answers(wire):
        await wire.head()
        await wire.send(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
            b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
        )
        await wire.closed()

    service = await sandbox(answers)
    await client.send(GET + GET)
    first = await client.message()
    second = await client.message()

    assert first.body == second.body == b"ok"
    assert len(service.connections) == 2


async def test_an_answer_that_nobody_asked_for_is_nobodys(sandbox, client, proxy):
    say = asyncio.Event()

    async def answers(wire):
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await say.wait()
        say.clear()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")
        await wire.closed()

    service = await sandbox(answers)
    await client.send(GET)
    await client.message()
    say.set()
    await until(lambda: not proxy.pool.live)
    await client.send(GET)
    answer = await client.message()

    assert answer.body == b"ok"
    assert len(service.connections) == 2


# the node agent


async def test_requests_wait_for_an_agent_that_is_started_again(sandbox, client, gateway):
    await sandbox()
    await client.send(GET)
    await client.message()
    gateway.stop()
    await client.send(b"GET / HTTP/1.1\r\nHost: 8000-inew.e2b.app\r\n\r\n")
    gateway.sandboxes["inew"] = gateway.sandboxes["isandbox"]
    gateway.start()

    assert (await client.message()).status == 200


async def test_what_is_under_way_survives_the_agent(sandbox, client, gateway, proxy):
    go_on = asyncio.Event()

    async def answers(wire):
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhe")
        await go_on.wait()
        await wire.send(b"re")

    await sandbox(answers)
    await client.send(GET)
    await client.head()
    gateway.stop()
    await until(lambda: not proxy.gateway.connected.is_set())
    go_on.set()

    assert await client.exactly(4) == b"here"
    assert proxy.routes.known == {}


async def test_an_agent_that_stays_away_is_a_503(sandbox, client, gateway, proxy, monkeypatch):
    monkeypatch.setattr("opene2b.proxy.gateway.CONNECTED_LIMIT_S", 0.05)
    gateway.stop()
    await until(lambda: not proxy.gateway.connected.is_set())
    await client.send(GET)
    answer = await client.message()

    assert answer.status == 503
    assert json.loads(answer.body)["code"] == 503


async def test_an_agent_that_does_not_answer_is_a_503(sandbox, client, gateway, monkeypatch):
    monkeypatch.setattr("opene2b.proxy.gateway.ANSWER_LIMIT_S", 0.05)
    gateway.answering.clear()
    await client.send(GET)

    assert (await client.message()).status == 503


@pytest.mark.slow
async def test_a_thousand_dials_at_once_are_all_made(sandbox, port, gateway):
    """More questions than the socket to the agent has room for."""
    await sandbox()
    gateway.answering.clear()

    async def one():
        async with http_wire.connect(port) as wire:
            await wire.send(GET)
            return (await wire.message()).status

    asked = [asyncio.create_task(one()) for _ in range(1000)]
    await gateway.until_asked("route", 1)
    gateway.answering.set()
    statuses = await asyncio.gather(*asked)

    assert set(statuses) == {200}


# the proxy


async def test_a_proxy_that_stops_lets_answers_finish(sandbox, gateway):
    go_on = asyncio.Event()

    async def answers(wire):
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhe")
        await go_on.wait()
        await wire.send(b"re")

    await sandbox(answers)
    async with server.serve(gateway.path, "127.0.0.1", 0, drain_s=LIMIT_S) as (proxy, port):
        wire = http_wire.Wire(*await asyncio.open_connection("127.0.0.1", port))
        await wire.send(GET)
        await wire.head()
        stopping = asyncio.create_task(until(lambda: proxy.is_draining))
        stopping.add_done_callback(lambda _: go_on.set())
    rest = await wire.exactly(4)
    ended = await wire.closed()
    await wire.close()
    await stopping

    assert (rest, ended) == (b"here", True)


async def test_a_proxy_that_stops_does_not_wait_for_streams_for_ever(sandbox, gateway):
    await sandbox(stall)
    async with server.serve(gateway.path, "127.0.0.1", 0, drain_s=0.05) as (_, port):
        wire = http_wire.Wire(*await asyncio.open_connection("127.0.0.1", port))
        await wire.send(GET)
        await wire.head()
        await wire.chunk()

    assert not await wire.closed()
    await wire.close()
