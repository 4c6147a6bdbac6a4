from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opene2b.api import paging
from opene2b.api.paging import Cursor
from opene2b.core.errors import InvalidArgument

MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


@given(
    st.datetimes(min_value=datetime(1970, 1, 1), timezones=st.just(UTC)),
    st.from_regex(r"[a-z0-9]{1,21}", fullmatch=True),
    st.booleans(),
)
def test_a_cursor_comes_back_as_it_was(moment, row_id, ascending):
    cursor = Cursor(moment, row_id, ascending)

    assert paging.decode(paging.encode(cursor), ascending=ascending) == cursor


def test_a_cursor_with_nanoseconds_is_read():
    import base64

    token = base64.urlsafe_b64encode(b"2026-01-02T03:04:05.678901234Z__iabc").decode()

    assert paging.decode(token) == Cursor(MOMENT, "iabc")


@pytest.mark.parametrize(
    "token",
    [
        "",
        "x",
        "!!!!",
        "aGVsbG8=",
        paging.encode(Cursor(MOMENT, "iabc", True)),
        paging.encode(Cursor(MOMENT, "iabcd")).rstrip("="),
        "A" * 10_000,
        "é",
        "MjAyNi0wMS0wMlQwMzowNDowNV9faWFiYw==",
    ],
)
def test_what_is_no_cursor_of_this_order_is_refused(token):
    with pytest.raises(InvalidArgument, match="Invalid next token"):
        paging.decode(token)


@pytest.mark.parametrize(("text", "limit"), [(None, 100), ("1", 1), ("100", 100), ("007", 7)])
def test_limits(text, limit):
    assert paging.parse_limit(text) == limit


@pytest.mark.parametrize("text", ["", "0", "101", "-1", "1.5", "ten", "9" * 5000, "١"])
def test_other_limits_are_refused(text):
    with pytest.raises(InvalidArgument, match="limit"):
        paging.parse_limit(text)
