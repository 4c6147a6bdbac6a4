"""Connect-RPC over the HTTP server: unary, server-stream and client-stream methods, JSON codec.

Source: Connect protocol specification; E2B envd contract, RPC wire format. Streams are always HTTP 200 with the
outcome in their last envelope; unary errors have the HTTP status of their code. Nothing is ever compressed.
"""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from enum import Enum

import msgspec

from opene2b.connect import codec, codes, envelope
from opene2b.connect.codes import ConnectError, EndStream
from opene2b.connect.http import Request, Response
from opene2b.connect.protobuf import Schema
from opene2b.core.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    ServiceError,
    Unsupported,
)

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 64 << 20
UNARY_TYPE = "application/json"
STREAM_TYPE = "application/connect+json"
"""Exactly this, without parameters: the Python client compares the whole value."""
UNARY_BINARY_TYPE = "application/proto"
STREAM_BINARY_TYPE = "application/connect+proto"
LINES_TYPE = "application/x-ndjson"
TIMEOUT = re.compile(r"[0-9]{1,10}\Z")
ENCODING_HEADERS = ("content-encoding", "connect-content-encoding")
INTERNAL_MESSAGE = "an internal problem of envd; its log has the details"


class Kind(Enum):
    UNARY = "unary"
    SERVER_STREAM = "server stream"
    CLIENT_STREAM = "client stream"


@dataclass(frozen=True, slots=True)
class Context:
    """What a method may know of its call besides the message."""

    request: Request
    timeout_s: float | None
    """From `Connect-Timeout-Ms`; None: no limit."""


Pieces = list[bytes]
Unary = Callable[[bytes, Context], Awaitable[bytes | Pieces]]
"""Encoded message in, encoded message out; one that may be huge comes in pieces."""
ServerStream = Callable[[bytes, Context], AsyncGenerator[bytes, None]]
ClientStream = Callable[[AsyncIterator[bytes], Context], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """One method; exactly the handler of its kind is set."""

    kind: Kind
    unary: Unary | None = None
    server_stream: ServerStream | None = None
    client_stream: ClientStream | None = None


def unary(handler: Unary) -> MethodSpec:
    return MethodSpec(Kind.UNARY, unary=handler)


def server_stream(handler: ServerStream) -> MethodSpec:
    return MethodSpec(Kind.SERVER_STREAM, server_stream=handler)


def client_stream(handler: ClientStream) -> MethodSpec:
    return MethodSpec(Kind.CLIENT_STREAM, client_stream=handler)


async def serve(
    methods: Mapping[str, MethodSpec], request: Request, schema: Schema | None = None
) -> Response:
    """Answer `POST /<package.Service>/<Method>`.

    Args:
        schema: Of the messages, for clients that speak protobuf; None: JSON alone.
    """
    spec = methods.get(request.path[1:])
    if spec is None:
        return plain_error(Unsupported(f"there is no method {request.path[1:]!a}"), status=404)
    if request.method != "POST":
        refused = plain_error(Unsupported("methods are called with POST"), status=405)
        return Response(405, [*refused.headers, ("Allow", "POST")], refused.body)
    wanted = UNARY_TYPE if spec.kind is Kind.UNARY else STREAM_TYPE
    given = request.headers.get("content-type", "")
    binary = UNARY_BINARY_TYPE if spec.kind is Kind.UNARY else STREAM_BINARY_TYPE
    if schema is not None and given.strip().lower() == binary:
        spec, wanted, given = in_binary(spec, request.path[1:], schema), binary, binary
    if spec.server_stream is not None and is_type(given, UNARY_TYPE):
        return await answer_lines(spec.server_stream, request)
    if given != wanted and not is_type(given, wanted):
        return Response(415, [("Accept-Post", wanted), ("Content-Type", UNARY_TYPE)], b"{}")
    if spec.kind is Kind.UNARY:
        assert spec.unary is not None
        return await answer_unary(spec.unary, request, wanted)
    return Response(200, [("Content-Type", wanted)], stream(spec, request))


def in_binary(spec: MethodSpec, method: str, schema: Schema) -> MethodSpec:
    """The same method, its messages in protobuf's binary form. Errors and the end of a stream stay JSON."""
    asked, answered = schema.methods[method]
    if spec.unary is not None:
        call = spec.unary

        async def unary_call(raw: bytes, context: Context) -> bytes:
            answer = await call(schema.to_json(raw, asked), context)
            whole = b"".join(answer) if isinstance(answer, list) else answer
            return schema.from_json(whole, answered)

        return unary(unary_call)
    if spec.server_stream is not None:
        answers = spec.server_stream

        async def answer_each(raw: bytes, context: Context) -> AsyncGenerator[bytes, None]:
            async with aclosing(answers(schema.to_json(raw, asked), context)) as each:
                async for answer in each:
                    yield schema.from_json(answer, answered)

        return server_stream(answer_each)
    assert spec.client_stream is not None
    take = spec.client_stream

    async def take_all(messages: AsyncIterator[bytes], context: Context) -> bytes:
        in_json = (schema.to_json(raw, asked) async for raw in messages)
        return schema.from_json(await take(in_json, context), answered)

    return client_stream(take_all)


async def answer_unary(handler: Unary, request: Request, content_type: str) -> Response:
    try:
        context = call_context(request)
        raw = await request.read(limit=MAX_MESSAGE_BYTES)
        if context.timeout_s is None:
            answer = await handler(raw, context)
        else:
            try:
                async with asyncio.timeout(context.timeout_s):
                    answer = await handler(raw, context)
            except TimeoutError:
                raise DeadlineExceeded("the call took longer than its timeout") from None
    except Exception as exc:
        return plain_error(understood(exc, request))
    if isinstance(answer, bytes) or len(answer) == 1:
        whole = answer if isinstance(answer, bytes) else answer[0]
        return Response(200, [("Content-Type", content_type)], whole)
    return Response(200, [("Content-Type", content_type)], one_by_one(answer))


async def one_by_one(pieces: Pieces) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
        await asyncio.sleep(0)


async def answer_lines(handler: ServerStream, request: Request) -> Response:
    """A server stream without envelopes, for curl and its like: a message in, a line of JSON for each message out.

    Not part of Connect. A failure before the first message has its HTTP status; a later one is the last line.
    """
    try:
        context = call_context(request)
        answers = handler(await request.read(limit=MAX_MESSAGE_BYTES), context)
        first = await anext(answers, None)
    except Exception as exc:
        return plain_error(understood(exc, request))
    return Response(200, [("Content-Type", LINES_TYPE)], lines(first, answers, request))


async def lines(
    first: bytes | None, answers: AsyncIterator[bytes], request: Request
) -> AsyncIterator[bytes]:
    try:
        if first is not None:
            yield first + b"\n"
        async for answer in answers:
            yield answer + b"\n"
    except Exception as exc:
        yield codec.encode(EndStream(error=codes.of(understood(exc, request)))) + b"\n"
    finally:
        close = getattr(answers, "aclose", None)
        if close is not None:
            await close()


async def stream(spec: MethodSpec, request: Request) -> AsyncIterator[bytes]:
    """The envelopes of an answer, the end envelope last, whatever happens."""
    end = EndStream()
    try:
        context = call_context(request)
        messages = envelopes(request)
        if spec.client_stream is not None:
            yield envelope.encode(await spec.client_stream(messages, context))
        else:
            assert spec.server_stream is not None
            raw = await anext(messages, None)
            if raw is None:
                raise InvalidArgument("the stream has no message")
            async for extra in messages:
                raise InvalidArgument(f"the stream has another message of {len(extra)} bytes")
            answers = spec.server_stream(raw, context)
            try:
                async for answer in answers:
                    yield envelope.encode(answer)
            finally:
                close = getattr(answers, "aclose", None)
                if close is not None:
                    await close()
    except Exception as exc:
        end = EndStream(error=codes.of(understood(exc, request)))
    yield envelope.encode(codec.encode(end), envelope.END_STREAM)


async def envelopes(request: Request) -> AsyncIterator[bytes]:
    decoder = envelope.Decoder(limit=MAX_MESSAGE_BYTES)
    async for chunk in request.chunks():
        for message in decoder.feed(chunk):
            yield message
    decoder.finish()


def call_context(request: Request) -> Context:
    """Raises InvalidArgument or Unsupported for headers that cannot be honoured."""
    headers = request.headers
    for name in ENCODING_HEADERS:
        if headers.get(name, "identity").strip().lower() not in {"identity", ""}:
            raise Unsupported(f"{name} {headers[name]!a} is not supported, only identity is")
    version = headers.get("connect-protocol-version", "1")
    if version != "1":
        raise InvalidArgument(f"connect-protocol-version must be 1, not {version!a}")
    timeout = headers.get("connect-timeout-ms")
    if timeout is None:
        return Context(request, None)
    if not TIMEOUT.match(timeout):
        raise InvalidArgument(f"connect-timeout-ms {timeout!a} is not a number of up to 10 digits")
    return Context(request, int(timeout) / 1000)


def understood(exc: Exception, request: Request) -> ServiceError:
    """What the client is told: our own errors as they are, anything else without its details."""
    if isinstance(exc, ServiceError):
        if isinstance(exc, Internal):
            log.error("rpc_internal %s: %s (%s)", request.path, exc.message, exc.detail)
        return exc
    if isinstance(exc, ConnectionResetError):
        raise exc
    log.error("rpc_failed %s", request.path, exc_info=exc)
    return Internal(INTERNAL_MESSAGE)


def plain_error(error: ServiceError, *, status: int | None = None) -> Response:
    told = codes.of(error)
    return Response(
        status or codes.http_status(told),
        [("Content-Type", UNARY_TYPE)],
        msgspec.json.encode(ConnectError(code=told.code, message=told.message)),
    )


def is_type(given: str, wanted: str) -> bool:
    """Whether a content type is the wanted one, parameters aside (only `charset=utf-8` makes sense)."""
    kind, _, parameters = given.partition(";")
    charset = parameters.replace(" ", "").lower()
    return kind.strip().lower() == wanted and charset in {"", "charset=utf-8", 'charset="utf-8"'}
