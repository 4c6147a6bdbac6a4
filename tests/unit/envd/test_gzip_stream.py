"""gzip in pieces."""

import gzip
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opene2b.core.errors import InvalidArgument
from opene2b.envd.gzip_stream import deflate, inflate


async def pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def inflated(data: bytes, size: int = 7) -> bytes:
    return b"".join([piece async for piece in inflate(pieces(data, size))])


@given(contents=st.lists(st.binary(max_size=200), min_size=1, max_size=3), size=st.integers(1, 99))
async def test_members_are_joined_however_they_are_cut(contents: list[bytes], size: int) -> None:
    data = b"".join(gzip.compress(content) for content in contents)

    assert await inflated(data, size) == b"".join(contents)


@given(cut=st.integers(0, 1000))
async def test_a_stream_cut_short_is_an_error(cut: int) -> None:
    data = gzip.compress(b"some content, some content")

    with pytest.raises(InvalidArgument):
        await inflated(data[: cut % len(data)])


@pytest.mark.parametrize("data", [b"not gzip", gzip.compress(b"a") + b"junk"])
async def test_what_is_not_gzip_is_an_error(data: bytes) -> None:
    with pytest.raises(InvalidArgument):
        await inflated(data)


async def test_padding_behind_the_last_member_is_ignored() -> None:
    assert await inflated(gzip.compress(b"abc") + b"\0" * 20) == b"abc"


async def test_a_bomb_comes_out_in_small_pieces() -> None:
    bomb = gzip.compress(bytes(20 << 20))
    sizes = [len(piece) async for piece in inflate(pieces(bomb, 1 << 20))]

    assert sum(sizes) == 20 << 20
    assert max(sizes) <= 256 << 10


async def test_deflate_makes_gzip() -> None:
    data = b"".join([piece async for piece in deflate(pieces(b"abc" * 1000, 100))])

    assert gzip.decompress(data) == b"abc" * 1000
