import pytest

from opene2b.core.errors import InvalidArgument
from opene2b.scheduler import names
from opene2b.scheduler.names import Name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("base", Name(None, "base", "default")),
        (" Base ", Name(None, "base", "default")),
        ("team/base", Name("team", "base", "default")),
        ("team/base:v1.2", Name("team", "base", "v1.2")),
        ("base:default", Name(None, "base", "default")),
        ("a_b-c", Name(None, "a_b-c", "default")),
    ],
)
def test_names_are_read(text, name):
    assert names.parse(text) == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "/",
        "a/",
        "/a",
        "a/b/c",
        "a b",
        "a:",
        "a:b:c",
        "ä",
        "../a",
        "a\nb",
        "a" * 129,
        "a:\0",
    ],
)
def test_what_is_no_name_is_refused(text):
    with pytest.raises(InvalidArgument, match="invalid"):
        names.parse(text)
