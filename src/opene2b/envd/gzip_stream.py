"""gzip in constant memory, both ways.

Nothing but the disk bounds how large an inflated body may become; memory never holds more than one
piece of it.
"""

import zlib
from collections.abc import AsyncIterable, AsyncIterator

from opene2b.core.errors import InvalidArgument

_GZIP = 16 + zlib.MAX_WBITS
_PIECE_BYTES = 256 << 10
_LEVEL = 1  # three times as fast as zlib's default of 6, and a tenth larger


async def inflate(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """The content of a gzip stream of one or more members, in pieces of at most 256 KiB.

    Raises:
        InvalidArgument: it is not gzip, ends early, or is followed by something else.
    """
    member = zlib.decompressobj(_GZIP)
    is_inside = False  # between the first byte of a member and its end
    seen_member = False
    async for chunk in chunks:
        data = chunk
        while data:
            if not is_inside and seen_member:
                data = data.lstrip(b"\0")  # padding after the last member, as gzip(1) accepts it
                if not data:
                    break
            is_inside = True
            try:
                piece = member.decompress(data, _PIECE_BYTES)
            except zlib.error as exc:
                raise InvalidArgument("body is not valid gzip") from exc
            if piece:
                yield piece
            data = member.unconsumed_tail
            while not member.eof and not data and len(piece) == _PIECE_BYTES:
                # The input is used up, but some of its output may still be inside.
                piece = member.decompress(b"", _PIECE_BYTES)
                if piece:
                    yield piece
            if member.eof:
                data = member.unused_data
                member = zlib.decompressobj(_GZIP)
                is_inside, seen_member = False, True
    if is_inside or not seen_member:
        raise InvalidArgument("gzip body ends early")


async def deflate(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """A gzip stream of one member."""
    member = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
    async for chunk in chunks:
        if piece := member.compress(chunk):
            yield piece
    yield member.flush()
