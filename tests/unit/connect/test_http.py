"""The HTTP server by transcript: bytes in, bytes out, over a real socket."""

import asyncio
import os
import re
from contextlib import asynccontextmanager, suppress

import pytest
from http_serving import serving

from opene2b.connect.http import FileBody, Request, Response


@asynccontextmanager
async def connected(port: int):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def talk(port: int, sent: bytes, *, until_close: bool = True) -> bytes:
    async with connected(port) as (reader, writer):
        writer.write(sent)
        return await asyncio.wait_for(reader.read() if until_close else reader.readline(), 5)


async def echo(request: Request) -> Response:
    body = await request.read(limit=1000)
    return Response(200, [("X-Path", request.path)], request.method.encode() + b" " + body)


CLOSE = b"Connection: close\r\n\r\n"


async def test_pipelined_requests_are_answered_in_order():
    async with serving(echo) as port:
        sent = b"POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n%d"
        answer = await talk(
            port, b"".join(sent % (n, n) for n in range(5)) + b"GET /end HTTP/1.1\r\n" + CLOSE
        )

    assert re.findall(rb"X-Path: /(\w+)", answer) == [b"0", b"1", b"2", b"3", b"4", b"end"]


async def test_a_chunked_body_is_read_whole():
    async with serving(echo) as port:
        answer = await talk(
            port,
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
            b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
        )

    assert answer.endswith(b"POST abcde")


async def test_a_body_over_the_limit_of_its_handler_raises_there():
    async def refuse(request: Request) -> Response:
        try:
            await request.read(limit=10)
        except Exception as exc:
            return Response(exc.http_status, (), b"")
        return Response(200)

    async with serving(refuse) as port:
        answer = await talk(port, b"POST / HTTP/1.1\r\nContent-Length: 11\r\n" + CLOSE + b"x" * 11)

    assert answer.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 1x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"NONSENSE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/1.1\r\nBad Name: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_a_malformed_request_is_refused_and_the_connection_ended(sent):
    async with serving(echo) as port:
        answer = await talk(port, sent)

    # A body that breaks off in the middle has no answer: its handler was already at work.
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")


async def test_an_endless_head_is_refused():
    async with serving(echo) as port:
        answer = await talk(port, b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000)

    assert answer.startswith(b"HTTP/1.1 431 ")


async def test_continue_is_said_when_the_body_is_wanted():
    async with serving(echo) as port, connected(port) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        first = await asyncio.wait_for(reader.readline(), 5)
        writer.write(b"ok")
        rest = await asyncio.wait_for(reader.readuntil(b"POST ok"), 5)

    assert first == b"HTTP/1.1 100 Continue\r\n"
    assert b"200 OK" in rest


async def test_each_chunk_of_a_stream_is_sent_at_once():
    go = asyncio.Event()

    async def stream(request: Request) -> Response:
        async def chunks():
            yield b"first"
            await go.wait()
            yield b"second"

        return Response(200, (), chunks())

    async with serving(stream) as port, connected(port) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        early = await asyncio.wait_for(reader.readuntil(b"first\r\n"), 5)
        go.set()
        late = await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 5)

    assert b"second" not in early
    assert late == b"6\r\nsecond\r\n0\r\n\r\n"


async def test_a_client_that_leaves_ends_the_handler():
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def wait(request: Request) -> Response:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return Response(200)

    async with serving(wait) as port, connected(port) as (_, writer):
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await asyncio.wait_for(begun.wait(), 5)
        writer.close()

        await asyncio.wait_for(cancelled.wait(), 5)


async def test_a_part_of_a_file_is_sent_and_its_descriptor_closed(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 8192)
    opened = []

    async def send(request: Request) -> Response:
        opened.append(os.open(path, os.O_RDONLY))
        return Response(200, (), FileBody(opened[-1], 256, 1 << 20))

    async with serving(send) as port:
        answer = await talk(port, b"GET / HTTP/1.1\r\n" + CLOSE)

    assert answer.partition(b"\r\n\r\n")[2] == path.read_bytes()[256 : 256 + (1 << 20)]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])


async def test_head_has_the_length_and_no_body():
    async with serving(echo) as port:
        answer = await talk(port, b"HEAD / HTTP/1.1\r\n" + CLOSE)

    assert b"Content-Length: 5\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


async def test_an_upload_that_nobody_reads_does_not_fill_memory():
    held = asyncio.Event()
    seen: list[Request] = []

    async def hold(request: Request) -> Response:
        seen.append(request)
        await held.wait()
        return Response(200)

    async with serving(hold) as port, connected(port) as (_, writer):
        writer.write(b"POST / HTTP/1.1\r\nContent-Length: 100000000\r\n\r\n")
        for _ in range(50):
            writer.write(b"x" * 1_000_000)
            try:
                await asyncio.wait_for(writer.drain(), 0.1)
            except TimeoutError:
                break
        buffered = seen[0].buffered
        held.set()

    assert buffered < 2_000_000


async def test_the_head_of_a_stream_waits_for_its_first_part():
    may_answer = asyncio.Event()

    async def parts():
        await may_answer.wait()
        yield b"first"

    async def handler(request: Request) -> Response:
        return Response(200, (), parts())

    async with serving(handler) as port, connected(port) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\n" + CLOSE)
        early = asyncio.create_task(reader.read(1))
        done, _ = await asyncio.wait({early}, timeout=0.05)
        may_answer.set()
        rest = await asyncio.wait_for(early, 5) + await asyncio.wait_for(reader.read(), 5)

    assert not done
    assert rest.startswith(b"HTTP/1.1 200")
    assert rest.endswith(b"first\r\n0\r\n\r\n")
