import os
import stat
import subprocess
from pathlib import Path

import pytest

from opene2b.core.errors import InvalidArgument
from opene2b.image import provision
from opene2b.linux.rooted import Root

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0 and not os.environ.get("CI"), reason="needs root"),
]


@pytest.fixture
def image(tree: Path) -> Path:
    """The least an image can be."""
    for name in ("bin", "usr/bin", "etc"):
        (tree / name).mkdir(parents=True)
    (tree / "bin/bash").touch()
    return tree


def test_an_image_without_bash_is_refused_with_the_remedy(tree: Path, root: Root) -> None:
    with pytest.raises(InvalidArgument, match=r"no bash.*apk add bash"):
        provision.provision(root)


def test_a_bare_image_gets_the_user_and_root(image: Path, root: Root) -> None:
    account = provision.provision(root)

    assert (image / "etc/passwd").read_text().splitlines() == [
        "root:x:0:0:root:/root:/bin/bash",
        "user:x:1000:1000::/home/user:/bin/bash",
    ]
    assert "user:x:1000:" in (image / "etc/group").read_text()
    assert (image / "home/user").stat().st_uid == 1000
    assert not account.sudo
    assert (image / "etc/resolv.conf").read_text() == ""


def test_an_image_with_sudo_gets_sudo_without_password(image: Path, root: Root) -> None:
    (image / "usr/bin/sudo").touch()
    (image / "etc/sudoers").write_text("root ALL=(ALL) ALL\n")

    provision.provision(root)

    rule = image / "etc/sudoers.d/90-opene2b"
    assert rule.read_text() == "user ALL=(ALL:ALL) NOPASSWD:ALL\n"
    assert stat.S_IMODE(rule.stat().st_mode) == 0o440
    assert (image / "etc/sudoers").read_text().endswith("@includedir /etc/sudoers.d\n")


def test_a_second_time_changes_nothing(image: Path, root: Root) -> None:
    (image / "usr/bin/sudo").touch()
    provision.provision(root)
    before = {p: p.read_bytes() for p in image.rglob("*") if p.is_file()}

    provision.provision(root)

    assert {p: p.read_bytes() for p in image.rglob("*") if p.is_file()} == before


def test_the_images_own_user_is_kept(image: Path, root: Root) -> None:
    (image / "etc/passwd").write_text("user:x:1234:99:me:/srv/me:/bin/bash\n")

    account = provision.provision(root)

    assert (account.uid, account.gid, account.home) == (1234, 99, "/srv/me")
    assert (image / "srv/me").stat().st_uid == 1234


def test_another_name_with_the_same_number_comes_second(image: Path, root: Root) -> None:
    (image / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nnode:x:1000:1000::/n:/bin/sh\n")

    provision.provision(root)

    names = [line.split(":")[0] for line in (image / "etc/passwd").read_text().splitlines()]
    assert names == ["root", "user", "node"]


def test_root_without_a_password_is_locked_for_logins(image: Path, root: Root) -> None:
    (image / "etc/shadow").write_text("root::19000:0:99999:7:::\nbin:*:1::::::\n")

    provision.provision(root)

    lines = (image / "etc/shadow").read_text().splitlines()
    assert lines[0] == "root:*:19000:0:99999:7:::"
    assert lines[1] == "bin:*:1::::::"
    assert lines[2].startswith("user:*:")


def test_links_of_the_image_do_not_lead_to_the_host(
    tmp_path: Path, image: Path, root: Root
) -> None:
    host = tmp_path / "host"
    host.mkdir()
    (image / "etc").rmdir()
    (image / "etc").symlink_to(host)
    (image / str(host)[1:]).mkdir(parents=True)
    (image / "home").symlink_to("../../../../host")
    (image / "host").mkdir()

    provision.provision(root)

    assert os.listdir(host) == []
    assert (image / str(host)[1:] / "passwd").is_file()
    assert (image / "host/user").is_dir()


def test_a_resolv_conf_that_is_a_link_becomes_a_file(image: Path, root: Root) -> None:
    (image / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")

    provision.provision(root)

    assert not (image / "etc/resolv.conf").is_symlink()


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_the_profile_asks_no_program_who_it_is_where_the_shell_knows(
    image: Path, root: Root, shell: str
) -> None:
    profile = image / "etc/profile"
    profile.write_text('if [ "$(id -u)" -eq 0 ]; then echo root; else echo other; fi\n')
    provision.provision(root)
    command = [shell, "-c", f"id() {{ echo asked >&2; echo 0; }}; . {profile}"]
    told = subprocess.run(command, capture_output=True, text=True, check=True)

    assert told.stdout == "root\n"
    assert ("asked" in told.stderr) is (shell == "sh")
