"""Conditional and partial GET: which part of a file to send, if any. Pure.

Source: RFC 9110, sections 8.8 (validators), 12.5.3 (Accept-Encoding), 13 (conditions), 14 (ranges).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

_SINGLE = re.compile(r"bytes=[ \t]*([0-9]*)-([0-9]*)[ \t]*", re.ASCII | re.IGNORECASE)
_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')
_DATE = re.compile(
    r"[A-Z][a-z]{2}, ([0-9]{2}) ([A-Z][a-z]{2}) ([0-9]{4}) ([0-9]{2}):([0-9]{2}):([0-9]{2}) GMT"
)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_LAST_S = 253_402_300_799  # the end of the year 9999; a guest may set any time
_MAX_DIGITS = 19  # of a signed 64-bit length; int() of more could be made slow


@dataclass(frozen=True, slots=True, kw_only=True)
class Validators:
    """What tells one version of a file from another."""

    etag: str
    """Strong, with its quotes."""
    modified_s: int
    """Unix time in whole seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Part of a file, in bytes. At least one byte long."""

    offset: int
    length: int


class Unsatisfiable(Exception):
    """The range begins behind the end of the file: 416."""


def http_date(moment_s: int) -> str:
    """An IMF-fixdate; the names are English whatever the locale. Clamped to 1970-9999."""
    at = datetime.fromtimestamp(min(max(moment_s, 0), _LAST_S), UTC)
    return (
        f"{_DAYS[at.weekday()]}, {at.day:02} {_MONTHS[at.month - 1]} {at.year:04} "
        f"{at.hour:02}:{at.minute:02}:{at.second:02} GMT"
    )


def parse_http_date(text: str) -> int | None:
    """Unix seconds of an IMF-fixdate; None for anything else, which a condition then ignores."""
    match = _DATE.fullmatch(text.strip())
    if match is None or match[2] not in _MONTHS:
        return None
    day, year, hour, minute, second = (int(match[at]) for at in (1, 3, 4, 5, 6))
    try:
        moment = datetime(
            year, _MONTHS.index(match[2]) + 1, day, hour, minute, min(second, 59), tzinfo=UTC
        )
    except ValueError:
        return None
    return int(moment.timestamp())


def is_unchanged(headers: Mapping[str, str], current: Validators) -> bool:
    """Whether the client's copy is still good: 304. If-None-Match decides alone if it is there."""
    tags = headers.get("if-none-match")
    if tags is not None:
        return tags.strip() == "*" or current.etag in _TAG.findall(tags)
    since = parse_http_date(headers.get("if-modified-since", ""))
    return since is not None and max(current.modified_s, 0) <= since


def wanted_span(headers: Mapping[str, str], size: int, current: Validators) -> Span | None:
    """The part asked for, or None for the whole file.

    Several ranges, another unit and malformed ones get the whole file, as the standard allows.

    Raises:
        Unsatisfiable: nothing of the file is in the range.
    """
    asked = headers.get("range")
    if asked is None or not _range_applies(headers.get("if-range"), current):
        return None
    match = _SINGLE.fullmatch(asked.strip())
    if match is None or max(len(match[1]), len(match[2])) > _MAX_DIGITS:
        return None
    first, last = match[1], match[2]
    if not first and not last:
        return None
    if not first:
        length = min(int(last), size)
        if length == 0:
            raise Unsatisfiable
        return Span(offset=size - length, length=length)
    if last and int(last) < int(first):
        return None
    if int(first) >= size:
        raise Unsatisfiable
    end = min(int(last), size - 1) if last else size - 1
    return Span(offset=int(first), length=end - int(first) + 1)


def _range_applies(condition: str | None, current: Validators) -> bool:
    if condition is None:
        return True
    condition = condition.strip()
    if condition.startswith('"'):
        return condition == current.etag
    # A weak tag never matches here, and a date only exactly.
    return parse_http_date(condition) == current.modified_s


def accepted_encodings(header: str | None) -> tuple[bool, bool]:
    """Whether gzip is welcome, and whether the plain file is acceptable.

    HTTP libraries accept every coding they know without being asked (`zstd,gzip,br`). A disk and a network of our day are
    several times faster than a compressor, so gzip is sent to who names it alone, as the SDKs' `gzip=True` does, and to
    who takes nothing else.
    """
    if header is None:
        return False, True
    weights: dict[str, float] = {}
    for element in header.split(","):
        coding, *parameters = (part.strip().lower() for part in element.split(";"))
        if coding:
            weights[coding] = _weight(parameters)
    rest = weights.get("*")
    gzip = weights.get("gzip", weights.get("x-gzip", rest if rest is not None else 0.0))
    # Without a word about it the plain file is acceptable, and preferred to nothing only.
    identity = weights.get("identity", 0.0 if rest == 0.0 else None)
    prefers_plain = identity is not None and identity > gzip
    takes_plain = identity is None or identity > 0.0
    is_meant = weights.keys() <= {"gzip", "x-gzip", "identity"} or not takes_plain
    return gzip > 0.0 and not prefers_plain and is_meant, takes_plain


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            if re.fullmatch(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?", value.strip(), re.ASCII):
                return float(value)
            return 0.0
    return 1.0
