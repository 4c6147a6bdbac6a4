"""GET and POST /files through the real server and a real client."""

import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from opene2b.connect.http import Request, Response
from opene2b.connect.listener import HttpServer
from opene2b.connect.server import serve
from opene2b.envd import files
from opene2b.envd.filesystem.controller import Controller
from opene2b.envd.filesystem.owners import Owner, OwnerNames
from opene2b.envd.filesystem.rpc import methods


class Home:
    def __init__(self, home: Path) -> None:
        self._home = home
        self.controller = Controller(OwnerNames())

    def place(self, request: Request, path: str) -> tuple[str, Owner]:
        return os.path.normpath(self._home / path), Owner(uid=os.getuid(), gid=os.getgid())


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    home = Home(tmp_path)

    async def handle(request: Request) -> Response:
        if request.path != "/files":
            return await serve(methods(home), request)
        call = files.upload if request.method == "POST" else files.download
        return await call(request, home)

    listener = socket.create_server(("127.0.0.1", 0))
    server = HttpServer(handle)
    await server.open(listener)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
            yield client
    finally:
        await server.close()
        listener.close()


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_what_is_written_is_read(client: httpx.AsyncClient, encoding: str) -> None:
    content = os.urandom(3 << 20)
    written = await client.post(
        "/files",
        params={"path": "a/ü b"},
        content=content,
        headers={"Content-Type": "application/octet-stream"},
    )
    read = await client.get(
        "/files", params={"path": "a/ü b"}, headers={"Accept-Encoding": encoding}
    )

    assert written.json()[0]["name"] == "ü b"
    assert read.headers.get("content-encoding", "identity") == encoding
    assert read.content == content


async def test_a_form_writes_several_files(client: httpx.AsyncClient, tmp_path: Path) -> None:
    parts = [("file", ('a/"1"', b"one")), ("file", ("two", b"2" * 1_000_000))]
    answer = await client.post("/files", files=parts)

    assert [item["path"] for item in answer.json()] == [f'{tmp_path}/a/"1"', f"{tmp_path}/two"]
    assert (tmp_path / "two").stat().st_size == 1_000_000


async def test_a_range_comes_alone_and_head_without_a_body(
    client: httpx.AsyncClient, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    part = await client.get("/files", params={"path": "f"}, headers={"Range": "bytes=3-5"})
    head = await client.head(
        "/files", params={"path": "f"}, headers={"Accept-Encoding": "identity"}
    )

    assert (part.status_code, part.content) == (206, b"345")
    assert (head.status_code, head.headers["content-length"], head.content) == (200, "10", b"")


@pytest.mark.parametrize(
    ("method", "message", "status", "code"),
    [
        ("Stat", {"path": "f"}, 200, None),
        ("Stat", {"path": "none"}, 404, "not_found"),
        ("ListDir", {"path": "f"}, 400, "invalid_argument"),
        ("MakeDir", {"path": "d"}, 409, "already_exists"),
        ("Remove", {"path": "none"}, 200, None),
        ("Stat", [], 400, "invalid_argument"),
    ],
)
async def test_calls_of_the_filesystem_service_end_with_the_codes_of_the_contract(
    client: httpx.AsyncClient,
    tmp_path: Path,
    method: str,
    message: object,
    status: int,
    code: str | None,
) -> None:
    (tmp_path / "f").touch()
    (tmp_path / "d").mkdir()
    answer = await client.post(f"/filesystem.Filesystem/{method}", json=message)

    assert (answer.status_code, answer.json().get("code")) == (status, code)
