"""The frames of a Connect stream: one byte of flags, a big-endian u32 length, the message. Pure.

Source: Connect protocol specification, streaming RPCs.
"""

import struct
from collections.abc import Iterator

from opene2b.core.errors import Internal, InvalidArgument, LimitExceeded

COMPRESSED = 0x01
END_STREAM = 0x02
HEAD = struct.Struct(">BI")


def encode(message: bytes, flags: int = 0) -> bytes:
    return HEAD.pack(flags, len(message)) + message


class Decoder:
    """Cuts a byte stream into messages, however it is chunked."""

    def __init__(self, *, limit: int) -> None:
        """`limit`: the largest message in bytes; a larger one raises LimitExceeded before it is kept."""
        self.limit = limit
        self.buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The messages that are whole now.

        Raises:
            LimitExceeded: a message is longer than the limit.
            Internal: a message is compressed: no encoding but identity was agreed on.
            InvalidArgument: flags that only a server may send, or none that exist.
        """
        self.buffer += data
        while len(self.buffer) >= HEAD.size:
            flags, length = HEAD.unpack_from(self.buffer)
            if flags & COMPRESSED:
                # The code that the specification gives to a compressed message where no compression was agreed on.
                raise Internal("a compressed message where no compression was agreed on")
            if flags:
                raise InvalidArgument(f"envelope has unknown flags {flags:#04x}")
            if length > self.limit:
                raise LimitExceeded(f"message of {length} bytes is larger than {self.limit}")
            if len(self.buffer) < HEAD.size + length:
                return
            message = bytes(self.buffer[HEAD.size : HEAD.size + length])
            del self.buffer[: HEAD.size + length]
            yield message

    def finish(self) -> None:
        """Raises InvalidArgument when the stream ended inside an envelope."""
        if self.buffer:
            raise InvalidArgument("the stream ended in the middle of an envelope")
