"""One request and its answer: what arrives at the service, what comes back."""

import asyncio
import json

import http_wire
import pytest

HOST = b"Host: 8000-isandbox.e2b.app\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"


async def test_a_host_name_reaches_its_port(sandbox, client):
    await sandbox()
    await client.send(b"GET /a?b=%2F HTTP/1.1\r\n" + HOST + b"X-Own: 1\r\n\r\n")
    answer = await client.message()

    assert answer.status == 200
    assert answer.body == b"GET /a?b=%2F HTTP/1.1\nhost: 8000-isandbox.e2b.app\nx-own: 1\n\n"


async def test_headers_reach_it_too_and_are_not_passed_on(sandbox, client):
    await sandbox()
    await client.send(
        b"GET / HTTP/1.1\r\nHost: localhost:49983\r\n"
        b"E2b-Sandbox-Id: isandbox\r\nE2b-Sandbox-Port: 8000\r\n\r\n"
    )
    answer = await client.message()

    assert answer.body == b"GET / HTTP/1.1\nhost: localhost:49983\n\n"


async def test_absolute_targets_are_passed_on_in_origin_form(sandbox, client):
    await sandbox()
    await client.send(b"GET http://8000-isandbox.e2b.app/a?b HTTP/1.1\r\n" + HOST + b"\r\n")
    answer = await client.message()

    assert answer.body.startswith(b"GET /a?b HTTP/1.1\nhost: 8000-isandbox.e2b.app\n")


async def test_absolute_targets_of_another_host_are_refused(sandbox, client):
    await sandbox()
    await client.send(b"GET http://8000-iother.e2b.app/ HTTP/1.1\r\n" + HOST + b"\r\n")
    answer = await client.message()

    assert (answer.status, answer.body) == (400, b"Invalid host")


@pytest.mark.parametrize(
    "name", [b"Keep-Alive", b"Proxy-Connection", b"TE", b"X-Named", b"Trailer"]
)
async def test_hop_by_hop_headers_are_not_passed_on(sandbox, client, name):
    await sandbox()
    await client.send(
        b"GET / HTTP/1.1\r\n"
        + HOST
        + b"Connection: keep-alive, x-named\r\n"
        + name
        + b": a\r\n\r\n"
    )
    answer = await client.message()

    assert answer.body == b"GET / HTTP/1.1\nhost: 8000-isandbox.e2b.app\n\n"


async def test_a_mask_replaces_the_host(sandbox, client):
    await sandbox(mask_request_host="localhost:${PORT}")
    await client.send(b"GET / HTTP/1.1\r\nX-Forwarded-Host: forged\r\n" + HOST + b"\r\n")
    answer = await client.message()

    assert answer.body == (
        b"GET / HTTP/1.1\nhost: localhost:8000\nx-forwarded-host: 8000-isandbox.e2b.app\n\n"
    )


async def test_a_mask_is_not_for_envd(sandbox, client):
    await sandbox(http_wire.echo, 49983, mask_request_host="localhost")
    await client.send(b"GET /health HTTP/1.1\r\nHost: 49983-isandbox.e2b.app\r\n\r\n")
    answer = await client.message()

    assert answer.body == b"GET /health HTTP/1.1\nhost: 49983-isandbox.e2b.app\n\n"


async def test_bodies_with_a_length_and_in_chunks_arrive_whole(sandbox, client):
    await sandbox()
    await client.send(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nhello")
    first = await client.message()
    await client.send(
        b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
        b"3;extension=1\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"
    )
    second = await client.message()

    assert first.body.endswith(b"content-length: 5\n\nhello")
    assert second.body.endswith(b"transfer-encoding: chunked\n\nhello")


async def test_trailers_are_dropped_and_never_become_headers(sandbox, client, gateway):
    await sandbox()
    gateway.answering.clear()
    await client.send(
        b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
        b"1\r\na\r\n0\r\nX-Trailer: 1\r\nE2b-Traffic-Access-Token: t\r\nHost: other\r\n\r\n"
    )
    await gateway.until_asked("route", 1)
    gateway.answering.set()
    answer = await client.message()

    assert answer.body == (
        b"POST / HTTP/1.1\nhost: 8000-isandbox.e2b.app\ntransfer-encoding: chunked\n\na"
    )


async def test_trailers_of_an_answer_are_dropped(sandbox, client):
    async def answers(wire):
        while True:
            await wire.head()
            await wire.send(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-T: 1\r\n\r\n"
            )

    await sandbox(answers)
    await client.send(GET)
    first = await client.message()
    await client.send(GET)
    second = await client.message()

    assert first.body == second.body == b"a"
    assert "x-t" not in second.headers


async def test_a_connection_is_used_again_on_both_sides(sandbox, client, gateway):
    service = await sandbox()
    for _ in range(5):
        await client.send(GET)
        assert (await client.message()).status == 200

    assert len(service.connections) == 1
    assert gateway.asked == {"route": 1, "dial": 1}


async def test_pipelined_requests_are_answered_in_their_order(sandbox, client):
    await sandbox()
    await client.send(
        b"".join(b"GET /%d HTTP/1.1\r\n" % number + HOST + b"\r\n" for number in range(200))
    )
    answers = [await client.message() for _ in range(200)]

    assert [int(answer.body.split()[1][1:]) for answer in answers] == list(range(200))


async def test_pipelined_requests_of_several_sandboxes_keep_their_order(
    sandbox, service, gateway, client
):
    await sandbox()
    other = await service(http_wire.echo)
    gateway.add("iother", {8000: other.port})
    heads = [
        b"GET / HTTP/1.1\r\nHost: 8000-%b.e2b.app\r\n\r\n" % name
        for name in (b"isandbox", b"inone", b"iother", b"bad_name", b"isandbox")
    ]
    await client.send(b"".join(heads))
    answers = [await client.message() for _ in heads]

    assert [answer.status for answer in answers] == [200, 502, 200, 400, 200]
    assert b"iother" in answers[2].body


async def test_the_answer_to_head_has_no_body(sandbox, client):
    async def answers(wire):
        while True:
            await wire.head()
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")

    await sandbox(answers)
    await client.send(
        b"HEAD / HTTP/1.1\r\n" + HOST + b"\r\n" + b"HEAD / HTTP/1.1\r\n" + HOST + b"\r\n"
    )
    first = await client.message(has_body=False)
    second = await client.message(has_body=False)

    assert first.headers["content-length"] == second.headers["content-length"] == "5"


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_answers_without_body_end_with_their_head(sandbox, client, status):
    async def answers(wire):
        while True:
            await wire.head()
            await wire.send(b"HTTP/1.1 " + status + b"\r\nETag: a\r\n\r\n")

    await sandbox(answers)
    await client.send(GET + GET)
    first = await client.message()
    second = await client.message()

    assert first.first == second.first == f"HTTP/1.1 {status.decode()}"
    assert "transfer-encoding" not in first.headers


async def test_an_answer_that_ends_with_its_connection_is_sent_in_chunks(sandbox, client):
    async def answers(wire):
        await wire.head()
        await wire.send(b"HTTP/1.0 200 OK\r\n\r\nhello")

    await sandbox(answers)
    await client.send(GET)
    first = await client.message()
    await client.send(GET)
    second = await client.message()

    assert first.headers["transfer-encoding"] == "chunked"
    assert first.body == second.body == b"hello"


async def test_a_client_of_http_1_0_gets_no_chunks(sandbox, client):
    async def answers(wire):
        await wire.head()
        await wire.send(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
        )

    await sandbox(answers)
    await client.send(b"GET / HTTP/1.0\r\n" + HOST + b"\r\n")
    answer = await client.head()
    body = await client.rest()

    assert answer.headers == {"connection": "close"}
    assert body == b"hello"


async def test_expect_continue_is_the_services_to_answer(sandbox, client):
    async def answers(wire):
        request = await wire.head()
        assert request.headers["expect"] == "100-continue"
        await wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await wire.exactly(5)
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + body)

    await sandbox(answers)
    await client.send(
        b"PUT / HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    )
    interim = await client.head()
    await client.send(b"hello")
    answer = await client.message()

    assert interim.first == "HTTP/1.1 100 Continue"
    assert (answer.status, answer.body) == (200, b"hello")


async def test_an_early_answer_reaches_a_client_that_still_sends(sandbox, client):
    async def answers(wire):
        await wire.head()
        await wire.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await wire.rest()

    await sandbox(answers)
    await client.send(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 100000000\r\n\r\n")
    sending = asyncio.create_task(client.send(b"x" * 20_000_000))
    answer = await client.message()
    await sending

    assert (answer.status, answer.body) == (413, b"no")


async def test_links_of_an_early_hint_pass(sandbox, client):
    async def answers(wire):
        await wire.head()
        await wire.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    await sandbox(answers)
    await client.send(GET)
    hint = await client.head()
    answer = await client.message()

    assert (hint.status, hint.headers) == (103, {"link": "</a>"})
    assert answer.status == 200


async def test_cookies_of_an_answer_stay_apart(sandbox, client):
    async def answers(wire):
        await wire.head()
        await wire.send(
            b"HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 0\r\n\r\n"
        )

    await sandbox(answers)
    await client.send(GET)
    head = await client.until(b"\r\n\r\n")

    assert head.count(b"Set-Cookie: ") == 2


async def test_many_first_requests_at_once_ask_for_the_route_once(sandbox, port, gateway):
    await sandbox()
    gateway.answering.clear()

    async def one():
        async with http_wire.connect(port) as wire:
            await wire.send(GET)
            return (await wire.message()).status

    asked = [asyncio.create_task(one()) for _ in range(50)]
    await gateway.until_asked("route", 1)
    gateway.answering.set()
    statuses = await asyncio.gather(*asked)

    assert set(statuses) == {200}
    assert gateway.asked["route"] == 1


async def test_a_sandbox_made_right_after_it_was_missed_is_found(sandbox, client):
    await client.send(GET)
    missing = await client.message()
    await sandbox()
    await client.send(GET)
    found = await client.message()

    assert (missing.status, found.status) == (502, 200)
    assert json.loads(missing.body)["message"] == "The sandbox was not found"
