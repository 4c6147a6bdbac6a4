"""Messages in protobuf's binary form, by way of their JSON. Pure.

Handlers speak JSON, which is what nearly all clients send. For the others a message is turned into its proto3 JSON
and back, by a table of its fields. Source: protocol buffers documentation, encoding and proto3 JSON mapping.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from opene2b.core.errors import InvalidArgument

VARINT, I64, LEN, I32 = 0, 1, 2, 5
FIXED_BYTES = {I64: 8, I32: 4}
MAX_DEPTH = 32
TIMESTAMP = "google.protobuf.Timestamp"
TIMESTAMP_FIELDS: Mapping[int, tuple[str, str, bool]] = {
    1: ("seconds", "int64", False),
    2: ("nanos", "int32", False),
}
SIGNED_BITS = {"int32": 32, "int64": 64}
UNSIGNED_BITS = {"uint32": 32, "uint64": 64}
AS_STRING = {"int64", "uint64"}
"""Kinds whose JSON is a string."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Field = tuple[str, str, bool]
"""(JSON name, kind, is repeated). A kind is a scalar type's name, `map` (of strings), or a message or enum."""


@dataclass(frozen=True, slots=True)
class Schema:
    messages: Mapping[str, Mapping[int, Field]]
    enums: Mapping[str, Mapping[int, str]]
    methods: Mapping[str, tuple[str, str]]
    """`package.Service/Method` -> (request, answer)."""

    def to_json(self, raw: bytes, message: str) -> bytes:
        """Raises InvalidArgument."""
        return msgspec.json.encode(self.decode(memoryview(raw), message, 0))

    def from_json(self, raw: bytes, message: str) -> bytes:
        return self.encode(msgspec.json.decode(raw or b"{}"), message)

    # reading

    def decode(self, raw: memoryview, message: str, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise InvalidArgument("the message is nested too deep")
        fields = TIMESTAMP_FIELDS if message == TIMESTAMP else self.messages[message]
        value: dict[str, Any] = {}
        position = 0
        while position < len(raw):
            key, position = varint(raw, position)
            wire, number = key & 7, key >> 3
            if wire == VARINT:
                given, position = varint(raw, position)
                content: int | memoryview = given
            else:
                content, position = piece(raw, position, wire)
            known = fields.get(number)
            if known is not None:
                self.put(value, known, wire, content, depth)
        return rfc3339(value) if message == TIMESTAMP else value

    def put(
        self,
        value: dict[str, Any],
        field: Field,
        wire: int,
        content: int | memoryview,
        depth: int,
    ) -> None:
        name, kind, repeated = field
        if kind == "map":
            pair = self.map_entry(length_delimited(content, name))
            value.setdefault(name, {}).update([pair])
            return
        if repeated and wire == LEN and kind not in {"string", "bytes"} and self.is_scalar(kind):
            # Packed.
            packed = length_delimited(content, name)
            position = 0
            while position < len(packed):
                number, position = varint(packed, position)
                value.setdefault(name, []).append(self.scalar(kind, number, name))
            return
        if kind in self.messages or kind == TIMESTAMP:
            item = self.decode(length_delimited(content, name), kind, depth + 1)
        else:
            item = self.scalar(kind, content, name)
        if repeated:
            value.setdefault(name, []).append(item)
        elif isinstance(item, dict) and isinstance(value.get(name), dict):
            # A message may come in parts.
            value[name] = {**value[name], **item}
        else:
            value[name] = item

    def is_scalar(self, kind: str) -> bool:
        return kind not in self.messages

    def map_entry(self, raw: memoryview) -> tuple[str, str]:
        pair = {1: "", 2: ""}
        position = 0
        while position < len(raw):
            key, position = varint(raw, position)
            content, position = piece(raw, position, key & 7)
            if key >> 3 in pair:
                pair[key >> 3] = text(content, "a map's entry")
        return pair[1], pair[2]

    def scalar(self, kind: str, content: int | memoryview, name: str) -> Any:
        if kind == "string":
            return text(length_delimited(content, name), name)
        if kind == "bytes":
            return base64.b64encode(length_delimited(content, name)).decode()
        if not isinstance(content, int):
            raise InvalidArgument(f"field {name} has the wrong wire type")
        if kind == "bool":
            return content != 0
        if kind == "sint32":
            return (content >> 1) ^ -(content & 1)
        if kind in UNSIGNED_BITS:
            number = content & ((1 << UNSIGNED_BITS[kind]) - 1)
        elif kind in SIGNED_BITS:
            bits = SIGNED_BITS[kind]
            number = content & ((1 << bits) - 1)
            if number >> (bits - 1):
                number -= 1 << bits
        else:
            return self.enums[kind].get(content, content)
        return str(number) if kind in AS_STRING else number

    # writing

    def encode(self, value: Any, message: str) -> bytes:
        if message == TIMESTAMP:
            value = seconds_and_nanos(value)
            fields = TIMESTAMP_FIELDS
        else:
            fields = self.messages[message]
        out = bytearray()
        for number, (name, kind, repeated) in fields.items():
            if name not in value:
                continue
            if kind == "map":
                for key, item in value[name].items():
                    entry = delimited(1, key.encode()) + delimited(2, item.encode())
                    out += delimited(number, entry)
                continue
            for item in value[name] if repeated else (value[name],):
                out += self.encode_field(number, kind, item)
        return bytes(out)

    def encode_field(self, number: int, kind: str, item: Any) -> bytes:
        if kind in self.messages or kind == TIMESTAMP:
            return delimited(number, self.encode(item, kind))
        if kind == "string":
            return delimited(number, item.encode())
        if kind == "bytes":
            return delimited(number, base64.b64decode(item))
        if kind == "sint32":
            encoded = (item << 1) ^ (item >> 31)
        elif kind in self.enums:
            numbers = {name: value for value, name in self.enums[kind].items()}
            encoded = numbers[item] if isinstance(item, str) else item
        else:
            encoded = int(item)
        return tag(number, VARINT) + to_varint(encoded & ((1 << 64) - 1))


def varint(raw: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(raw) and shift < 70:
        byte = raw[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value & ((1 << 64) - 1), position
        shift += 7
    raise InvalidArgument("the message is no protobuf: a number has no end")


def piece(raw: memoryview, position: int, wire: int) -> tuple[memoryview, int]:
    if wire == LEN:
        length, position = varint(raw, position)
    elif wire in FIXED_BYTES:
        length = FIXED_BYTES[wire]
    else:
        raise InvalidArgument(f"the message is no protobuf: wire type {wire}")
    end = position + length
    if end > len(raw):
        raise InvalidArgument("the message is no protobuf: it ends too early")
    return raw[position:end], end


def length_delimited(content: int | memoryview, name: str) -> memoryview:
    if isinstance(content, int):
        raise InvalidArgument(f"field {name} has the wrong wire type")
    return content


def text(content: memoryview, name: str) -> str:
    try:
        return str(content, "utf-8")
    except UnicodeDecodeError as exc:
        raise InvalidArgument(f"field {name} is not UTF-8") from exc


def to_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def tag(number: int, wire: int) -> bytes:
    return to_varint(number << 3 | wire)


def delimited(number: int, content: bytes) -> bytes:
    return tag(number, LEN) + to_varint(len(content)) + content


def rfc3339(value: Mapping[str, Any]) -> str:
    try:
        moment = EPOCH + timedelta(seconds=int(value.get("seconds", 0)))
    except OverflowError as exc:
        raise InvalidArgument("a timestamp is out of range") from exc
    nanos = int(value.get("nanos", 0))
    fraction = f".{nanos:09}" if nanos else ""
    return f"{moment:%Y-%m-%dT%H:%M:%S}{fraction}Z"


def seconds_and_nanos(value: str) -> dict[str, int]:
    whole, _, fraction = value.removesuffix("Z").partition(".")
    seconds = (datetime.fromisoformat(whole).replace(tzinfo=UTC) - EPOCH) // timedelta(seconds=1)
    return {"seconds": seconds, "nanos": int(fraction.ljust(9, "0")) if fraction else 0}
