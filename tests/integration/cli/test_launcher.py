"""The launcher with an interpreter and a home in a directory that only root may enter."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import opene2b

pytestmark = [pytest.mark.root, pytest.mark.slow]

LOOK = """
import json, os, sys
closed, home = sys.argv[1:]
def attempt(path):
    try:
        open(path, "w").close()
        return "written"
    except OSError as exc:
        return type(exc).__name__
print(json.dumps({
    "uid": os.getuid(),
    "seen": sorted(os.listdir(closed)),
    "in home": sorted(os.listdir(home)),
    "beside": attempt(closed + "/new"),
    "interpreter": attempt(sys.prefix + "/new"),
    "writable": attempt(home + "/control/new"),
    "descriptors": len(os.listdir("/proc/self/fd")),
}))
"""


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """Mode 0700, with a secret, an interpreter with our package, and a home."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    place = tmp_path / "closed"
    place.mkdir(mode=0o700)
    (place / "secret").write_text("not for strangers")
    environment = place / "deep/env"
    venv.create(environment, symlinks=True, with_pip=False)
    (site,) = environment.glob("lib/python3*/site-packages")
    (site / "opene2b.pth").write_text(f"{Path(opene2b.__file__).parents[1]}\n")
    control = place / "home/control"
    control.mkdir(parents=True)
    os.chown(control, 64230, 64230)
    (place / "home/node").mkdir()
    return place


def launch(closed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(closed / "deep/env/bin/python", "-m", "opene2b.cli.launcher"),
            *("--parent", str(os.getpid()), *arguments),
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_what_the_user_needs_is_there_and_the_rest_is_hidden(closed):
    home = closed / "home"
    result = launch(
        closed,
        *("--as", "control-plane", "--writable", str(home / "control"), "--"),
        *(str(closed / "deep/env/bin/python"), "-c", LOOK, str(closed), str(home)),
    )

    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {
        "uid": 64230,
        "seen": ["deep", "home"],
        "in home": ["control"],
        "beside": "OSError",
        "interpreter": "OSError",
        "writable": "written",
        "descriptors": 4,
    }
    assert os.listdir(home / "control") == ["new"]


def test_the_host_sees_nothing_of_it(closed):
    before = Path("/proc/self/mountinfo").read_text()
    launch(closed, "--as", "proxy", "--", "/bin/true")

    assert Path("/proc/self/mountinfo").read_text() == before


def test_a_tree_that_is_closed_itself_is_named_with_the_remedy(closed):
    (closed / "deep/env").chmod(0o700)
    result = launch(closed, "--as", "proxy", "--", "/bin/true")

    assert result.returncode == 1
    assert result.stderr.strip() == (
        f"opene2b: {closed}/deep/env is closed to user 64231, which the server gives up root for:"
        f" run `chmod -R o+rX {closed}/deep/env`"
    )


def test_a_command_whose_parent_is_gone_is_not_started():
    result = subprocess.run(
        [sys.executable, "-m", "opene2b.cli.launcher", "--parent", "1", "--", "echo", "started"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert result.returncode == 1
    assert result.stdout == ""
