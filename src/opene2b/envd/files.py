"""GET and POST /files: whole files over plain HTTP.

What goes wrong is raised as a `ServiceError`; the application turns it into `{"code", "message"}`.
Source: E2B envd contract, GET /files and POST /files.
"""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any, Protocol, Self
from urllib.parse import quote

import msgspec

from opene2b.connect.http import FileBody, Request, Response
from opene2b.core.errors import InvalidArgument
from opene2b.envd import gzip_stream, ranges
from opene2b.envd.filesystem import metadata, opening
from opene2b.envd.filesystem.faults import checked, printable
from opene2b.envd.filesystem.incoming import IncomingFile
from opene2b.envd.filesystem.owners import Owner
from opene2b.envd.multipart import MultipartParser, PartBegin, PartData, boundary_of

_READ_BYTES = 256 << 10
_WRITE_BYTES = 1 << 20
_OCTETS = "application/octet-stream"
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_PLAIN = re.compile(r"[\x20-\x7e]*")
_MAX_FILES = 500  # of one form: each holds a descriptor of its directory until all have arrived


class State(Protocol):
    """What these endpoints need to know about who asks."""

    def place(self, request: Request, path: str) -> tuple[str, Owner]:
        """The absolute form of a path, and the user of the request, who gets what it creates.

        Raises:
            Unauthenticated: there is no such user.
        """


async def download(request: Request, state: State) -> Response:
    """The content of a regular file, whole or in part.

    Raises:
        InvalidArgument: the path is a directory, a device, a FIFO or a socket.
        PathNotFound: there is none.
    """
    path, _ = state.place(request, checked(_required_path(request)))
    fd, status = opening.open_regular(path)
    with ExitStack() as stack:
        stack.callback(os.close, fd)
        response = _answer(request, path, fd, status)
        if not isinstance(response.body, bytes):
            stack.pop_all()  # the body closes it
    return response


def _answer(request: Request, path: str, fd: int, status: os.stat_result) -> Response:
    size = status.st_size
    current = ranges.Validators(
        etag=f'"{status.st_mtime_ns:x}-{size:x}-{status.st_ino:x}"',
        modified_s=status.st_mtime_ns // 1_000_000_000,
    )
    headers = [
        ("Accept-Ranges", "bytes"),
        ("ETag", current.etag),
        ("Last-Modified", ranges.http_date(current.modified_s)),
        ("Vary", "Accept-Encoding"),
    ]
    if ranges.is_unchanged(request.headers, current):
        return Response(304, headers, b"")
    takes_gzip, takes_plain = ranges.accepted_encodings(request.headers.get("accept-encoding"))
    if not takes_gzip and not takes_plain:
        return _failure(406, "only gzip and identity can be sent, and neither is accepted")
    headers += [
        ("Content-Type", _OCTETS),
        ("Content-Disposition", disposition(os.path.basename(path))),
    ]
    try:
        span = ranges.wanted_span(request.headers, size, current) if takes_plain else None
    except ranges.Unsatisfiable:
        refusal = _failure(416, f"the range is behind the end of the file, {size} bytes")
        return Response(416, [*refusal.headers, ("Content-Range", f"bytes */{size}")], refusal.body)
    if span is not None:
        last = span.offset + span.length - 1
        headers.append(("Content-Range", f"bytes {span.offset}-{last}/{size}"))
        return Response(206, headers, FileBody(fd, span.offset, span.length))
    if takes_gzip and (not takes_plain or "range" not in request.headers):
        # The same file in other bytes: its tag may not promise that bytes are equal.
        headers[1] = ("ETag", "W/" + current.etag)
        headers.append(("Content-Encoding", "gzip"))
        return Response(200, headers, gzip_stream.deflate(_Content(fd)))
    return Response(200, headers, FileBody(fd, 0, size))


class _Content:
    """Reads an open file and closes it when it is dropped, read to its end or never begun."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        await asyncio.sleep(0)  # reading never waits, so others would never have their turn
        if chunk := os.read(self._fd, _READ_BYTES):
            return chunk
        raise StopAsyncIteration

    def __del__(self) -> None:
        os.close(self._fd)


def disposition(filename: str) -> str:
    """Content-Disposition for a file name with any bytes in it. Source: RFC 6266, RFC 8187."""
    if _TOKEN.fullmatch(filename):
        return f"inline; filename={filename}"
    if _PLAIN.fullmatch(filename):
        quoted = filename.replace("\\", "\\\\").replace('"', '\\"')
        return f'inline; filename="{quoted}"'
    fallback = "".join(
        letter if " " <= letter <= "~" and letter not in '"\\%' else "_" for letter in filename
    )
    exact = quote(os.fsencode(filename), safe="")
    return f"inline; filename=\"{fallback}\"; filename*=UTF-8''{exact}"


async def upload(request: Request, state: State) -> Response:
    """Write one file from an octet stream, or several from a form.

    All files of one request get their names only after the whole body has arrived.

    Raises:
        InvalidArgument: no path, a path twice, a path that is a directory, a broken body.
        OutOfSpace: the disk is full; nothing of the request remains but new directories.
    """
    kind = request.headers.get("content-type", _OCTETS).partition(";")[0].strip().lower()
    chunks = _plain_body(request)
    with ExitStack() as stack:
        if kind == _OCTETS:
            files = [await _receive_octets(request, state, chunks, stack)]
        elif kind == "multipart/form-data":
            files = await _receive_form(request, state, chunks, stack)
        else:
            raise InvalidArgument(
                f"content type must be {_OCTETS} or multipart/form-data, not {kind!a}"
            )
        for file in files:
            await file.commit()
    return _json(200, [_written(file) for file in files])


def _plain_body(request: Request) -> AsyncIterator[bytes]:
    coding = request.headers.get("content-encoding", "").strip().lower()
    if coding in ("", "identity"):
        return request.chunks()
    if coding in ("gzip", "x-gzip"):
        return gzip_stream.inflate(request.chunks())
    raise InvalidArgument(f"content encoding {coding!a} is not supported, only gzip is")


async def _receive_octets(
    request: Request, state: State, chunks: AsyncIterator[bytes], stack: ExitStack
) -> IncomingFile:
    path, owner = state.place(request, checked(_required_path(request)))
    metadata_wanted = metadata.from_headers(request.headers)
    file = stack.enter_context(IncomingFile(path, owner=owner, metadata=metadata_wanted))
    async for chunk in chunks:
        await _write(file, chunk)
    file.seal()
    return file


async def _receive_form(
    request: Request, state: State, chunks: AsyncIterator[bytes], stack: ExitStack
) -> list[IncomingFile]:
    override = _query(request, "path")
    metadata_wanted = metadata.from_headers(request.headers)
    parser = MultipartParser(boundary_of(request.headers["content-type"]))
    files: dict[tuple[int, int, str], IncomingFile] = {}
    current: IncomingFile | None = None
    async for chunk in chunks:
        for event in parser.feed(chunk):
            if isinstance(event, PartData):
                if current is not None:
                    await _write(current, event.data)
                continue
            if current is not None:
                current.seal()
                current = None
            if not isinstance(event, PartBegin) or event.name != "file":
                continue
            if len(files) == _MAX_FILES or (files and override):
                raise InvalidArgument(
                    f"more than {_MAX_FILES if not override else 1} files in one request"
                )
            asked = override or event.filename
            if not asked:
                raise InvalidArgument("a file of the form has no filename")
            path, owner = state.place(request, checked(asked))
            current = stack.enter_context(IncomingFile(path, owner=owner, metadata=metadata_wanted))
            if current.identity in files:
                raise InvalidArgument(f"path '{printable(path)}' is given twice")
            files[current.identity] = current
    parser.close()
    if not files:
        raise InvalidArgument("the form has no part named 'file'")
    return list(files.values())


async def _write(file: IncomingFile, chunk: bytes) -> None:
    for at in range(0, len(chunk), _WRITE_BYTES):
        file.write(memoryview(chunk)[at : at + _WRITE_BYTES])
        await asyncio.sleep(0)  # a body that is all here already must not keep out others


def _written(file: IncomingFile) -> dict[str, Any]:
    path = printable(file.path)
    info: dict[str, Any] = {"path": path, "name": os.path.basename(path), "type": "file"}
    if file.metadata:
        info["metadata"] = file.metadata
    return info


def _query(request: Request, name: str) -> str:
    return next(iter(request.query.get(name, ())), "")


def _required_path(request: Request) -> str:
    path = _query(request, "path")
    if not path:
        raise InvalidArgument("query parameter 'path' is missing")
    return path


def _json(status: int, value: Any) -> Response:
    return Response(status, [("Content-Type", "application/json")], msgspec.json.encode(value))


def _failure(status: int, message: str) -> Response:
    return _json(status, {"code": status, "message": message})
