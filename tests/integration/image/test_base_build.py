"""The base template, really built from the Debian mirror of this machine."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from opene2b.core.errors import Internal
from opene2b.core.paths import Home
from opene2b.image import base
from opene2b.image import manifest as manifests
from opene2b.image.base import BaseSettings
from opene2b.image.progress import Progress
from opene2b.image.site import PREFIX

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0 and not os.environ.get("CI"), reason="needs root"),
    pytest.mark.skipif(
        shutil.which("mmdebstrap") is None and not os.environ.get("CI"),
        reason="needs mmdebstrap: apt-get install mmdebstrap",
    ),
]
SMALL = ("bash", "sudo", "ca-certificates")
"""What is installed beyond the minimum makes no other path of the build; it makes it longer."""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    before = scraps()
    yield Home(tmp_path / "home")
    assert scraps() <= before
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def scraps() -> set[str]:
    with contextlib.suppress(FileNotFoundError):
        return {name for name in os.listdir("/dev/shm") if name.startswith(PREFIX)}
    return set()


async def test_two_builders_make_one_debian_fit_for_a_sandbox(home: Home) -> None:
    steps: list[Progress] = []
    said: set[str] = set()

    def watch(step: Progress) -> None:
        steps.append(step)
        with contextlib.suppress(FileNotFoundError):
            said.add(manifests.progress_path(home, base.BASE).read_text())

    settings = BaseSettings(packages=SMALL)
    first, second = await asyncio.gather(
        base.ensure(home, settings, watch), base.ensure(home, settings)
    )

    assert first == second
    assert os.listdir(home.layers) == list(first.layers)
    assert sorted(os.listdir(home.images / "base")) == ["lock", "manifest.json"]
    fractions = [step.fraction or 0 for step in steps]
    assert fractions == sorted(fractions)
    assert {"download", "install", "finish", "done"} <= {step.stage for step in steps}
    assert len(said) > 3
    assert await base.ensure(home, BaseSettings(mirror="http://unused.invalid/")) == first
    check_tree(home.layers / first.layers[0])


def check_tree(tree: Path) -> None:
    info = (tree / "home/user").stat()
    assert (info.st_uid, info.st_gid) == (1000, 1000)
    assert "user:x:1000:1000::/home/user:/bin/bash\n" in (tree / "etc/passwd").read_text()
    assert (tree / "etc/shadow").read_text().startswith("root:*:")
    assert stat.S_IMODE((tree / "etc/sudoers.d/90-opene2b").stat().st_mode) == 0o440
    assert stat.S_IMODE((tree / "usr/bin/sudo").stat().st_mode) == 0o4755
    assert (tree / "etc/resolv.conf").read_bytes() == b""
    assert not (tree / "etc/machine-id").exists()
    assert os.listdir(tree / "dev") == []
    assert os.listdir(tree / "var/lib/apt/lists") == ["partial"]
    assert not list((tree / "usr/lib").glob("python3*/EXTERNALLY-MANAGED"))
    assert "deb http" in (tree / "etc/apt/sources.list").read_text()
    assert "signed-by" not in (tree / "etc/apt/sources.list").read_text()
    # What the tree is for: its own programs run in it, and the user becomes root.
    done = subprocess.run(
        ["chroot", str(tree), "su", "user", "-c", "sudo -n id -u; dpkg --audit; cd; pwd"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["0", "/home/user"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_build_that_is_killed_leaves_nothing_for_the_next(
    home: Home, number: signal.Signals
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "opene2b.image.build_base"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    request = {"home": str(home.root), "settings": {"packages": SMALL}}
    process.stdin.write(json.dumps(request).encode())
    process.stdin.close()
    async for line in process.stdout:
        if json.loads(line)["stage"] == "install":
            break
    # Scripts of packages run in the new tree by now, under mmdebstrap.
    started = descendants(process.pid)
    process.send_signal(number)
    await asyncio.wait_for(process.communicate(), 30)

    assert started
    await asyncio.wait_for(all_ended(started), 10)
    assert manifests.load(home, base.BASE) is None
    # The next builder, here one that cannot succeed, starts by clearing up.
    with pytest.raises(Internal, match="cannot be reached"):
        await base.ensure(home, BaseSettings(mirror="http://127.0.0.1:1/debian"))
    assert os.listdir(home.layers) == []
    assert os.listdir(home.images / "base") == ["lock"]


def descendants(pid: int) -> set[int]:
    found: set[int] = set()
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found |= {int(child)} | descendants(int(child))
    return found


async def all_ended(pids: set[int]) -> None:
    # They are nobody's children any more: there is no event to wait for.
    while any(is_alive(pid) for pid in pids):
        await asyncio.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_a_mirror_that_does_not_answer_is_named_with_the_remedy(home: Home) -> None:
    with pytest.raises(Internal, match=r"127\.0\.0\.1:1.* cannot be reached.*OPENE2B_BASE_MIRROR"):
        await base.ensure(home, BaseSettings(mirror="http://127.0.0.1:1/debian"))
    assert os.listdir(home.images / "base") == ["lock"]


async def test_a_package_that_does_not_exist_is_named(home: Home) -> None:
    settings = BaseSettings(packages=("no-such-package-here",))

    with pytest.raises(Internal, match="no-such-package-here") as caught:
        await base.ensure(home, settings)
    assert "base-build.log" in caught.value.message
    assert os.listdir(home.layers) == []
