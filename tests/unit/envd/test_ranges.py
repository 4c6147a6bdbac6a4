"""Which part of a file a GET is for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opene2b.envd.ranges import (
    Span,
    Unsatisfiable,
    Validators,
    accepted_encodings,
    http_date,
    is_unchanged,
    parse_http_date,
    wanted_span,
)

CURRENT = Validators(etag='"v1"', modified_s=1_700_000_000)
DATE = "Tue, 14 Nov 2023 22:13:20 GMT"


@given(first=st.integers(0, 300), last=st.integers(0, 300), size=st.integers(0, 200))
def test_a_range_is_the_slice_it_names(first: int, last: int, size: int) -> None:
    content = bytes(range(200))[:size]
    headers = {"range": f"bytes={first}-{last}"}
    if last >= first and first >= size:
        with pytest.raises(Unsatisfiable):
            wanted_span(headers, size, CURRENT)
        return

    span = wanted_span(headers, size, CURRENT)

    if last < first:
        assert span is None
    else:
        assert span is not None
        assert content[span.offset : span.offset + span.length] == content[first : last + 1]


@given(st.text(max_size=30), st.integers(0, 100))
def test_any_range_text_gives_a_part_of_the_file_or_the_whole(text: str, size: int) -> None:
    try:
        span = wanted_span({"range": "bytes=" + text}, size, CURRENT)
    except Unsatisfiable:
        return

    assert span is None or (span.length > 0 and 0 <= span.offset <= size - span.length)


@pytest.mark.parametrize(
    ("asked", "span"),
    [
        ("bytes=2-", Span(offset=2, length=8)),
        ("bytes=-3", Span(offset=7, length=3)),
        ("bytes=-99", Span(offset=0, length=10)),
        ("bytes=0-0", Span(offset=0, length=1)),
        ("bytes=0-1,3-4", None),
        ("bytes=-", None),
        ("lines=1-2", None),
        ("bytes=" + "9" * 40 + "-", None),
    ],
)
def test_forms_of_ranges(asked: str, span: Span | None) -> None:
    assert wanted_span({"range": asked}, 10, CURRENT) == span


def test_a_suffix_of_nothing_cannot_be_had() -> None:
    with pytest.raises(Unsatisfiable):
        wanted_span({"range": "bytes=-0"}, 10, CURRENT)


@pytest.mark.parametrize(
    ("condition", "applies"),
    [('"v1"', True), ('"v2"', False), ('W/"v1"', False), (DATE, True), ("rubbish", False)],
)
def test_if_range_keeps_parts_of_one_version_together(condition: str, applies: bool) -> None:
    headers = {"range": "bytes=0-1", "if-range": condition}

    assert (wanted_span(headers, 10, CURRENT) is not None) == applies


@pytest.mark.parametrize(
    ("headers", "unchanged"),
    [
        ({}, False),
        ({"if-none-match": '"v1"'}, True),
        ({"if-none-match": '"x", W/"v1"'}, True),
        ({"if-none-match": "*"}, True),
        ({"if-none-match": '"v2"', "if-modified-since": DATE}, False),
        ({"if-modified-since": DATE}, True),
        ({"if-modified-since": "Tue, 14 Nov 2023 22:13:19 GMT"}, False),
        ({"if-modified-since": "yesterday"}, False),
    ],
)
def test_conditions_on_the_clients_copy(headers: dict[str, str], unchanged: bool) -> None:
    assert is_unchanged(headers, CURRENT) == unchanged


@given(st.integers(0, 250_000_000_000))
def test_dates_survive_the_trip(moment_s: int) -> None:
    assert parse_http_date(http_date(moment_s)) == moment_s


@pytest.mark.parametrize(
    ("header", "gzip", "plain"),
    [
        (None, False, True),
        ("", False, True),
        ("gzip", True, True),
        ("gzip, deflate, br", False, True),
        ("zstd,gzip,br", False, True),
        ("gzip, br, identity;q=0", True, False),
        ("identity", False, True),
        ("gzip;q=0", False, True),
        ("gzip;q=0.5, identity;q=0.9", False, True),
        ("identity;q=0", False, False),
        ("identity;q=0, gzip", True, False),
        ("*", False, True),
        ("*;q=0", False, False),
        ("br;q=1, *;q=0, identity", False, True),
        ("GZIP; Q=1", True, True),
        ("gzip;q=7", False, True),
    ],
)
def test_accept_encoding(header: str | None, gzip: bool, plain: bool) -> None:
    assert accepted_encodings(header) == (gzip, plain)


def test_times_beyond_dates_are_clamped() -> None:
    assert http_date(2**62) == "Fri, 31 Dec 9999 23:59:59 GMT"
    assert http_date(-5) == "Thu, 01 Jan 1970 00:00:00 GMT"
