"""Moving bytes to and from a sandbox through the sandbox proxy: a raw client, and what the stock SDK makes of it."""

import http.client
import json
import re
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from e2b import Sandbox

MIB = 1 << 20
SIZE = 192 * MIB
"""Fits into the memory of a sandbox: its disk is not the subject."""
FILE = "/dev/shm/opene2b-bench"
ENVD_COMMANDS = 1000


class Raw:
    def __init__(self, sandbox: Sandbox, proxy_url: str) -> None:
        parts = urlsplit(proxy_url)
        self.sandbox = sandbox
        self.address = (parts.hostname or "", parts.port or 80)
        self.headers = {
            "E2b-Sandbox-Id": sandbox.sandbox_id,
            "E2b-Sandbox-Port": "49983",
            "X-Access-Token": sandbox._envd_access_token or "",
        }

    def head(self, method: str, path: str, length: int, kind: str) -> bytes:
        headers = {
            **self.headers,
            "Host": "bench",
            "Content-Length": str(length),
            "Content-Type": kind,
            "Connection": "close",
        }
        lines = [
            f"{method} {path} HTTP/1.1",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def drain(self, connection: socket.socket) -> int:
        buffer, size = bytearray(MIB), 0
        while count := connection.recv_into(buffer):
            assert size or buffer.startswith(b"HTTP/1.1 200"), bytes(buffer[:200])
            size += count
        return size

    def upload(self) -> int:
        block = b"x" * MIB
        with socket.create_connection(self.address, timeout=120) as connection:
            kind = "application/octet-stream"
            connection.sendall(self.head("POST", f"/files?path={FILE}", SIZE, kind))
            for _ in range(SIZE // MIB):
                connection.sendall(block)
            self.drain(connection)
        return SIZE

    def download(self) -> int:
        with socket.create_connection(self.address, timeout=120) as connection:
            connection.sendall(self.head("GET", f"/files?path={FILE}", 0, "text/plain"))
            assert self.drain(connection) > SIZE
        return SIZE

    def output(self) -> int:
        """Payload of a program that prints; on the wire it is a third more."""
        message = json.dumps(
            {"process": {"cmd": "/usr/bin/head", "args": ["-c", str(SIZE), "/dev/zero"]}}
        ).encode()
        body = b"\0" + struct.pack(">I", len(message)) + message
        with socket.create_connection(self.address, timeout=120) as connection:
            kind = "application/connect+json"
            connection.sendall(self.head("POST", "/process.Process/Start", len(body), kind) + body)
            assert self.drain(connection) > SIZE * 4 // 3
        return SIZE

    def commands(self, count: int) -> None:
        connection = http.client.HTTPConnection(*self.address)
        message = json.dumps({"process": {"cmd": "/bin/echo", "args": ["hello"]}}).encode()
        body = b"\0" + struct.pack(">I", len(message)) + message
        for _ in range(count):
            connection.request(
                "POST",
                "/process.Process/Start",
                body,
                {**self.headers, "Content-Type": "application/connect+json"},
            )
            assert b'"exited":true' in connection.getresponse().read()


def rate(work: Callable[[], int]) -> float:
    """MB/s."""
    begun = time.perf_counter()
    size = work()
    return size / 1e6 / (time.perf_counter() - begun)


def measure(add: Callable[[str, list[float], str], None], proxy_url: str) -> None:
    sandbox = Sandbox.create(timeout=600)
    try:
        raw = Raw(sandbox, proxy_url)

        def sdk_write() -> int:
            sandbox.files.write(FILE, b"x" * SIZE)
            return SIZE

        def sdk_read() -> int:
            return len(sandbox.files.read(FILE, format="bytes"))

        def sdk_output() -> int:
            command = f"head -c {SIZE} /dev/zero | tr '\\0' x"
            return len(sandbox.commands.run(command).stdout)

        for name, work in (
            ("upload through the proxy", raw.upload),
            ("download through the proxy", raw.download),
            ("output of a program through the proxy", raw.output),
            ("files.write of the SDK", sdk_write),
            ("files.read of the SDK", sdk_read),
            ("output of commands.run of the SDK", sdk_output),
        ):
            add(name, [rate(work) for _ in range(5)], "MB/s")
        sandbox.files.remove(FILE)
    finally:
        sandbox.kill()


def measure_envd_memory(add: Callable[[str, list[float], str], None], proxy_url: str) -> None:
    """Private memory of envd after many commands, in fresh sandboxes."""
    samples = []
    for _ in range(3):
        sandbox = Sandbox.create(timeout=600)
        try:
            Raw(sandbox, proxy_url).commands(ENVD_COMMANDS)
            for group in Path("/proc").glob("[0-9]*/cgroup"):
                try:
                    if f"/opene2b/{sandbox.sandbox_id}" not in group.read_text():
                        continue
                    if (group.parent / "comm").read_text().strip() != "envd":
                        continue
                    text = (group.parent / "smaps_rollup").read_text()
                except OSError:
                    continue
                private = re.findall(r"^Private_(?:Clean|Dirty):\s+(\d+)", text, re.M)
                samples.append(sum(map(int, private)) / 1024)
        finally:
            sandbox.kill()
    add(f"private memory of envd, {ENVD_COMMANDS} commands", samples, "MiB")
