"""POST /files/compose: several files become one, and are gone.

Source: E2B envd contract, `{source_paths, destination, username}`.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import suppress

import msgspec

from opene2b.connect.http import Request, Response
from opene2b.core.errors import InvalidArgument, PathNotFound
from opene2b.envd import paths
from opene2b.envd.filesystem import opening
from opene2b.envd.filesystem.faults import checked, printable, translate
from opene2b.envd.filesystem.incoming import IncomingFile
from opene2b.envd.filesystem.owners import Owner
from opene2b.envd.requests import Requests
from opene2b.envd.users import User

BODY_LIMIT_BYTES = 4 << 20
MOST_SOURCES = 10_000
READ_BYTES = 1 << 20


Identity = tuple[int, int]
"""Device and inode."""


class ComposeRequest(msgspec.Struct):
    source_paths: list[str]
    destination: str
    username: str | None = None


async def compose(request: Request, requests: Requests) -> Response:
    """Nothing has changed when it fails; the destination may be one of the sources.

    Raises:
        InvalidArgument: no sources, or one that is no regular file.
        PathNotFound: a source is missing.
        OutOfSpace: the disk is full.
    """
    raw = await request.read(limit=BODY_LIMIT_BYTES)
    try:
        message = msgspec.json.decode(raw, type=ComposeRequest)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise InvalidArgument(f"the body does not fit: {exc}") from exc
    if not 0 < len(message.source_paths) <= MOST_SOURCES:
        raise InvalidArgument(f"source_paths must name 1 to {MOST_SOURCES} files")
    if not message.destination or not all(message.source_paths):
        raise InvalidArgument("a path is empty")
    user = requests.known.find(message.username) if message.username else requests.user(request)
    resolve = resolver(user, requests.config.default_workdir)
    destination = resolve(message.destination)
    sources = [resolve(path) for path in message.source_paths]
    owner = Owner(uid=user.uid, gid=user.gid)
    with IncomingFile(destination, owner=owner, metadata={}) as file:
        taken = [(source, await asyncio.to_thread(append, file, source)) for source in sources]
        file.seal()
        await file.commit()
    await asyncio.to_thread(remove_taken, taken, destination)
    entry = await requests.controller.stat(destination)
    return Response(200, [("Content-Type", "application/json")], msgspec.json.encode(entry))


def resolver(user: User, default_workdir: str | None) -> Callable[[str], str]:
    return lambda path: paths.resolve(checked(path), user, default_workdir)


def remove_taken(taken: Sequence[tuple[str, Identity]], destination: str) -> None:
    """Remove the sources: not what has been put in their place meanwhile, and not the result under another name."""
    result = identity(os.stat(destination))
    for source, was in taken:
        with suppress(FileNotFoundError, NotADirectoryError):
            now = identity(os.stat(source))
            if now == was and now != result:
                os.unlink(source)


def append(file: IncomingFile, source: str) -> Identity:
    try:
        fd, status = opening.open_regular(source)
    except PathNotFound as exc:
        raise PathNotFound(f"source '{printable(source)}' not found") from exc
    try:
        while chunk := os.read(fd, READ_BYTES):
            file.write(chunk)
    except OSError as exc:
        raise translate(exc, "read", source) from exc
    finally:
        os.close(fd)
    return identity(status)


def identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino
