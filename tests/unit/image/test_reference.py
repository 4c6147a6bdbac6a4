import pytest

from opene2b.core.errors import InvalidArgument
from opene2b.image import reference

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("python", "docker.io/library/python:latest"),
        ("python:3.12-slim", "docker.io/library/python:3.12-slim"),
        ("acme/tool", "docker.io/acme/tool:latest"),
        ("docker.io/python", "docker.io/library/python:latest"),
        ("index.docker.io/acme/tool:1", "docker.io/acme/tool:1"),
        ("ghcr.io/acme/deep/tool:v1", "ghcr.io/acme/deep/tool:v1"),
        ("localhost/tool", "localhost/tool:latest"),
        ("localhost:5000/tool:x", "localhost:5000/tool:x"),
        ("[::1]:5000/tool", "[::1]:5000/tool:latest"),
        (f"quay.io/a/b@{DIGEST}", f"quay.io/a/b@{DIGEST}"),
        (f"quay.io/a/b:1@{DIGEST}", f"quay.io/a/b:1@{DIGEST}"),
    ],
)
def test_a_name_is_read_as_people_write_it(text: str, whole: str) -> None:
    assert str(reference.parse(text)) == whole


@pytest.mark.parametrize(
    "text",
    [
        "",
        "UPPER/case",
        "a//b",
        "../etc",
        "ghcr.io/",
        "tool:",
        "tool:bad tag",
        "tool@sha256:short",
        "tool@md5:" + "a" * 32,
        "host.io:99999/tool",
        "user@host.io/tool",
        "https://host.io/tool",
        "a/" + "b" * 300,
    ],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        reference.parse(text)


def test_a_digest_wins_over_a_tag() -> None:
    assert reference.parse(f"a/b:1@{DIGEST}").version == DIGEST


def test_docker_hub_answers_under_another_name() -> None:
    assert reference.parse("python").host == "registry-1.docker.io"


@pytest.mark.parametrize(
    ("host", "is_here"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("[::1]", True),
        ("10.0.0.1", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
    ],
)
def test_only_this_machine_is_loopback(host: str, is_here: bool) -> None:
    assert reference.is_loopback(host) is is_here
