"""A multipart/form-data body, taken apart while it arrives. Pure: bytes in, events out.

The body is `--boundary`, then for each part CRLF, headers, an empty line and content, each followed
by CRLF `--boundary`; the last one by `--`. Content may hold anything but CRLF `--boundary`, so the
parser always keeps back as many bytes as could be the beginning of that.
Source: RFC 7578, RFC 2046 section 5.1; the E2B envd contract, POST /files.
"""

import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from urllib.parse import unquote_to_bytes

from opene2b.core.errors import InvalidArgument

_MAX_HEADER_BYTES = 16 << 10
_MAX_PREAMBLE_BYTES = 16 << 10
_MAX_PADDING_BYTES = 1 << 10
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_PARAMETER = re.compile(r';\s*([^\s=;"]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)', re.DOTALL)
_QUOTED_PAIR = re.compile(r'\\(["\\])')
# The three characters HTML forms encode in file names; any other % is meant as it stands.
_FORM_ESCAPE = re.compile(r"%(22|0[AaDd])")


@dataclass(frozen=True, slots=True, kw_only=True)
class PartBegin:
    """A part starts; its content follows."""

    name: str | None
    filename: str | None
    """As it was sent, slashes included; None if the part is no file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartData:
    """Some content of the current part, never empty."""

    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PartEnd:
    """The current part is complete."""


Event = PartBegin | PartData | PartEnd


class _State(Enum):
    PREAMBLE = auto()
    DELIMITED = auto()
    HEADERS = auto()
    CONTENT = auto()
    EPILOGUE = auto()


def boundary_of(content_type: str) -> str:
    """The boundary of a multipart/form-data content type.

    Raises:
        InvalidArgument: it is another type, or has no usable boundary.
    """
    kind, _, _ = content_type.partition(";")
    if kind.strip().lower() != "multipart/form-data":
        raise InvalidArgument("content type is not multipart/form-data")
    boundary = _parameters(content_type).get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise InvalidArgument("multipart content type has no valid boundary")
    return boundary


class MultipartParser:
    """Takes one body. `feed` its chunks, then `close`."""

    def __init__(self, boundary: str) -> None:
        self._delimiter = b"\r\n--" + boundary.encode("ascii")
        # The first delimiter may stand at the very beginning, without a line end before it.
        self._buffer = bytearray(b"\r\n")
        self._state = _State.PREAMBLE
        self._skipped = 0

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """The events this chunk completes. Take all of them before feeding again.

        Raises:
            InvalidArgument: the body is malformed.
        """
        self._buffer += chunk
        while True:
            state = self._state
            if state is _State.PREAMBLE:
                if not self._skip_preamble():
                    return
            elif state is _State.CONTENT:
                if (yield from self._content()):
                    return
            elif state is _State.DELIMITED:
                if not self._after_delimiter():
                    return
            elif state is _State.HEADERS:
                begin = self._headers()
                if begin is None:
                    return
                yield begin
            else:
                self._buffer.clear()
                return

    def close(self) -> None:
        """The body has ended.

        Raises:
            InvalidArgument: it had not reached its closing delimiter.
        """
        if self._state is not _State.EPILOGUE:
            raise InvalidArgument("multipart body ends early")

    def _skip_preamble(self) -> bool:
        at = self._buffer.find(self._delimiter)
        if at < 0:
            cut = max(len(self._buffer) - len(self._delimiter), 0)
            del self._buffer[:cut]
            self._skipped += cut
            if self._skipped > _MAX_PREAMBLE_BYTES:
                raise InvalidArgument("multipart body has no boundary")
            return False
        del self._buffer[: at + len(self._delimiter)]
        self._state = _State.DELIMITED
        return True

    def _content(self) -> Generator[Event, None, bool]:
        """Returns whether more input is needed."""
        at = self._buffer.find(self._delimiter)
        if at < 0:
            cut = len(self._buffer) - len(self._delimiter) + 1
            if cut > 0:
                data = bytes(self._buffer[:cut])
                del self._buffer[:cut]
                yield PartData(data=data)
            return True
        if at > 0:
            data = bytes(self._buffer[:at])
            yield PartData(data=data)
        del self._buffer[: at + len(self._delimiter)]
        self._state = _State.DELIMITED
        yield PartEnd()
        return False

    def _after_delimiter(self) -> bool:
        if self._buffer.startswith(b"--"):
            self._state = _State.EPILOGUE
            return True
        end = self._buffer.find(b"\r\n")
        if end < 0:
            if len(self._buffer) > _MAX_PADDING_BYTES:
                raise InvalidArgument("multipart delimiter is not followed by a line end")
            return False
        if self._buffer[:end].strip(b" \t"):
            raise InvalidArgument("multipart delimiter is not followed by a line end")
        # The line end stays: it is also the one before an empty block of headers.
        del self._buffer[:end]
        self._state = _State.HEADERS
        return True

    def _headers(self) -> PartBegin | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end > _MAX_HEADER_BYTES or (end < 0 and len(self._buffer) > _MAX_HEADER_BYTES):
            raise InvalidArgument("headers of a multipart part are too large")
        if end < 0:
            return None
        block = self._buffer[:end].decode("utf-8", "surrogateescape")
        del self._buffer[: end + 4]
        self._state = _State.CONTENT
        for line in block.split("\r\n"):
            name, colon, value = line.partition(":")
            if colon and name.strip().lower() == "content-disposition":
                return _part_begin(value)
        return PartBegin(name=None, filename=None)


def _part_begin(disposition: str) -> PartBegin:
    parameters = _parameters(disposition)
    filename = parameters.get("filename")
    if filename is not None:
        filename = _FORM_ESCAPE.sub(lambda match: chr(int(match[1], 16)), filename)
    extended = parameters.get("filename*")
    if extended is not None:
        charset, quote, rest = extended.partition("'")
        _, second_quote, encoded = rest.partition("'")
        if not quote or not second_quote or charset.lower() not in ("utf-8", "us-ascii"):
            raise InvalidArgument("filename* of a multipart part is not in UTF-8")
        filename = unquote_to_bytes(encoded).decode("utf-8", "surrogateescape")
    return PartBegin(name=parameters.get("name"), filename=filename)


def _parameters(value: str) -> dict[str, str]:
    """The parameters behind a header's first word, names lower-case; the first of a name counts.

    Only `\\"` and `\\\\` are escapes: some clients send backslashes of a path as they are.
    """
    parameters: dict[str, str] = {}
    for match in _PARAMETER.finditer(value):
        text = match[2]
        is_quoted = text.startswith('"')
        text = _QUOTED_PAIR.sub(r"\1", text[1:-1]) if is_quoted else text.strip()
        parameters.setdefault(match[1].lower(), text)
    return parameters
