"""Watching directories, by the messages of a real envd."""

import os
import threading
import time
from contextlib import contextmanager

import pytest
from connect_client import envelopes

LIMIT_S = 10


class Stream:
    """A WatchDir call whose events are collected beside the test."""

    def __init__(self, messages):
        self.messages = messages
        self.seen = []
        self.is_closing = False
        self.reader = threading.Thread(target=self.collect, daemon=True)
        self.reader.start()

    def collect(self):
        try:
            for message in self.messages:
                self.seen.append(message)
        except Exception:
            # The response was closed below this thread.
            if not self.is_closing:
                raise

    @property
    def events(self):
        return [
            (
                message["filesystem"]["name"],
                message["filesystem"]["type"].removeprefix("EVENT_TYPE_"),
            )
            for message in self.seen
            if "filesystem" in message
        ]

    def until(self, *wanted):
        """Wait until these events have come, in this order among others."""
        until = time.monotonic() + LIMIT_S
        while time.monotonic() < until:
            rest = iter(self.events)
            if all(event in rest for event in wanted):
                return
            time.sleep(0.01)
        raise AssertionError(f"{wanted} not in {self.events}")


@contextmanager
def watching(envd, path, **options):
    with envd.open("filesystem.Filesystem/WatchDir", {"path": str(path), **options}) as response:
        messages = envelopes(response.iter_raw())
        assert next(messages) == {"start": {}}
        stream = Stream(messages)
        yield stream
        stream.is_closing = True


def test_every_kind_of_change_is_told(envd, tmp_path):
    with watching(envd, tmp_path) as stream:
        (tmp_path / "a").write_text("1")
        stream.until(("a", "CREATE"), ("a", "WRITE"))
        (tmp_path / "a").chmod(0o600)
        stream.until(("a", "CHMOD"))
        (tmp_path / "a").rename(tmp_path / "b")
        stream.until(("a", "RENAME"), ("b", "CREATE"))
        (tmp_path / "b").unlink()
        stream.until(("b", "REMOVE"))
        (tmp_path / "below").mkdir()
        (tmp_path / "below/c").write_text("1")
        stream.until(("below", "CREATE"))

        assert not [event for event in stream.events if event[0].startswith("below/")]


def test_a_recursive_watch_sees_directories_that_were_there_and_that_come(envd, tmp_path):
    (tmp_path / "old/deep").mkdir(parents=True)
    with watching(envd, tmp_path, recursive=True) as stream:
        (tmp_path / "old/deep/a").write_text("1")
        stream.until(("old/deep/a", "CREATE"))
        # All of it may be there before anybody can look at the new directories.
        os.makedirs(tmp_path / "new/one/two")
        (tmp_path / "new/one/two/b").write_text("1")
        stream.until(("new", "CREATE"), ("new/one", "CREATE"), ("new/one/two", "CREATE"))
        stream.until(("new/one/two/b", "CREATE"))
        (tmp_path / "new/one/two/b").write_text("2")
        stream.until(("new/one/two/b", "CREATE"), ("new/one/two/b", "WRITE"))

        assert stream.events.count(("new/one/two/b", "CREATE")) == 1


def test_a_directory_that_moves_is_followed_under_its_new_name(envd, tmp_path):
    (tmp_path / "a/deep").mkdir(parents=True)
    with watching(envd, tmp_path, recursive=True) as stream:
        (tmp_path / "a").rename(tmp_path / "b")
        stream.until(("a", "RENAME"), ("b", "CREATE"), ("b/deep", "CREATE"))
        (tmp_path / "b/deep/file").write_text("1")
        stream.until(("b/deep/file", "CREATE"))

        assert not [event for event in stream.events if event[0].startswith("a/")]


def test_a_directory_that_left_is_not_looked_at_any_more(envd, tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    (inside / "a").mkdir(parents=True)
    outside.mkdir()
    with watching(envd, inside, recursive=True) as stream:
        (inside / "a").rename(outside / "a")
        stream.until(("a", "RENAME"))
        (outside / "a/file").write_text("1")
        (inside / "last").write_text("1")
        stream.until(("last", "CREATE"))

        assert "a/file" not in dict(stream.events)


def test_an_upload_is_told_as_what_it_is_to_others(envd, tmp_path):
    def upload(name):
        response = envd.http.post(
            "/files",
            params={"path": str(tmp_path / name)},
            content=b"x" * 100_000,
            headers={"Content-Type": "application/octet-stream"},
        )
        assert response.status_code == 200

    (tmp_path / "old").write_text("1")
    with watching(envd, tmp_path) as stream:
        upload("new")
        stream.until(("new", "CREATE"), ("new", "WRITE"))
        upload("old")
        stream.until(("old", "WRITE"))

        assert {name for name, _ in stream.events} == {"new", "old"}
        assert ("old", "CREATE") not in stream.events


def test_entries_come_along_when_asked_for(envd, tmp_path):
    with watching(envd, tmp_path, includeEntry=True) as stream:
        (tmp_path / "a").write_text("12345")
        stream.until(("a", "WRITE"))
        (tmp_path / "a").unlink()
        stream.until(("a", "REMOVE"))
        written = [
            m["filesystem"] for m in stream.seen if m["filesystem"]["type"].endswith("WRITE")
        ]
        removed = stream.seen[-1]["filesystem"]

    assert written[-1]["entry"]["path"] == str(tmp_path / "a")
    assert "entry" not in removed


def test_the_end_of_the_directory_itself_is_told(envd, tmp_path):
    (tmp_path / "root").mkdir()
    with watching(envd, tmp_path / "root") as stream:
        (tmp_path / "root").rmdir()
        stream.until((".", "REMOVE"))


def test_names_of_any_bytes_are_told(envd, tmp_path):
    with watching(envd, tmp_path) as stream:
        os.mkdir(os.fsencode(tmp_path) + b"/a\xff\n b")
        stream.until(("a\ufffd\n b", "CREATE"))


def test_two_watches_of_one_directory_do_not_disturb_each_other(envd, tmp_path):
    with watching(envd, tmp_path) as first:
        with watching(envd, tmp_path, recursive=True) as second:
            (tmp_path / "a").write_text("1")
            first.until(("a", "CREATE"))
            second.until(("a", "CREATE"))
        (tmp_path / "b").write_text("1")
        first.until(("b", "CREATE"))

        assert ("b", "CREATE") not in second.events


def test_watching_ends_with_its_time(envd, tmp_path):
    messages = envd.stream(
        "filesystem.Filesystem/WatchDir", {"path": str(tmp_path)}, **{"Connect-Timeout-Ms": "100"}
    )

    assert messages[0] == {"start": {}}
    assert messages[-1]["END"]["error"]["code"] == "deadline_exceeded"


def test_silence_is_broken_by_keepalives_while_watching(envd, tmp_path):
    messages = envd.stream(
        "filesystem.Filesystem/WatchDir",
        {"path": str(tmp_path)},
        **{"Keepalive-Ping-Interval": "1", "Connect-Timeout-Ms": "1500"},
    )

    assert {"keepalive": {}} in messages


@pytest.mark.parametrize(
    ("path", "code"), [("/nowhere", "not_found"), ("/etc/passwd", "invalid_argument")]
)
def test_what_cannot_be_watched_is_refused(envd, path, code):
    stream = envd.stream("filesystem.Filesystem/WatchDir", {"path": path})
    polled = envd.rpc("filesystem.Filesystem/CreateWatcher", {"path": path})

    assert [message["END"]["error"]["code"] for message in stream] == [code]
    assert polled.json()["code"] == code


def test_a_watcher_is_polled_and_removed(envd, tmp_path):
    def call(method, **message):
        return envd.rpc(f"filesystem.Filesystem/{method}", message)

    watcher = call("CreateWatcher", path=str(tmp_path), recursive=True).json()["watcherId"]
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b").write_text("1")
    seen = []
    until = time.monotonic() + LIMIT_S
    while ("a/b", "EVENT_TYPE_CREATE") not in seen and time.monotonic() < until:
        events = call("GetWatcherEvents", watcherId=watcher).json().get("events", [])
        seen += [(event["name"], event["type"]) for event in events]
        time.sleep(0.02)
    removed = call("RemoveWatcher", watcherId=watcher)

    assert seen[0] == ("a", "EVENT_TYPE_CREATE")
    assert ("a/b", "EVENT_TYPE_CREATE") in seen
    assert watcher.startswith("w")
    assert removed.json() == {}
    assert call("GetWatcherEvents", watcherId=watcher).json()["code"] == "not_found"
    assert call("RemoveWatcher", watcherId=watcher).json()["code"] == "not_found"


def test_a_watcher_that_is_not_polled_is_bounded_and_says_so(envd, tmp_path):
    created = envd.rpc("filesystem.Filesystem/CreateWatcher", {"path": str(tmp_path)}).json()
    for n in range(9000):
        (tmp_path / f"{n}").touch()
        (tmp_path / f"{n}").unlink()
    message = {"watcherId": created["watcherId"]}
    first = envd.rpc("filesystem.Filesystem/GetWatcherEvents", message)
    second = envd.rpc("filesystem.Filesystem/GetWatcherEvents", message)

    assert 0 < len(first.json()["events"]) <= 16384
    assert second.json()["code"] in {"resource_exhausted", "internal"}


def test_watchers_that_nobody_removes_are_bounded(envd, tmp_path):
    answers = [
        envd.rpc("filesystem.Filesystem/CreateWatcher", {"path": str(tmp_path)}).json()
        for _ in range(257)
    ]

    assert all("watcherId" in answer for answer in answers[:256])
    assert answers[256]["code"] == "resource_exhausted"
