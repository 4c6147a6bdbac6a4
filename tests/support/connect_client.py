"""A few words of Connect to speak to an envd."""

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

TOKEN = "envd-token"


@dataclass(frozen=True)
class Envd:
    port: int
    pid: int
    http: httpx.Client
    http2: bool = False

    def client(self) -> httpx.Client:
        return new_client(self.port, http2=self.http2)

    def rpc(self, method: str, message: object, **headers: str) -> httpx.Response:
        return self.http.post(f"/{method}", json=message, headers=headers)

    def stream(self, method: str, message: object, **headers: str) -> list[dict]:
        """All envelopes of a server stream; the last is the end with key `END`."""
        with self.open(method, message, **headers) as response:
            return list(envelopes(response.iter_raw()))

    @contextmanager
    def open(self, method: str, message: object, **headers: str) -> Iterator[httpx.Response]:
        """A connection of its own: over one of HTTP/2, this client's threads wait for each other's streams."""
        with (
            self.client() as client,
            client.stream(
                "POST",
                f"/{method}",
                content=frame(message),
                headers={"Content-Type": "application/connect+json", **headers},
            ) as response,
        ):
            yield response

    def run(self, command: str, **headers: str) -> list[dict]:
        process = {"cmd": "/bin/sh", "args": ["-c", command]}
        return self.stream("process.Process/Start", {"process": process, "stdin": False}, **headers)


def new_client(port: int, *, http2: bool) -> httpx.Client:
    return httpx.Client(
        base_url=f"http://127.0.0.1:{port}",
        headers={"X-Access-Token": TOKEN},
        timeout=20,
        http1=not http2,
        http2=http2,
    )


def frame(message: object) -> bytes:
    raw = json.dumps(message).encode()
    return struct.pack(">BI", 0, len(raw)) + raw


def envelopes(chunks) -> Iterator[dict]:
    buffer = b""
    for chunk in chunks:
        buffer += chunk
        while len(buffer) >= 5:
            flags, length = struct.unpack_from(">BI", buffer)
            if len(buffer) < 5 + length:
                break
            message = json.loads(buffer[5 : 5 + length])
            buffer = buffer[5 + length :]
            yield {"END": message} if flags & 2 else message
    assert buffer == b""
