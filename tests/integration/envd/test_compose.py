"""POST /files/compose of a real envd."""

import os
import pty
from pathlib import Path

import pytest


def compose(envd, sources, destination, **more):
    return envd.http.post(
        "/files/compose",
        json={
            "source_paths": [str(path) for path in sources],
            "destination": str(destination),
            **more,
        },
    )


def parts(tmp_path, *contents):
    made = []
    for number, content in enumerate(contents):
        made.append(tmp_path / f"part{number}")
        made[-1].write_bytes(content)
    return made


def test_parts_become_one_file_and_are_gone(envd, tmp_path):
    sources = parts(tmp_path, b"one ", b"", b"two " * 1_000_000)
    answer = compose(envd, sources, tmp_path / "below/whole")

    assert answer.status_code == 200
    assert answer.json()["path"] == str(tmp_path / "below/whole")
    assert answer.json()["size"] == "4000004"
    assert (tmp_path / "below/whole").read_bytes() == b"one " + b"two " * 1_000_000
    assert not any(path.exists() for path in sources)


def test_the_destination_may_be_one_of_the_parts(envd, tmp_path):
    sources = parts(tmp_path, b"1", b"2")
    answer = compose(envd, sources, sources[0])

    assert answer.status_code == 200
    assert sources[0].read_bytes() == b"12"
    assert not sources[1].exists()


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"source_paths": []}, 400),
        ({"source_paths": [""]}, 400),
        ({"source_paths": ["/nowhere/x"]}, 404),
        ({"source_paths": ["/tmp"]}, 400),
        ({"source_paths": ["/dev/zero"]}, 400),
        ({"source_paths": "x"}, 400),
        ({"destination": ""}, 400),
        ({"destination": "/tmp"}, 400),
        ({"destination": "a\0b"}, 400),
        ({"username": "nobody-here"}, 401),
    ],
)
def test_what_cannot_be_composed_changes_nothing(envd, tmp_path, change, status):
    sources = parts(tmp_path, b"1")
    message = {"source_paths": [str(sources[0])], "destination": str(tmp_path / "whole"), **change}
    answer = envd.http.post("/files/compose", json=message)

    assert (answer.status_code, answer.json()["code"]) == (status, status)
    assert os.listdir(tmp_path) == ["part0"]


def test_a_missing_part_behind_others_leaves_them(envd, tmp_path):
    sources = parts(tmp_path, b"1", b"2")
    answer = compose(envd, [*sources, tmp_path / "missing"], tmp_path / "whole")

    assert answer.status_code == 404
    assert sorted(os.listdir(tmp_path)) == ["part0", "part1"]


def test_compose_needs_the_token(envd, tmp_path):
    answer = envd.http.post("/files/compose", json={}, headers={"X-Access-Token": "wrong"})

    assert answer.status_code == 401


def test_a_part_under_another_name_of_the_destination_is_not_lost(envd, tmp_path):
    sources = parts(tmp_path, b"A", b"B")
    (tmp_path / "link").symlink_to(sources[0])
    answer = compose(envd, sources, tmp_path / "link")

    assert answer.status_code == 200
    assert (tmp_path / "link").read_bytes() == b"AB"
    assert sources[0].read_bytes() == b"AB"
    assert not sources[1].exists()


def test_a_part_that_is_reached_through_a_linked_directory_is_not_lost(envd, tmp_path):
    sources = parts(tmp_path, b"A", b"B")
    (tmp_path / "again").symlink_to(tmp_path)
    answer = compose(envd, [tmp_path / "again" / sources[0].name, sources[1]], sources[0])

    assert answer.status_code == 200
    assert sources[0].read_bytes() == b"AB"


def test_a_terminal_among_the_parts_is_refused_and_does_not_become_envd_s(envd, tmp_path):
    master, slave = pty.openpty()
    try:
        answer = compose(envd, [os.ttyname(slave)], tmp_path / "whole")
    finally:
        os.close(slave)
        os.close(master)

    assert answer.status_code == 400
    assert envd.http.get("/health").status_code == 204
    assert Path(f"/proc/{envd.pid}/stat").read_text().rpartition(")")[2].split()[4] == "0"
