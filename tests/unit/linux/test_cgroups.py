from pathlib import Path

import pytest

from opene2b.linux import cgroups
from opene2b.linux.cgroups import Hierarchies, Layout

V2 = "29 22 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot"
V1_MEMORY = "40 39 0:35 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
V1_CPU = "41 39 0:36 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
V1_SYSTEMD = "42 39 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd"
HYBRID_V2 = "43 39 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
OTHER = "22 1 8:1 / / rw,relatime - ext4 /dev/root rw"


@pytest.mark.parametrize(
    ("lines", "layout"),
    [
        ([OTHER], Layout.NONE),
        ([OTHER, V2], Layout.V2),
        ([OTHER, V1_MEMORY, V1_CPU, V1_SYSTEMD], Layout.V1),
        ([OTHER, V1_MEMORY, V1_CPU, HYBRID_V2], Layout.HYBRID),
    ],
)
def test_the_layout_is_read_from_the_mounts(tmp_path: Path, lines: list[str], layout: Layout):
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text("\n".join(lines))

    found = cgroups.discover(mountinfo)

    assert found.layout is layout


def test_controllers_mounted_together_lead_to_one_directory(tmp_path: Path):
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text("\n".join([V1_CPU, V1_SYSTEMD]))

    found = cgroups.discover(mountinfo)

    assert found.mounts["cpu"] == found.mounts["cpuacct"] == Path("/sys/fs/cgroup/cpu,cpuacct")
    assert found.mounts["name=systemd"] == Path("/sys/fs/cgroup/systemd")


def test_removing_a_group_that_is_not_there_is_no_error(tmp_path: Path):
    cgroups.remove(tmp_path / "gone")

    assert not (tmp_path / "gone").exists()


def test_removing_a_group_removes_what_was_made_below_it(tmp_path: Path):
    (tmp_path / "group/below/deeper").mkdir(parents=True)

    cgroups.remove(tmp_path / "group")

    assert not (tmp_path / "group").exists()


def test_the_switch_for_quick_moves_is_left_alone_without_a_version_2_tree():
    changed = cgroups.favor_changes(Hierarchies(layout=Layout.V1), on=True)

    assert changed is False
