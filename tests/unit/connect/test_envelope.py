import pytest
from hypothesis import given
from hypothesis import strategies as st

from opene2b.connect import envelope
from opene2b.core.errors import Internal, InvalidArgument, LimitExceeded


@given(st.lists(st.binary(max_size=200)), st.integers(1, 50))
def test_messages_survive_any_chunking(messages, piece):
    stream = b"".join(envelope.encode(message) for message in messages)
    decoder = envelope.Decoder(limit=1000)

    seen = []
    for at in range(0, len(stream), piece):
        seen += decoder.feed(stream[at : at + piece])
    decoder.finish()

    assert seen == messages


def test_a_message_over_the_limit_is_refused_before_it_has_arrived():
    decoder = envelope.Decoder(limit=10)

    with pytest.raises(LimitExceeded):
        list(decoder.feed(envelope.HEAD.pack(0, 11)))


@pytest.mark.parametrize(
    ("flags", "error"), [(1, Internal), (2, InvalidArgument), (0x80, InvalidArgument)]
)
def test_flags_that_a_client_may_not_send_are_refused(flags, error):
    decoder = envelope.Decoder(limit=10)

    with pytest.raises(error):
        list(decoder.feed(envelope.encode(b"x", flags)))


def test_a_stream_that_ends_inside_an_envelope_is_refused():
    decoder = envelope.Decoder(limit=10)
    list(decoder.feed(envelope.encode(b"abc")[:-1]))

    with pytest.raises(InvalidArgument):
        decoder.finish()
