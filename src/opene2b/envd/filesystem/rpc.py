"""The Filesystem service in JSON: messages in, messages out.

Source: E2B envd contract, filesystem.proto.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, Protocol, TypeVar

import msgspec

from opene2b.connect.http import Request
from opene2b.connect.server import Context, MethodSpec, Pieces, unary
from opene2b.core.errors import InvalidArgument
from opene2b.envd.filesystem.controller import Controller
from opene2b.envd.filesystem.faults import checked
from opene2b.envd.filesystem.owners import Owner

SERVICE = "filesystem.Filesystem"
_PIECE = 1000
"""Entries of a listing that are sent together."""

Place = Callable[[str], tuple[str, Owner]]
"""From a path as sent to its absolute form and the user of the request."""
Handler = Callable[[Controller, Place, Mapping[str, Any]], Awaitable[dict[str, Any] | list[bytes]]]


# `null` is the default in proto3 JSON, and a number may come as a string.
class PathRequest(msgspec.Struct, frozen=True):
    """StatRequest, MakeDirRequest, RemoveRequest."""

    path: str | None = None


class ListDirRequest(msgspec.Struct, frozen=True):
    """Levels below the directory; 0 is 1."""

    path: str | None = None
    depth: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)] | None = None


class MoveRequest(msgspec.Struct, frozen=True):
    """Both are paths of the guest."""

    source: str | None = None
    destination: str | None = None


Message = TypeVar("Message", PathRequest, ListDirRequest, MoveRequest)


def _parsed(message: Mapping[str, Any], kind: type[Message]) -> Message:
    try:
        return msgspec.convert(message, kind, strict=False)
    except msgspec.ValidationError as exc:
        raise InvalidArgument(f"request does not fit: {exc}") from exc


async def _stat(controller: Controller, place: Place, message: Mapping[str, Any]) -> dict[str, Any]:
    path, _ = place(_parsed(message, PathRequest).path or "")
    return {"entry": await controller.stat(path)}


async def _list_dir(
    controller: Controller, place: Place, message: Mapping[str, Any]
) -> list[bytes]:
    request = _parsed(message, ListDirRequest)
    path, _ = place(request.path or "")
    # Encoded one by one in the thread, and sent in pieces: a million at once would stop everybody else.
    entries = await controller.list_dir(
        path, depth=request.depth or 0, each=msgspec.json.Encoder().encode
    )
    if len(entries) <= _PIECE:
        return [b'{"entries":[' + b",".join(entries) + b"]}"]
    pieces = [b'{"entries":[']
    for start in range(0, len(entries), _PIECE):
        pieces += [b"," if start else b"", b",".join(entries[start : start + _PIECE])]
        await asyncio.sleep(0)
    return [*pieces, b"]}"]


async def _make_dir(
    controller: Controller, place: Place, message: Mapping[str, Any]
) -> dict[str, Any]:
    path, owner = place(_parsed(message, PathRequest).path or "")
    return {"entry": await controller.make_dir(path, owner=owner)}


async def _move(controller: Controller, place: Place, message: Mapping[str, Any]) -> dict[str, Any]:
    request = _parsed(message, MoveRequest)
    # An empty path means the working directory elsewhere; nobody means to move that.
    if not request.source or not request.destination:
        raise InvalidArgument("a move needs a source and a destination")
    source, _ = place(request.source)
    destination, owner = place(request.destination)
    return {"entry": await controller.move(source, destination, owner=owner)}


async def _remove(
    controller: Controller, place: Place, message: Mapping[str, Any]
) -> dict[str, Any]:
    path = _parsed(message, PathRequest).path
    if not path:
        raise InvalidArgument("a removal needs a path")
    await controller.remove(place(path)[0])
    return {}


HANDLERS: Mapping[str, Handler] = {
    "Stat": _stat,
    "ListDir": _list_dir,
    "MakeDir": _make_dir,
    "Move": _move,
    "Remove": _remove,
}


class State(Protocol):
    """What the service needs to know about who asks."""

    @property
    def controller(self) -> Controller: ...

    def place(self, request: Request, path: str) -> tuple[str, Owner]:
        """The absolute form of a path, and the user of the request."""


def methods(state: State) -> Mapping[str, MethodSpec]:
    """The service's methods but those of watching, by `package.Service/Method`."""
    return {f"{SERVICE}/{name}": unary(_bound(call, state)) for name, call in HANDLERS.items()}


def _bound(call: Handler, state: State) -> Callable[[bytes, Context], Awaitable[Pieces]]:
    async def answer(body: bytes, context: Context) -> Pieces:
        try:
            message = msgspec.json.decode(body or b"{}", type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise InvalidArgument(f"request is not a JSON object: {exc}") from exc
        reply = await call(
            state.controller, lambda path: state.place(context.request, checked(path)), message
        )
        return reply if isinstance(reply, list) else [msgspec.json.encode(reply)]

    return answer
