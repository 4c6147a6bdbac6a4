import hashlib

from opene2b.core import keys


def test_no_two_keys_are_alike():
    assert len({keys.generate_key() for _ in range(100)}) == 100


def test_what_is_stored_is_the_digest_of_the_whole_key():
    assert keys.digest("e2b_abc") == hashlib.sha256(b"e2b_abc").hexdigest()


def test_a_mask_shows_six_digits_of_forty():
    assert keys.mask("e2b_" + "0123456789" * 4) == "e2b_01...6789"


def test_a_short_key_is_masked_whole():
    assert keys.mask("e2b_secret") == "..."


def test_a_key_of_another_form_shows_no_more_than_ours():
    assert keys.mask("my-own-long-secret-key") == "my...-key"
