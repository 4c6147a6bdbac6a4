"""GET and POST /files, called without a server."""

import errno
import gzip
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from opene2b.connect.http import FileBody, Request, Response
from opene2b.core.errors import InvalidArgument, OutOfSpace, PathNotFound
from opene2b.envd.files import disposition, download, upload
from opene2b.envd.filesystem.owners import Owner

OCTETS = {"content-type": "application/octet-stream"}
FORM = {"content-type": "multipart/form-data; boundary=XX"}


class FakeRequest:
    method = "GET"
    path = "/files"

    def __init__(
        self, path: str | None, headers: Mapping[str, str], chunks: Sequence[bytes | Exception]
    ) -> None:
        self.query = {} if path is None else {"path": [path]}
        self.headers = headers
        self._chunks = chunks

    async def chunks(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk


class Home:
    """Everything is relative to one directory and belongs to us."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def place(self, request: Request, path: str) -> tuple[str, Owner]:
        return os.path.normpath(self._home / path), Owner(uid=os.getuid(), gid=os.getgid())


async def get(home: Path, path: str, **headers: str) -> tuple[Response, bytes]:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    response = await download(cast("Request", FakeRequest(path, sent, ())), Home(home))
    body = response.body
    if isinstance(body, FileBody):
        content = os.pread(body.fd, body.length, body.offset)
        os.close(body.fd)
        return response, content
    if isinstance(body, bytes):
        return response, body
    return response, b"".join([chunk async for chunk in body])


async def post(
    home: Path, path: str | None, headers: Mapping[str, str], *chunks: bytes | Exception
) -> Any:
    request = cast("Request", FakeRequest(path, headers, chunks))
    response = await upload(request, Home(home))
    assert response.status == 200
    assert isinstance(response.body, bytes)
    return json.loads(response.body)


def form(*files: tuple[str, bytes]) -> bytes:
    out = b""
    for filename, content in files:
        head = f'--XX\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n\r\n'
        out += head.encode() + content + b"\r\n"
    return out + b"--XX--\r\n"


async def test_a_download_is_the_file_itself(tmp_path: Path) -> None:
    (tmp_path / "f.txt").write_bytes(b"0123456789")
    response, content = await get(tmp_path, "f.txt")
    headers = dict(response.headers)

    assert (response.status, content) == (200, b"0123456789")
    assert isinstance(response.body, FileBody)
    assert headers["Content-Disposition"] == "inline; filename=f.txt"
    assert headers["Accept-Ranges"] == "bytes"
    assert headers["Vary"] == "Accept-Encoding"


async def test_a_range_is_part_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    response, content = await get(tmp_path, "f", range="bytes=2-4", accept_encoding="gzip")

    assert (response.status, content) == (206, b"234")
    assert dict(response.headers)["Content-Range"] == "bytes 2-4/10"


async def test_a_range_behind_the_end_tells_the_size(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    response, _ = await get(tmp_path, "f", range="bytes=10-")

    assert response.status == 416
    assert dict(response.headers)["Content-Range"] == "bytes */10"


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_a_tag_given_out_is_recognized(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    first, _ = await get(tmp_path, "f", accept_encoding=encoding)
    again, content = await get(tmp_path, "f", if_none_match=dict(first.headers)["ETag"])

    assert (again.status, content) == (304, b"")


async def test_gzip_is_sent_to_who_asks_for_it(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789" * 100_000)
    response, content = await get(tmp_path, "f", accept_encoding="gzip")

    assert dict(response.headers)["Content-Encoding"] == "gzip"
    assert gzip.decompress(content) == b"0123456789" * 100_000


async def test_a_client_that_accepts_nothing_we_have_gets_406(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    response, content = await get(tmp_path, "f", accept_encoding="identity;q=0")

    assert response.status == 406
    assert json.loads(content)["code"] == 406


async def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    before = len(os.listdir("/proc/self/fd"))
    await get(tmp_path, "f", if_none_match="*")
    await get(tmp_path, "f", range="bytes=99-")
    await get(tmp_path, "f", accept_encoding="gzip")
    request = FakeRequest("f", {"accept-encoding": "gzip"}, ())
    await download(cast("Request", request), Home(tmp_path))  # and the body is never read

    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("name", ["dir", "fifo"])
async def test_only_regular_files_can_be_downloaded(tmp_path: Path, name: str) -> None:
    (tmp_path / "dir").mkdir()
    os.mkfifo(tmp_path / "fifo")

    with pytest.raises(InvalidArgument):
        await get(tmp_path, name)


@pytest.mark.parametrize("name", ["none", "f/below"])
async def test_a_missing_file_is_not_found(tmp_path: Path, name: str) -> None:
    (tmp_path / "f").touch()

    with pytest.raises(PathNotFound):
        await get(tmp_path, name)


@pytest.mark.parametrize(
    ("filename", "header"),
    [
        ("a.txt", "inline; filename=a.txt"),
        ("a b.txt", 'inline; filename="a b.txt"'),
        ('a"b\\', 'inline; filename="a\\"b\\\\"'),
        ("é", "inline; filename=\"_\"; filename*=UTF-8''%C3%A9"),
        ("a\r\nX: y", "inline; filename=\"a__X: y\"; filename*=UTF-8''a%0D%0AX%3A%20y"),
        ("\udcff", "inline; filename=\"_\"; filename*=UTF-8''%FF"),
    ],
)
def test_a_file_name_cannot_leave_its_header(filename: str, header: str) -> None:
    assert disposition(filename) == header


async def test_octets_become_a_file(tmp_path: Path) -> None:
    answer = await post(tmp_path, "a/f", OCTETS, b"one", b"two")

    assert answer == [{"path": str(tmp_path / "a/f"), "name": "f", "type": "file"}]
    assert (tmp_path / "a/f").read_bytes() == b"onetwo"


async def test_an_empty_body_makes_an_empty_file(tmp_path: Path) -> None:
    await post(tmp_path, "f", OCTETS)

    assert (tmp_path / "f").read_bytes() == b""


async def test_a_gzip_body_is_inflated(tmp_path: Path) -> None:
    await post(tmp_path, "f", {**OCTETS, "content-encoding": "gzip"}, gzip.compress(b"content"))

    assert (tmp_path / "f").read_bytes() == b"content"


async def test_metadata_is_kept_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "probe").touch()
    try:
        os.setxattr(tmp_path / "probe", "user.probe", b"")
    except OSError:
        pytest.skip("no user xattrs in the temporary directory")
    answer = await post(tmp_path, "f", {**OCTETS, "x-metadata-author": "me"}, b"")

    assert answer[0]["metadata"] == {"author": "me"}
    assert os.getxattr(tmp_path / "f", "user.e2b.author") == b"me"


@pytest.mark.parametrize("headers", [OCTETS, FORM])
async def test_a_body_that_breaks_off_leaves_nothing(
    tmp_path: Path, headers: Mapping[str, str]
) -> None:
    body = form(("f", b"content"))[:-10] if headers is FORM else b"content"
    with pytest.raises(ConnectionError):
        await post(tmp_path, "f", headers, body, ConnectionError())

    assert os.listdir(tmp_path) == []


async def test_a_truncated_form_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument):
        await post(tmp_path, None, FORM, form(("f", b"1"), ("g", b"2"))[:-10])

    assert os.listdir(tmp_path) == []


async def test_a_truncated_gzip_body_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument):
        await post(
            tmp_path, "f", {**OCTETS, "content-encoding": "gzip"}, gzip.compress(b"abc")[:-3]
        )

    assert os.listdir(tmp_path) == []


async def test_a_form_writes_all_its_files(tmp_path: Path) -> None:
    answer = await post(tmp_path, None, FORM, form(("a/one", b"1"), (f"{tmp_path}/two", b"2")))

    assert [item["path"] for item in answer] == [str(tmp_path / "a/one"), str(tmp_path / "two")]
    assert (tmp_path / "a/one").read_bytes() == b"1"
    assert (tmp_path / "two").read_bytes() == b"2"


async def test_the_query_path_overrides_the_file_name(tmp_path: Path) -> None:
    await post(tmp_path, "target", FORM, form(("other", b"1")))

    assert os.listdir(tmp_path) == ["target"]


@pytest.mark.parametrize(
    ("path", "files"),
    [
        (None, [("f", b"1"), ("./f", b"2")]),
        ("target", [("f", b"1"), ("g", b"2")]),
        (None, []),
        (None, [("", b"1")]),
    ],
)
async def test_forms_that_make_no_sense_write_nothing(
    tmp_path: Path, path: str | None, files: list[tuple[str, bytes]]
) -> None:
    with pytest.raises(InvalidArgument):
        await post(tmp_path, path, FORM, form(*files))

    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        (None, OCTETS),
        ("dir", OCTETS),
        ("f", {"content-type": "text/plain"}),
        ("f", {**OCTETS, "content-encoding": "br"}),
        ("f", {**OCTETS, "x-metadata-k": "ü"}),
    ],
)
async def test_uploads_that_make_no_sense_are_refused(
    tmp_path: Path, path: str | None, headers: Mapping[str, str]
) -> None:
    (tmp_path / "dir").mkdir()
    with pytest.raises(InvalidArgument):
        await post(tmp_path, path, headers, b"x")

    assert os.listdir(tmp_path) == ["dir"]


async def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OutOfSpace):
        await post(tmp_path, "f", OCTETS, b"x")

    assert os.listdir(tmp_path) == []
