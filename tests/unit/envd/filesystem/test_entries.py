"""EntryInfo of every kind of file."""

import json
import os
import socket
import stat
from pathlib import Path

import pytest

from opene2b.envd.filesystem.entries import describe, mode_string, timestamp
from opene2b.envd.filesystem.owners import OwnerNames


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        (stat.S_IFREG | 0o644, "-rw-r--r--"),
        (stat.S_IFDIR | 0o755, "drwxr-xr-x"),
        (stat.S_IFLNK | 0o777, "Lrwxrwxrwx"),
        (stat.S_IFDIR | 0o1777, "dtrwxrwxrwx"),
        (stat.S_IFREG | 0o4755, "urwxr-xr-x"),
        (stat.S_IFREG | 0o2755, "grwxr-xr-x"),
        (stat.S_IFREG | 0o6711, "ugrwx--x--x"),
        (stat.S_IFCHR | 0o666, "Dcrw-rw-rw-"),
        (stat.S_IFBLK | 0o660, "Drw-rw----"),
        (stat.S_IFIFO | 0o600, "prw-------"),
        (stat.S_IFSOCK | 0o777, "Srwxrwxrwx"),
        (stat.S_IFREG, "----------"),
    ],
)
def test_modes_are_written_as_go_does(mode: int, text: str) -> None:
    assert mode_string(mode) == text


def test_a_file_is_described_whole(tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text(f"someone:x:{os.getuid()}:0::/:\n")
    (tmp_path / "group").write_text("broken\n:x:5:\n")
    names = OwnerNames(users=str(tmp_path / "passwd"), groups=str(tmp_path / "group"))
    path = tmp_path / "f.txt"
    path.write_text("12345")
    path.chmod(0o640)
    os.utime(path, ns=(0, 1_700_000_000_000_000_001))

    assert describe(str(path), names) == {
        "name": "f.txt",
        "type": "FILE_TYPE_FILE",
        "path": str(path),
        "size": "5",
        "mode": 0o640,
        "permissions": "-rw-r-----",
        "owner": "someone",
        "group": str(path.stat().st_gid),
        "modifiedTime": "2023-11-14T22:13:20.000000001Z",
    }


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("file", "FILE_TYPE_FILE"),
        ("dir", "FILE_TYPE_DIRECTORY"),
        ("nowhere", "FILE_TYPE_SYMLINK"),
        ("link", "FILE_TYPE_SYMLINK"),
    ],
)
def test_a_symlink_has_the_type_of_its_target(tmp_path: Path, target: str, kind: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dir").mkdir()
    (tmp_path / "link").symlink_to(target)
    entry = describe(str(tmp_path / "link"), OwnerNames())

    assert entry["type"] == kind
    assert entry["isSymlink"] is True
    assert entry["symlinkTarget"] == str(tmp_path / target)
    assert entry["permissions"] == "Lrwxrwxrwx"


def test_fifos_and_sockets_have_no_type(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "sock"))
    kinds = {describe(str(tmp_path / name), OwnerNames())["type"] for name in ("fifo", "sock")}

    assert kinds == {"FILE_TYPE_UNSPECIFIED"}


def test_a_name_that_is_not_utf8_makes_valid_json(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\xfe.txt"
    Path(os.fsdecode(path)).touch()
    entry = describe(os.fsdecode(path), OwnerNames())

    assert entry["name"] == "\ufffd\ufffd.txt"
    assert json.dumps(entry, ensure_ascii=False).encode("utf-8")


def test_metadata_comes_from_attributes(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.touch()
    try:
        os.setxattr(path, "user.e2b.author", b"me")
    except OSError:
        pytest.skip("no user xattrs in the temporary directory")
    os.setxattr(path, "user.other", b"hidden")

    assert describe(str(path), OwnerNames())["metadata"] == {"author": "me"}


def test_a_passwd_that_changes_is_read_again(tmp_path: Path) -> None:
    names = OwnerNames(users=str(tmp_path / "passwd"))
    (tmp_path / "passwd").write_text("a:x:7:7::/:\n")
    first = names.users.name(7)
    (tmp_path / "passwd").write_text("bcd:x:7:7::/:\n")

    assert (first, names.users.name(7)) == ("a", "bcd")


def test_a_fifo_for_a_passwd_stops_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "passwd")

    assert OwnerNames(users=str(tmp_path / "passwd")).users.name(7) == "7"


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (-1, "1969-12-31T23:59:59.999999999Z"),
        (2**63 * 10**9, "9999-01-01T00:00:00Z"),
        (-(2**63) * 10**9, "0001-01-01T00:00:00Z"),
    ],
)
def test_times_stay_in_the_range_of_a_timestamp(ns: int, text: str) -> None:
    assert timestamp(ns) == text
