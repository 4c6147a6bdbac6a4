"""HTTP/2 without TLS over a real socket: what other clients and hostile ones do to it."""

import asyncio
import os
from collections import deque
from contextlib import asynccontextmanager

import httpx
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, ResponseReceived, StreamEnded, StreamReset
from http_serving import serving

from opene2b.connect import http2
from opene2b.connect.http import FileBody, Request, Response


@asynccontextmanager
async def client(port: int):
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", http1=False, http2=True, timeout=10
    ) as http:
        yield http


class Raw:
    """A client that says exactly what it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.h2 = H2Connection(H2Configuration(client_side=True, validate_outbound_headers=False))
        self.events = deque()
        self.h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())

    def ask(self, stream: int, path: str, *, method: str = "GET", end: bool = True) -> None:
        head = [
            (":method", method),
            (":scheme", "http"),
            (":authority", "x"),
            (":path", path),
        ]
        self.h2.send_headers(stream, head, end_stream=end)
        self.flush()

    async def until(self, *kinds: type) -> list:
        """Events up to the first of one of the kinds."""
        seen = []
        while True:
            while self.events:
                seen.append(self.events.popleft())
                if seen[-1] is None or isinstance(seen[-1], kinds):
                    return seen
            data = await asyncio.wait_for(self.reader.read(65536), 10)
            self.events += self.h2.receive_data(data) if data else [None]
            self.flush()


@asynccontextmanager
async def raw(port: int):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Raw(reader, writer)
    finally:
        writer.transport.abort()


async def echo(request: Request) -> Response:
    body = await request.read(limit=10 << 20)
    return Response(200, [("X-Path", request.path), ("Connection", "close")], body)


async def test_calls_share_a_connection_and_do_not_wait_for_each_other():
    release = asyncio.Event()

    async def handler(request: Request) -> Response:
        if request.path == "/slow":
            await release.wait()
        return Response(200, body=request.path.encode())

    async with serving(handler) as port, client(port) as http:
        slow = asyncio.create_task(http.get("/slow"))
        await asyncio.sleep(0)
        fast = await http.get("/fast")
        release.set()
        answers = [fast.content, (await slow).content]

    assert answers == [b"/fast", b"/slow"]
    assert fast.http_version == "HTTP/2"


async def test_bodies_larger_than_every_window_pass_both_ways():
    body = os.urandom(3 << 20)
    async with serving(echo) as port, client(port) as http:
        answer = await http.post("/a%20b", content=body)

    assert answer.content == body
    assert answer.headers["x-path"] == "/a b"
    assert "connection" not in answer.headers


async def test_a_file_is_sent_and_its_descriptor_closed(tmp_path):
    (tmp_path / "f").write_bytes(b"0123456789" * 100_000)
    opened = []

    async def handler(request: Request) -> Response:
        opened.append(os.open(tmp_path / "f", os.O_RDONLY))
        return Response(200, body=FileBody(opened[-1], 10, 500_000))

    async with serving(handler) as port, client(port) as http:
        answer = await http.get("/")
        head = await http.head("/")

    assert answer.content == b"0123456789" * 50_000
    assert head.headers["content-length"] == "500000"
    for fd in opened:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


async def test_each_chunk_of_a_stream_is_sent_at_once():
    more = asyncio.Event()

    async def chunks():
        yield b"one"
        await more.wait()
        yield b"two"

    async def handler(request: Request) -> Response:
        return Response(200, body=chunks())

    async with serving(handler) as port, client(port) as http:
        async with http.stream("GET", "/") as answer:
            parts = answer.aiter_raw()
            first = await asyncio.wait_for(anext(parts), 5)
            more.set()
            rest = [part async for part in parts]

    assert (first, b"".join(rest)) == (b"one", b"two")


async def test_a_request_that_is_taken_back_ends_its_handler_alone():
    ended = asyncio.Event()

    async def handler(request: Request) -> Response:
        if request.path == "/wait":
            try:
                await request.disconnected()
            finally:
                ended.set()
        return Response(200, body=b"here")

    async with serving(handler) as port, raw(port) as it:
        it.ask(1, "/wait")
        it.ask(3, "/other")
        await it.until(StreamEnded)
        it.h2.reset_stream(1)
        it.flush()
        await asyncio.wait_for(ended.wait(), 5)
        it.ask(5, "/after")
        events = await it.until(StreamEnded)

    assert any(isinstance(event, ResponseReceived) for event in events)


async def test_an_upload_that_nobody_reads_does_not_fill_memory():
    async def handler(request: Request) -> Response:
        await request.disconnected()
        return Response(200)

    async with serving(handler) as port, raw(port) as it:
        it.ask(1, "/", method="POST", end=False)
        await asyncio.sleep(0.1)
        it.h2.receive_data(await it.reader.read(65536))
        sent = 0
        while room := it.h2.local_flow_control_window(1):
            size = min(room, 16384)
            it.h2.send_data(1, b"x" * size)
            sent += size
        it.flush()
        await asyncio.sleep(0.1)
        room = it.h2.local_flow_control_window(1)

    assert sent == http2.STREAM_WINDOW_BYTES
    assert room == 0


async def test_a_body_that_is_not_wanted_costs_later_requests_nothing():
    async def handler(request: Request) -> Response:
        return Response(200, body=request.path.encode())

    async with serving(handler) as port, client(port) as http:
        for _ in range(12):
            answer = await http.post("/no", content=b"x" * 200_000)

    assert answer.content == b"/no"


async def test_a_flood_of_requests_taken_back_ends_the_connection(monkeypatch):
    monkeypatch.setattr(http2, "MAX_RESETS", 20)

    async def handler(request: Request) -> Response:
        await request.disconnected()
        return Response(200)

    async with serving(handler) as port, raw(port) as it:
        for stream in range(1, 61, 2):
            it.ask(stream, "/")
            it.h2.reset_stream(stream)
        it.flush()
        last = (await it.until(ConnectionTerminated))[-1]

    assert last.error_code == 11  # ENHANCE_YOUR_CALM


async def test_a_head_that_is_too_large_is_refused():
    async with serving(echo) as port, raw(port) as it:
        head = [(":method", "GET"), (":scheme", "http"), (":authority", "x"), (":path", "/")]
        head += [(f"x-{number}", "v") for number in range(300)]
        it.h2.send_headers(1, head, end_stream=True)
        it.flush()
        last = (await it.until(StreamReset, ResponseReceived))[-1]

    assert isinstance(last, StreamReset)


@pytest.mark.parametrize(
    "rubbish",
    [b"", b"\0" * 9, b"\0\0\x04\x01\x05\0\0\0\x01\xff\xff\xff\xff", b"\0@\x01" + b"\xff" * 20000],
    ids=["end", "data without a stream", "head that is none", "frame too long"],
)
async def test_rubbish_behind_the_preface_ends_the_connection(rubbish):
    async with serving(echo) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(http2.PREFACE + b"\0\0\0\x04\0\0\0\0\0" + rubbish)
            if not rubbish:
                writer.write_eof()
            told = await asyncio.wait_for(reader.read(), 5)
        finally:
            writer.transport.abort()

    assert told[3] == 4  # its settings come first, whatever we said


async def test_a_preface_in_pieces_is_understood():
    async with serving(echo) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for at in range(len(http2.PREFACE)):
            writer.write(http2.PREFACE[at : at + 1])
            await asyncio.sleep(0.001)
        head = await asyncio.wait_for(reader.readexactly(9), 5)
        writer.transport.abort()

    assert head[3] == 4


@pytest.mark.parametrize("method", [b"P", b"PR", b"POST", b"PUT"], ids=repr)
async def test_what_begins_like_a_preface_and_is_none_is_http1(method):
    async with serving(echo) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for piece in (method, b" /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"):
            writer.write(piece)
            await asyncio.sleep(0.01)
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()

    assert answer.startswith(b"HTTP/1.1 200" if len(method) > 2 else b"HTTP/1.1 400")


async def test_an_offer_to_upgrade_is_passed_over():
    sent = b"GET /%b HTTP/1.1\r\nHost: x\r\nConnection: %b\r\nUpgrade: h2c\r\n\r\n"
    async with serving(echo) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent % (b"one", b"Upgrade") + sent % (b"two", b"Upgrade, close"))
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()

    assert answer.count(b"HTTP/1.1 200") == 2
    assert b"X-Path: /two" in answer


async def test_data_events_of_a_stream_carry_the_bytes_in_order():
    async def chunks():
        for number in range(50):
            yield b"%04d" % number * 1000

    async def handler(request: Request) -> Response:
        return Response(200, body=chunks())

    async with serving(handler) as port, raw(port) as it:
        it.ask(1, "/")
        received = b""
        ended = False
        while not ended:
            for event in await it.until(DataReceived, StreamEnded):
                if isinstance(event, DataReceived):
                    received += event.data
                    it.h2.acknowledge_received_data(event.flow_controlled_length, 1)
                    it.flush()
                ended = ended or isinstance(event, StreamEnded) or event is None

    assert received == b"".join(b"%04d" % number * 1000 for number in range(50))
