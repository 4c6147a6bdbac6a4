"""What the sandbox proxy costs: the same requests straight to a server and through the proxy, in one run.

Prints a table and, if asked, writes JSON. Client, proxy and server are processes of this machine and share its cores, so only
the ratios mean something; they are of medians over alternating rounds. nginx, where it is installed, goes the same way for
reference: one worker, connections to the server kept.
"""

import argparse
import asyncio
import contextlib
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import uvloop

from opene2b.proxy import server
from opene2b.testing import fake_gateway

MIB = 1 << 20
DOWNLOAD_BYTES = 256 * MIB
BLOCK = b"x" * (256 << 10)
SMALL = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, world\n"
ROUTING = "E2b-Sandbox-Id: ibench\r\nE2b-Sandbox-Port: 8000\r\n"
NGINX = """daemon off; worker_processes 1; pid {dir}/pid; error_log stderr error;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_max_body_size 0; keepalive_requests 1000000000;
  client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u;
  scgi_temp_path {dir}/s;
  upstream one {{ server 127.0.0.1:{upstream}; keepalive 256; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://one; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_request_buffering off; }}
  }}
}}
"""


class Upstream(asyncio.Protocol):
    """The server: `/` is small, `/large` is large, a PUT is swallowed."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.head = b""
        self.left_up = 0
        self.left_down = 0
        self.paused = False

    def data_received(self, data: bytes) -> None:
        if self.left_up:
            self.swallow(len(data))
            return
        self.head += data
        while (end := self.head.find(b"\r\n\r\n")) >= 0:
            head, self.head = self.head[:end], self.head[end + 4 :]
            if head.startswith(b"PUT"):
                self.left_up = DOWNLOAD_BYTES
                early, self.head = len(self.head), b""
                self.swallow(early)
            elif head.startswith(b"GET /large"):
                self.left_down = DOWNLOAD_BYTES
                self.transport.write(
                    b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % DOWNLOAD_BYTES
                )
                self.pour()
            else:
                self.transport.write(SMALL)

    def swallow(self, size: int) -> None:
        self.left_up -= size
        if not self.left_up:
            self.transport.write(SMALL)

    def pour(self) -> None:
        while self.left_down and not self.paused:
            self.left_down -= len(BLOCK)
            self.transport.write(BLOCK)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self.pour()


async def serve_upstream() -> None:
    listening = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0)
    print(listening.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


async def serve_proxy(gateway_socket: Path) -> None:
    async with server.serve(gateway_socket, "127.0.0.1", 0) as (_, port):
        print(port, flush=True)
        await asyncio.Event().wait()


class Asker(asyncio.Protocol):
    """A client that asks again as soon as it is answered."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.answers = 0
        self.size = 0
        self.expected = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.size += len(data)
        if not self.expected:
            # nginx adds two headers, and always the same ones.
            assert data.startswith(b"HTTP/1.1 200 "), data
            assert data.endswith(b"Hello, world\n"), data
            self.expected = len(data)
        if self.size == self.expected:
            self.size = 0
            self.answers += 1
            self.transport.write(self.request)


async def requests_per_second(port: int, clients: int, seconds: float) -> float:
    loop = asyncio.get_running_loop()
    request = f"GET / HTTP/1.1\r\nHost: localhost\r\n{ROUTING}\r\n".encode()
    made = [
        await loop.create_connection(lambda: Asker(request), "127.0.0.1", port)
        for _ in range(clients)
    ]
    askers = [asker for _, asker in made]
    await asyncio.sleep(0.1)
    before, began = sum(asker.answers for asker in askers), time.perf_counter()
    await asyncio.sleep(seconds)
    rate = (sum(asker.answers for asker in askers) - before) / (time.perf_counter() - began)
    for transport, _ in made:
        transport.abort()
    return rate


async def connections_per_second(port: int, seconds: float) -> float:
    """A new connection for each request, 8 at once."""
    request = f"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{ROUTING}\r\n".encode()
    done, until = 0, time.perf_counter() + seconds

    async def one_by_one() -> None:
        nonlocal done
        while time.perf_counter() < until:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            await reader.readuntil(b"Hello, world\n")
            writer.close()
            done += 1

    await asyncio.gather(*(one_by_one() for _ in range(8)))
    return done / seconds


class Taker(asyncio.Protocol):
    def __init__(self, done: "asyncio.Future[None]") -> None:
        self.left = DOWNLOAD_BYTES
        self.done = done

    def data_received(self, data: bytes) -> None:
        self.left -= len(data)
        if self.left <= 0 and not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionResetError())


async def download(port: int) -> float:
    """MB/s"""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    transport, _ = await loop.create_connection(lambda: Taker(done), "127.0.0.1", port)
    began = time.perf_counter()
    transport.write(f"GET /large HTTP/1.1\r\nHost: localhost\r\n{ROUTING}\r\n".encode())
    await done
    taken = time.perf_counter() - began
    transport.abort()
    return DOWNLOAD_BYTES / 1e6 / taken


async def upload(port: int) -> float:
    """MB/s"""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = time.perf_counter()
    head = f"PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {DOWNLOAD_BYTES}\r\n{ROUTING}\r\n"
    writer.write(head.encode())
    for _ in range(DOWNLOAD_BYTES // len(BLOCK)):
        writer.write(BLOCK)
        await writer.drain()
    await reader.readuntil(b"Hello, world\n")
    taken = time.perf_counter() - began
    writer.close()
    return DOWNLOAD_BYTES / 1e6 / taken


@contextlib.contextmanager
def process(*arguments: str) -> Iterator[int]:
    """This file as another program; gives the port that it prints."""
    child = subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE)
    assert child.stdout is not None
    try:
        yield int(child.stdout.readline())
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()


@contextlib.asynccontextmanager
async def nginx(upstream: int) -> AsyncIterator[int | None]:
    program = shutil.which("nginx")
    if program is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as directory:
        holder = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = holder.sockets[0].getsockname()[1]
        holder.close()
        config = Path(directory) / "nginx.conf"
        config.write_text(NGINX.format(dir=directory, port=port, upstream=upstream))
        child = await asyncio.create_subprocess_exec(program, "-p", directory, "-c", str(config))
        try:
            async with asyncio.timeout(5):
                while True:
                    try:
                        (await asyncio.open_connection("127.0.0.1", port))[1].close()
                        break
                    except ConnectionRefusedError:
                        await asyncio.sleep(0.02)
            yield port
        finally:
            child.terminate()
            await child.wait()


async def measure(seconds: float, rounds: int) -> dict[str, dict[str, float]]:
    kinds: dict[str, Callable[[int], Awaitable[float]]] = {
        "requests/s, 1 connection": lambda port: requests_per_second(port, 1, seconds),
        "requests/s, 32 connections": lambda port: requests_per_second(port, 32, seconds),
        "new connections/s": lambda port: connections_per_second(port, seconds),
        "download MB/s": download,
        "upload MB/s": upload,
    }
    figures: dict[str, dict[str, list[float]]] = {kind: {} for kind in kinds}
    with tempfile.TemporaryDirectory() as directory:
        async with fake_gateway.serve(Path(directory) / "g.sock") as gateway:
            with process("--serve-upstream") as direct:
                gateway.add("ibench", {8000: direct})
                with process("--serve-proxy", str(gateway.path)) as proxy:
                    async with nginx(direct) as reference:
                        ways = {"direct": direct, "proxy": proxy, "nginx": reference}
                        for _ in range(rounds):
                            for kind, run in kinds.items():
                                for way, port in ways.items():
                                    if port is not None:
                                        figures[kind].setdefault(way, []).append(await run(port))
    return {
        kind: {way: statistics.median(samples) for way, samples in by_way.items()}
        for kind, by_way in figures.items()
    }


def table(figures: dict[str, dict[str, float]]) -> str:
    lines = [f"{'':30}{'direct':>12}{'proxy':>12}{'ratio':>8}{'nginx':>12}{'ratio':>8}"]
    for kind, by_way in figures.items():
        cells = f"{by_way['direct']:>12.0f}"
        for way in ("proxy", "nginx"):
            if way in by_way:
                cells += f"{by_way[way]:>12.0f}{by_way[way] / by_way['direct']:>8.2f}"
            else:
                cells += f"{'-':>12}{'-':>8}"
        lines.append(f"{kind:30}{cells}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve-upstream", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--serve-proxy", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if options.serve_upstream:
            runner.run(serve_upstream())
        elif options.serve_proxy is not None:
            runner.run(serve_proxy(options.serve_proxy))
        else:
            figures = runner.run(measure(options.seconds, options.rounds))
            print(table(figures))
            if options.json is not None:
                options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
