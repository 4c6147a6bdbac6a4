"""Messages as proto3 JSON, through msgspec structures. Pure.

A message is a `Message` structure: lowerCamelCase on the wire, unknown fields ignored, `null` like absent, numbers
as strings accepted, defaults left out. A `bytes` field is standard base64 when sent; for one that is received
use `Blob`, which also takes the url-safe alphabet and missing padding.
Source: protocol buffers documentation, proto3 JSON mapping.
"""

import base64
import binascii
from functools import cache
from typing import Any, TypeVar

import msgspec

from opene2b.core.errors import InvalidArgument


class Message(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """Base of all messages."""


class Blob:
    """A received `bytes` field."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


M = TypeVar("M", bound=Message)

encode = msgspec.json.Encoder().encode


def decode(raw: bytes, kind: type[M]) -> M:
    """Raises InvalidArgument, saying which field does not fit."""
    try:
        try:
            message: M = decoder(kind).decode(raw or b"{}")
            return message
        except msgspec.ValidationError:
            # What does not fit may be a null in place of a default. (Nor does it mean that the rest is JSON.)
            value = without_nulls(msgspec.json.decode(raw))
        return msgspec.convert(value, kind, strict=False, dec_hook=decode_blob)
    except msgspec.ValidationError as exc:
        raise InvalidArgument(f"message does not fit: {exc}") from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidArgument(f"message is not valid JSON: {exc}") from exc


@cache
def decoder(kind: type[M]) -> "msgspec.json.Decoder[M]":
    return msgspec.json.Decoder(kind, strict=False, dec_hook=decode_blob)


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def decode_blob(kind: type, value: Any) -> Any:
    if kind is not Blob:
        raise NotImplementedError(kind.__name__)
    if not isinstance(value, str):
        raise ValueError("bytes must be a base64 string")
    try:
        standard = value.encode("ascii").replace(b"-", b"+").replace(b"_", b"/").rstrip(b"=")
        return Blob(base64.b64decode(standard + b"=" * (-len(standard) % 4), validate=True))
    except (UnicodeEncodeError, binascii.Error) as exc:
        raise ValueError("bytes must be base64") from exc
