"""What does not get through: messages with two meanings, wrong tokens, envd's own routes, and too much of anything."""

import asyncio
import json

import http_wire
import pytest
from http_wire import LIMIT_S

HOST = b"Host: 8000-isandbox.e2b.app\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"
POST = b"POST / HTTP/1.1\r\n" + HOST
BROWSER = b"User-Agent: Mozilla/5.0\r\n"

TWO_MEANINGS = {
    "two framings": POST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two framings, turned": POST
    + b"Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n0\r\n\r\n",
    "two lengths": POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\naa",
    "one length twice": POST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\na",
    "a list of lengths": POST + b"Content-Length: 1, 1\r\n\r\na",
    "a length with a sign": POST + b"Content-Length: +1\r\n\r\na",
    "a negative length": POST + b"Content-Length: -1\r\n\r\n",
    "a length in hex": POST + b"Content-Length: 0x1\r\n\r\na",
    "an empty length": POST + b"Content-Length:\r\n\r\n",
    "a length beyond all": POST + b"Content-Length: 99999999999999999999\r\n\r\n",
    "chunked twice": POST
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked, but not last": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "an unknown coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a coding behind a tab": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a coding in HTTP/1.0": b"POST / HTTP/1.0\r\n"
    + HOST
    + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a name before a space": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a folded line": POST + b"X: a\r\n b\r\n\r\n",
    "a folded first line": b"GET / HTTP/1.1\r\n " + HOST + b"\r\n",
    "a bare LF after the first line": b"GET / HTTP/1.1\n" + HOST + b"\r\n",
    "a bare LF after a header": b"GET / HTTP/1.1\r\n" + HOST + b"X: a\nY: b\r\n\r\n",
    "a bare LF at the end": b"GET / HTTP/1.1\r\n" + HOST + b"\n",
    "a bare CR in a value": b"GET / HTTP/1.1\r\n" + HOST + b"X: a\rY: b\r\n\r\n",
    "NUL in a value": b"GET / HTTP/1.1\r\n" + HOST + b"X: a\0b\r\n\r\n",
    "NUL in a name": b"GET / HTTP/1.1\r\n" + HOST + b"X\0: a\r\n\r\n",
    "NUL in the target": b"GET /\0 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a space in the target": b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n",
    "a header without a name": b"GET / HTTP/1.1\r\n" + HOST + b": a\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\n" + HOST + b"Host: 8000-iother.e2b.app\r\n\r\n",
    "CONNECT": b"CONNECT 8000-isandbox.e2b.app:80 HTTP/1.1\r\n" + HOST + b"\r\n",
    "no version": b"GET /\r\n\r\n",
    "noise": b"\x16\x03\x01\x02\x00\x01\x00\x01",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "two routing headers": b"GET / HTTP/1.1\r\nHost: a\r\nE2b-Sandbox-Id: isandbox\r\nE2b-Sandbox-Id: iother\r\n"
    b"E2b-Sandbox-Port: 8000\r\n\r\n",
}


@pytest.mark.parametrize("request_bytes", TWO_MEANINGS.values(), ids=TWO_MEANINGS.keys())
async def test_what_can_be_read_in_two_ways_is_refused_and_the_connection_closed(
    sandbox, client, gateway, request_bytes
):
    await sandbox()
    await client.send(request_bytes)
    answer = await client.message()

    assert answer.status in {400, 501, 505}
    assert answer.headers["connection"] == "close"
    assert await client.closed()
    assert gateway.asked["dial"] == 0


async def test_a_request_needs_a_host(client):
    await client.send(b"GET / HTTP/1.1\r\n\r\n")
    answer = await client.message()

    assert (answer.status, answer.body) == (400, b"Invalid host")


@pytest.mark.parametrize(
    "coding", [b"gzip, chunked", b"gzip"], ids=["behind another coding", "another coding"]
)
async def test_other_codings_are_not_implemented(sandbox, client, gateway, coding):
    await sandbox()
    await client.send(POST + b"Transfer-Encoding: " + coding + b"\r\n\r\n0\r\n\r\n")
    answer = await client.message()

    assert answer.status in {400, 501}
    assert await client.closed()
    assert gateway.asked["dial"] == 0


@pytest.mark.parametrize("version", [b"HTTP/2.0", b"HTTP/0.9"])
async def test_other_versions_are_refused(sandbox, client, version):
    await sandbox()
    await client.send(b"GET / " + version + b"\r\n" + HOST + b"\r\n")

    assert (await client.message()).status == 505


BROKEN_BODIES = {
    "a size that is none": b"x\r\na\r\n0\r\n\r\n",
    "a size in C": b"0x1\r\na\r\n0\r\n\r\n",
    "a size beyond all": b"fffffffffffffffff\r\na\r\n0\r\n\r\n",
    "a bare LF after a size": b"1\na\r\n0\r\n\r\n",
    "a bare LF in an extension": b"1;a\nb\r\na\r\n0\r\n\r\n",
    "more than the size": b"1\r\naGET / HTTP/1.1\r\n\r\n",
    "an endless extension": b"1;" + b"a" * 600_000,
    "an endless trailer": b"1\r\na\r\n0\r\nX: " + b"a" * 600_000,
}


@pytest.mark.parametrize("body", BROKEN_BODIES.values(), ids=BROKEN_BODIES.keys())
async def test_a_broken_body_ends_both_connections(sandbox, port, body):
    began = asyncio.Event()
    heard = asyncio.get_running_loop().create_future()

    async def answers(wire):
        await wire.head()
        began.set()
        heard.set_result(await wire.closed())

    await sandbox(answers)
    async with http_wire.connect(port) as client:
        await client.send(POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await asyncio.wait_for(began.wait(), LIMIT_S)
        client.writer.write(body)
        ended_well = await client.closed()
        service_ended_well = await asyncio.wait_for(heard, LIMIT_S)

    assert not ended_well
    assert not service_ended_well


async def test_a_broken_body_in_the_packet_of_its_head_is_refused(sandbox, client, gateway):
    await sandbox()
    await client.send(GET + POST + b"Transfer-Encoding: chunked\r\n\r\nx\r\n")
    first = await client.message()
    second = await client.message()

    assert (first.status, second.status) == (200, 400)
    assert await client.closed()


async def test_a_smuggled_request_is_a_body(sandbox, client):
    """Of a front end that counts chunks and a back end that counts bytes, neither is here."""
    await sandbox()
    hidden = b"GET /hidden HTTP/1.1\r\n" + HOST + b"\r\n"
    await client.send(POST + b"Content-Length: %d\r\n\r\n" % len(hidden) + hidden)
    answer = await client.message()

    assert answer.body.endswith(b"\n\n" + hidden)


# too much


async def test_a_head_of_more_than_64_kib_is_too_large(sandbox, client):
    await sandbox()
    await client.send(b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 65536 + b"\r\n\r\n")
    answer = await client.message()

    assert answer.status == 431
    assert await client.closed()


async def test_a_head_of_almost_64_kib_is_not(sandbox, port):
    await sandbox()
    async with http_wire.connect(port, limit=1 << 20) as client:
        await client.send(b"GET /%b HTTP/1.1\r\n" % (b"a" * 65000) + HOST + b"\r\n")

        assert (await client.message()).status == 200


async def test_a_head_without_an_end_is_too_large(client):
    client.writer.write(b"GET / HTTP/1.1\r\nX: " + b"a" * 400_000)

    assert (await client.message()).status == 431


async def test_too_many_headers_are_too_many(client):
    await client.send(b"GET / HTTP/1.1\r\n" + HOST + b"X: a\r\n" * 1001 + b"\r\n")

    assert (await client.message()).status == 431


async def test_a_head_that_takes_too_long_is_not_waited_for(client, monkeypatch):
    monkeypatch.setattr("opene2b.proxy.client.HEAD_LIMIT_S", 0.05)
    await client.send(b"GET / HTTP/1.1\r\n")
    answer = await client.message()

    assert answer.status == 408
    assert await client.closed()


async def test_an_idle_connection_is_closed_in_the_end(port, monkeypatch):
    monkeypatch.setattr("opene2b.proxy.client.IDLE_LIMIT_S", 0.05)
    async with http_wire.connect(port) as client:
        assert await client.closed()


async def test_a_large_upload_before_the_next_head_is_no_large_head(sandbox, client):
    await sandbox()
    body = b"x" * 200_000
    await client.send(POST + b"Content-Length: 200000\r\n\r\n" + body + GET[:20])
    first = await client.message()
    await client.send(GET[20:])
    second = await client.message()

    assert (first.status, second.status) == (200, 200)


# tokens


def get(*headers: bytes, port: int = 8000) -> bytes:
    lines = b"".join(header + b"\r\n" for header in headers)
    return b"GET /health HTTP/1.1\r\nHost: %d-isandbox.e2b.app\r\n%b\r\n" % (port, lines)


MISSING = (
    "Sandbox is secured with traffic access token."
    " Token header 'e2b-traffic-access-token' is missing"
)
INVALID = (
    "Sandbox is secured with traffic access token."
    " Provided token in header 'e2b-traffic-access-token' is invalid"
)


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ((), MISSING),
        ((b"E2B-Traffic-Access-Token: other",), INVALID),
        ((b"E2B-Traffic-Access-Token:",), INVALID),
        ((b"E2B-Traffic-Access-Token: \xff",), INVALID),
        ((b"X-Access-Token: secret",), MISSING),
    ],
)
async def test_traffic_needs_the_token_where_there_is_one(
    sandbox, client, gateway, headers, message
):
    await sandbox(traffic_access_token="secret")
    await client.send(get(*headers))
    first = await client.message()
    await client.send(get(*headers))
    second = await client.message()

    assert json.loads(first.body) == {"sandboxId": "isandbox", "message": message, "code": 403}
    assert (first.status, second.status, second.body) == (403, 403, first.body)
    assert gateway.asked["dial"] == 0


async def test_the_right_token_opens_and_does_not_reach_the_sandbox(sandbox, client):
    await sandbox(traffic_access_token="secret")
    await client.send(get(b"E2B-Traffic-Access-Token: secret", b"X-Access-Token: own"))
    answer = await client.message()

    assert answer.status == 200
    assert b"secret" not in answer.body
    assert b"x-access-token: own" in answer.body


async def test_a_connection_that_had_the_token_needs_it_again(sandbox, client):
    await sandbox(traffic_access_token="secret")
    await client.send(get(b"E2B-Traffic-Access-Token: secret") + get())
    first = await client.message()
    second = await client.message()

    assert (first.status, second.status) == (200, 403)


async def test_the_token_is_not_asked_for_at_envd(sandbox, client):
    await sandbox(http_wire.echo, 49983, traffic_access_token="secret")
    await client.send(get(port=49983))

    assert (await client.message()).status == 200


# envd's own routes

SPELLINGS = [
    b"/init",
    b"/%69nit",
    b"/%49nit",
    b"//init",
    b"/./init",
    b"/health/../init",
    b"/health/%2e%2e/init",
    b"/init/",
    b"/init?x=/health",
    b"/init#/health",
    b"/init%3f",
    b"/INIT",
    b"/init%00",
    b"/%2569nit",
    b"/health%2f..%2finit",
    b"/process.Process/../init",
    b"/init;/health",
    b"\\init",
    b"http://49983-isandbox.e2b.app/init",
    b"http://49983-isandbox.e2b.app//init",
    b"HTTP://49983-isandbox.e2b.app/%69nit",
    b"/freeze",
    b"/unknown",
    b"*",
]


@pytest.mark.parametrize("target", SPELLINGS)
@pytest.mark.parametrize("method", [b"POST", b"OPTIONS"])
async def test_no_spelling_of_an_internal_route_gets_through(
    sandbox, client, gateway, target, method
):
    await sandbox(http_wire.echo, 49983)
    await client.send(
        method + b" " + target + b" HTTP/1.1\r\nHost: 49983-isandbox.e2b.app\r\n"
        b"Content-Length: 0\r\n\r\n"
    )
    answer = await client.message()

    assert answer.status in {400, 404}
    assert gateway.asked["dial"] == 0


async def test_an_internal_route_is_a_404_with_its_path(client):
    await client.send(
        b"POST /init HTTP/1.1\r\nHost: 49983-isandbox.e2b.app\r\nContent-Length: 0\r\n\r\n"
    )
    answer = await client.message()
    body = json.loads(answer.body)

    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert (answer.status, body["code"], body["path"]) == (404, 404, "/init")
    assert set(body) == {"message", "path", "code"}


async def test_the_same_path_on_another_port_is_the_services_own(sandbox, client):
    await sandbox()
    await client.send(b"POST /init HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\n\r\n")

    assert (await client.message()).status == 200


# our own answers


async def test_our_answers_keep_the_connection(client, gateway):
    gateway.add("iempty", {})
    for _ in range(3):
        await client.send(GET)
        answer = await client.message()
        assert (answer.status, "connection" in answer.headers) == (502, False)


async def test_our_answer_to_head_has_no_body(client):
    await client.send(b"HEAD / HTTP/1.1\r\n" + HOST + b"\r\n" + GET)
    first = await client.message(has_body=False)
    second = await client.message()

    assert (first.status, second.status) == (502, 502)
    assert first.headers["content-length"] == str(len(second.body))


async def test_a_browser_gets_a_page(client):
    await client.send(b"GET / HTTP/1.1\r\n" + HOST + BROWSER + b"\r\n")
    answer = await client.message()

    assert answer.status == 502
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.body.startswith(b"<html")
    assert b"<title>Sandbox Not Found</title>" in answer.body


async def test_our_answer_reaches_a_client_that_is_still_sending(client):
    await client.send(POST + b"Content-Length: 10000000\r\n\r\n")
    sending = asyncio.create_task(client.send(b"x" * 10_000_000))
    answer = await client.message()
    await sending

    assert answer.status == 502
    assert await client.closed()
