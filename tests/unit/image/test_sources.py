from pathlib import Path

import pytest

from opene2b.core.errors import InvalidArgument, Unsupported
from opene2b.image import sources
from opene2b.image.sources import Source

DEB822 = """\
# the release
Types: deb deb-src
# a comment within a stanza
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
 contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: https://packages.vendor.example/apt
Suites: bookworm
Components: main
Signed-By: /usr/share/keyrings/vendor.gpg

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main

Types: deb-src
URIs: http://src.example/debian
Suites: bookworm
Components: main
"""

ONE_LINE = """\
# deb http://commented.example/debian bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://one.example/debian bookworm main # why
deb-src http://one.example/debian bookworm main
deb http://security.example/debian-security bookworm-security main non-free
deb cdrom:[Debian]/ bookworm main
deb http://flat.example ./
deb http://one.example/debian trixie main
deb http://docker.example/linux/debian bookworm stable
"""


def test_deb822_stanzas_are_read_with_comments_and_continuations() -> None:
    found = list(sources.parse_deb822(DEB822))

    assert [(s.uri, s.suite, s.components) for s in found] == [
        ("http://mirror.example/debian", "bookworm", ("main", "contrib")),
        ("http://mirror.example/debian", "bookworm-updates", ("main", "contrib")),
        ("https://packages.vendor.example/apt", "bookworm", ("main",)),
    ]


def test_only_debian_of_the_wanted_release_is_kept() -> None:
    everything = [*sources.parse_deb822(DEB822), *sources.parse_list(ONE_LINE)]

    kept = sources.for_suite(everything, "bookworm")

    assert [(s.uri, s.suite) for s in kept] == [
        ("http://mirror.example/debian", "bookworm"),
        ("http://mirror.example/debian", "bookworm-updates"),
        ("http://one.example/debian", "bookworm"),
        ("http://security.example/debian-security", "bookworm-security"),
    ]


def test_every_file_that_apt_reads_is_read_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text("deb http://a.example/debian bookworm main\n")
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (parts / "b.list").write_text("deb http://b.example/debian bookworm main\n")
    (parts / "c.sources").write_text(
        "Types: deb\nURIs: http://c.example/debian\nSuites: bookworm\nComponents: main\n"
    )
    (parts / "d.list.disabled").write_text("deb http://d.example/debian bookworm main\n")

    found = sources.of_machine(tmp_path)

    assert [s.uri.split("/")[2] for s in found] == ["a.example", "b.example", "c.example"]


def test_a_machine_without_apt_has_no_sources(tmp_path: Path) -> None:
    assert sources.of_machine(tmp_path) == []


def test_a_mirror_has_the_release_its_updates_and_security() -> None:
    found = sources.of_mirror("http://m.example/debian/", "trixie")

    assert [s.line() for s in found] == [
        "deb http://m.example/debian trixie main",
        "deb http://m.example/debian trixie-updates main",
        "deb http://m.example/debian-security trixie-security main",
    ]


def test_a_mirror_that_is_no_address_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="ftp://x"):
        sources.of_mirror("ftp://x", "bookworm")


def test_a_source_line_names_its_keyring() -> None:
    source = Source(uri="http://m/debian", suite="bookworm", components=("main", "contrib"))

    line = source.line(Path("/k.gpg"))

    assert line == "deb [signed-by=/k.gpg] http://m/debian bookworm main contrib"


def test_a_password_is_left_out_of_what_is_shown() -> None:
    assert sources.public("http://joe:secret@m.example:81/debian") == "http://m.example:81/debian"


def test_os_release_is_read_with_and_without_quotes() -> None:
    found = sources.parse_os_release('ID=debian\nVERSION_CODENAME="bookworm"\n\n# x\n')

    assert (found["ID"], found["VERSION_CODENAME"]) == ("debian", "bookworm")


async def test_a_machine_without_debians_keys_is_told_the_package(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="apt-get install debian-archive-keyring"):
        await sources.find(mirror=None, suite=None, os_release={}, keyrings=[tmp_path / "none"])


async def test_a_suite_that_is_none_is_refused(tmp_path: Path) -> None:
    keyring = tmp_path / "k.gpg"
    keyring.touch()

    with pytest.raises(InvalidArgument, match="not the name of a Debian suite"):
        await sources.find(mirror=None, suite="../x", os_release={}, keyrings=[keyring])
