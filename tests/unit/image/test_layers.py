import io
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from opene2b.core.errors import InvalidArgument, OutOfSpace
from opene2b.image.layers import Cancelled, Limits, Unpacker
from opene2b.linux.rooted import Root

SYMLINK, HARDLINK = tarfile.SYMTYPE, tarfile.LNKTYPE


def test_files_directories_and_links_are_unpacked(tree: Path, apply, member) -> None:
    apply(
        (
            member("./"),
            member("./etc/", mode=0o750, mtime=1_000_000),
            member("./etc/a", b"hello", mode=0o640, mtime=1_000_001),
            member("./etc/b", type=SYMLINK, linkname="a"),
            member("./etc/c", type=HARDLINK, linkname="./etc/a"),
            member("./etc/d", type=tarfile.FIFOTYPE),
        )
    )

    assert (tree / "etc/a").read_bytes() == b"hello"
    assert (tree / "etc/b").readlink() == Path("a")
    assert (tree / "etc/a").stat().st_ino == (tree / "etc/c").stat().st_ino
    assert stat.S_ISFIFO((tree / "etc/d").stat().st_mode)
    assert stat.S_IMODE((tree / "etc").stat().st_mode) == 0o750
    assert (tree / "etc").stat().st_mtime == 1_000_000
    assert (tree / "etc/a").stat().st_mtime == 1_000_001


def test_setuid_and_sticky_bits_are_kept(tree: Path, apply, member) -> None:
    apply((member("su", b"x", mode=0o4755), member("tmp", mode=0o1777)))

    assert stat.S_IMODE((tree / "su").stat().st_mode) == 0o4755
    assert stat.S_IMODE((tree / "tmp").stat().st_mode) == 0o1777


def test_directories_that_no_member_names_are_made(tree: Path, apply, member) -> None:
    apply((member("a/b/c", b"x"),))

    assert (tree / "a/b/c").read_bytes() == b"x"


def test_a_whiteout_removes_what_a_lower_layer_brought(tree: Path, apply, member) -> None:
    apply(
        (member("d/"), member("d/a", b"1"), member("d/sub/x", b"1"), member("d/b", b"1")),
        (member("d/.wh.a", b""), member("d/.wh.sub", b""), member("d/.wh.absent", b"")),
    )

    assert sorted(os.listdir(tree / "d")) == ["b"]


def test_a_whiteout_leaves_what_its_own_layer_brought(tree: Path, apply, member) -> None:
    apply((member("a", b"old"),), (member("a", b"new"), member(".wh.a", b"")))

    assert (tree / "a").read_bytes() == b"new"


@pytest.mark.parametrize("opaque_is_last", [True, False])
def test_an_opaque_directory_shows_only_its_own_layer(
    tree: Path, apply, member, opaque_is_last: bool
) -> None:
    opaque = member("d/.wh..wh..opq", b"")
    own = (member("d/new", b"2"), member("d/sub/new", b"2"))
    apply(
        (member("d/old", b"1"), member("d/sub/old", b"1"), member("other", b"1")),
        (member("d/"), *own, opaque) if opaque_is_last else (member("d/"), opaque, *own),
    )

    found = sorted(str(p.relative_to(tree)) for p in tree.rglob("*") if p.is_file())
    assert found == ["d/new", "d/sub/new", "other"]


def test_whiteouts_never_remain_as_files(tree: Path, apply, member) -> None:
    apply((member(".wh.x", b""), member(".wh..wh.plnk", b""), member(".wh..wh..opq", b"")))

    assert os.listdir(tree) == []


def test_a_file_takes_the_place_of_a_directory_and_back(tree: Path, apply, member) -> None:
    apply(
        (member("a/x", b"1"), member("b", b"1")),
        (member("a", b"2"), member("b/"), member("b/x", b"2")),
    )

    assert (tree / "a").read_bytes() == b"2"
    assert (tree / "b/x").read_bytes() == b"2"


def test_a_directory_over_a_directory_keeps_its_entries(tree: Path, apply, member) -> None:
    apply((member("a/x", b"1"),), (member("a/", mode=0o700),))

    assert (tree / "a/x").read_bytes() == b"1"
    assert stat.S_IMODE((tree / "a").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "name", ["../escape", "a/../../escape", "/../escape", "d/.wh...", "d/.wh.", "d/.wh..", ".."]
)
def test_names_that_lead_out_are_refused(tmp_path: Path, apply, member, name: str) -> None:
    (tmp_path / "escape").write_text("outside")

    with pytest.raises(InvalidArgument):
        apply((member("d/"), member(name, b"x")))
    assert (tmp_path / "escape").read_text() == "outside"


@pytest.mark.parametrize("form", ["absolute", "relative"])
def test_writing_through_a_link_stays_inside(
    tmp_path: Path, tree: Path, apply, member, form: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("safe")
    target = str(outside) if form == "absolute" else "../outside"
    link = member("link", type=SYMLINK, linkname=target)

    with pytest.raises(InvalidArgument):
        apply((link, member("link/victim", b"owned")))

    assert (outside / "victim").read_text() == "safe"
    assert os.listdir(outside) == ["victim"]


def test_a_link_to_an_absolute_directory_means_that_of_the_tree(tree: Path, apply, member) -> None:
    apply(
        (member("usr/bin/"), member("bin", type=SYMLINK, linkname="/usr/bin")),
        (member("bin/tool", b"x"), member("bin/.wh.tool2", b"")),
    )

    assert (tree / "usr/bin/tool").read_bytes() == b"x"
    assert (tree / "bin").is_symlink()


def test_a_file_replaces_a_link_instead_of_writing_through_it(
    tmp_path: Path, tree: Path, apply, member
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("safe")

    apply((member("f", type=SYMLINK, linkname=str(victim)), member("f", b"new")))

    assert victim.read_text() == "safe"
    assert (tree / "f").read_bytes() == b"new"
    assert not (tree / "f").is_symlink()


@pytest.mark.parametrize("target", ["../victim", "/nowhere/x", "", "link/victim"])
def test_a_hard_link_cannot_reach_outside(tmp_path: Path, apply, member, target: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("safe")
    link = member("link", type=SYMLINK, linkname=str(tmp_path))

    with pytest.raises(InvalidArgument):
        apply((link, member("h", type=HARDLINK, linkname=target)))
    assert victim.stat().st_nlink == 1


def test_a_hard_link_to_a_link_does_not_follow_it(
    tmp_path: Path, tree: Path, apply, member
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("safe")

    apply(
        (
            member("s", type=SYMLINK, linkname=str(victim)),
            member("h", type=HARDLINK, linkname="s"),
        )
    )

    assert victim.stat().st_nlink == 1
    assert (tree / "h").is_symlink()


def test_a_whiteout_through_a_link_stays_inside(tmp_path: Path, apply, member) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("safe")

    apply(
        (member("link", type=SYMLINK, linkname=str(outside)),),
        (member("link/.wh.victim", b""), member("link/.wh..wh..opq", b"")),
    )

    assert (outside / "victim").read_text() == "safe"


def test_removing_a_directory_does_not_follow_links_in_it(
    tmp_path: Path, tree: Path, apply, member
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("safe")

    apply(
        (member("d/link", type=SYMLINK, linkname=str(outside)),),
        (member(".wh.d", b""),),
    )

    assert (outside / "victim").read_text() == "safe"
    assert os.listdir(tree) == []


def test_device_nodes_are_left_out(tree: Path, apply, member) -> None:
    unpacker = apply(
        (
            member("dev/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
            member("dev/sda", type=tarfile.BLKTYPE, devmajor=8),
            member("dev/x", b"1"),
        )
    )

    assert os.listdir(tree / "dev") == ["x"]
    assert unpacker.devices == 2


def test_names_that_are_not_utf8_are_kept(tree: Path, apply, member) -> None:
    apply((member("caf\udce9", b"x"),))

    assert os.listdir(os.fsencode(tree)) == [b"caf\xe9"]


def test_user_attributes_are_kept_and_those_of_the_host_are_not(tree: Path, apply, member) -> None:
    headers = {
        "SCHILY.xattr.user.note": "hi",
        "SCHILY.xattr.trusted.overlay.opaque": "y",
        "SCHILY.xattr.security.selinux": "label",
    }
    try:
        os.setxattr(tree, "user.probe", b"1")
    except OSError:
        pytest.skip("this file system has no user attributes")

    apply((member("f", b"x", pax_headers=headers),))

    assert os.listxattr(tree / "f") == ["user.note"]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0 and not os.environ.get("CI"), reason="needs root")
def test_owners_are_kept_and_ids_no_sandbox_has_become_nobody(tree: Path, apply, member) -> None:
    apply((member("a", b"", uid=1000, gid=5), member("b", b"", uid=1_000_530_000, gid=65535)))

    a, b = (tree / "a").stat(), (tree / "b").stat()
    assert (a.st_uid, a.st_gid, b.st_uid, b.st_gid) == (1000, 5, 65534, 65535)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0 and not os.environ.get("CI"), reason="needs root")
def test_file_capabilities_are_kept(tree: Path, apply, member) -> None:
    capability = b"\x01\x00\x00\x02\x00\x20\x00\x00" + bytes(12)  # cap_net_raw, effective
    headers = {"SCHILY.xattr.security.capability": capability.decode()}

    apply((member("ping", b"x", pax_headers=headers, mode=0o755),))

    assert os.getxattr(tree / "ping", "security.capability") == capability


def test_more_bytes_than_allowed_are_refused(root: Root, make_tar, member) -> None:
    unpacker = Unpacker(root=root, limits=Limits(size_bytes=10))

    with pytest.raises(OutOfSpace):
        unpacker.apply(io.BytesIO(make_tar(member("a", b"12345"), member("b", b"123456"))))


def test_more_members_than_allowed_are_refused(root: Root, make_tar, member) -> None:
    unpacker = Unpacker(root=root, limits=Limits(members=1))

    with pytest.raises(OutOfSpace):
        unpacker.apply(io.BytesIO(make_tar(member("a/"), member("b/"))))


def test_a_name_of_megabytes_is_refused_before_it_is_read(root: Root, make_tar, member) -> None:
    with pytest.raises(InvalidArgument, match="header of more than 1 MiB"):
        Unpacker(root=root).apply(io.BytesIO(make_tar(member("x" * (2 << 20), b""))))


def test_directories_nested_without_end_are_refused(apply, member) -> None:
    with pytest.raises(InvalidArgument, match="deep"):
        apply((member("a/" * 300, b""),))


@pytest.mark.parametrize("cut", [100, 700, 1200])
def test_a_damaged_archive_is_refused(
    root: Root, make_tar: Callable[..., bytes], member, cut: int
) -> None:
    data = make_tar(member("a", b"x" * 2000))

    with pytest.raises(InvalidArgument):
        Unpacker(root=root).apply(io.BytesIO(data[:cut]))


def test_unpacking_can_be_stopped(root: Root, make_tar, member) -> None:
    unpacker = Unpacker(root=root, is_cancelled=lambda: True)

    with pytest.raises(Cancelled):
        unpacker.apply(io.BytesIO(make_tar(member("a/"))))
