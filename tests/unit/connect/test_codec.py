import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opene2b.connect import codec
from opene2b.connect.codec import Blob, Message
from opene2b.core.errors import InvalidArgument


class Inner(Message):
    count: int = 0


class Outer(Message):
    some_name: str = ""
    inner: Inner | None = None
    data: Blob | None = None
    names: dict[str, str] | None = None


class Sent(Message):
    exit_code: int = 0
    data: bytes | None = None


def test_names_are_lower_camel_case_and_zero_values_are_left_out():
    assert codec.encode(Sent(exit_code=3)) == b'{"exitCode":3}'
    assert codec.encode(Sent()) == b"{}"


def test_bytes_are_sent_as_padded_base64():
    assert codec.encode(Sent(data=b"\xff\xfe")) == b'{"data":"//4="}'


def test_unknown_fields_and_nulls_are_ignored():
    message = codec.decode(b'{"someName":"a","other":{"x":1},"inner":null}', Outer)

    assert message.some_name == "a"
    assert message.inner is None


def test_a_null_in_place_of_any_field_is_its_default():
    message = codec.decode(b'{"someName":null,"inner":{"count":null}}', Outer)

    assert message.some_name == ""
    assert message.inner.count == 0


def test_numbers_may_come_as_strings():
    assert codec.decode(b'{"inner":{"count":"7"}}', Outer).inner.count == 7


@given(st.binary(max_size=100))
def test_bytes_are_read_in_both_alphabets_with_and_without_padding(data):
    for text in (base64.b64encode(data), base64.urlsafe_b64encode(data)):
        for form in (text, text.rstrip(b"=")):
            message = codec.decode(b'{"data":"%b"}' % form, Outer)
            assert message.data.data == data


@pytest.mark.parametrize(
    "raw",
    [
        b"[]",
        b"1",
        b"1\0",
        b"null",
        b'"x"',
        b"{",
        b'{"someName":1}',
        b'{"data":"***"}',
        b'{"data":5}',
        b'{"names":{"a":1}}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_what_does_not_fit_is_an_invalid_argument(raw):
    with pytest.raises(InvalidArgument):
        codec.decode(raw, Outer)


def test_an_empty_body_is_an_empty_message():
    assert codec.decode(b"", Outer) == Outer()
