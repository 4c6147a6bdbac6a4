"""The bundle starts where there is nothing, and brings nothing of the machine that built it."""

import json
import os
import shutil
import subprocess

import httpx
import pytest
from connect_client import Envd, envelopes

from opene2b.image import envd_bundle

PLACE = "/.opene2b/envd"


@pytest.fixture
def empty_root(tmp_path, bundle):
    """A root filesystem without a C library: a static shell, one user, the bundle."""
    busybox = shutil.which("busybox")
    if os.geteuid() != 0 or busybox is None:
        pytest.fail("needs root and busybox-static: run through `make test`")
    for name in ("bin", "etc", "tmp", "dev", "root"):
        (tmp_path / name).mkdir()
    shutil.copy(busybox, tmp_path / "bin/busybox")
    (tmp_path / "bin/sh").symlink_to("busybox")
    (tmp_path / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    os.mknod(tmp_path / "dev/null", 0o20666, os.makedev(1, 3))
    shutil.copytree(bundle.directory, str(tmp_path) + PLACE)
    return tmp_path


@pytest.mark.root
def test_it_serves_in_a_root_filesystem_with_nothing_in_it(bundle, empty_root):
    process = subprocess.Popen(
        bundle.command("--user", "root", place=PLACE),
        env={},
        stdout=subprocess.PIPE,
        preexec_fn=lambda: (os.chroot(empty_root), os.chdir("/")),
    )
    try:
        port = json.loads(process.stdout.readline())["port"]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            envd = Envd(port=port, pid=process.pid, http=client)
            written = client.post(
                "/files",
                params={"path": "/tmp/f"},
                content=b"content",
                headers={"Content-Type": "application/octet-stream"},
            )
            message = {
                "process": {"cmd": "/bin/sh", "args": ["-c", "busybox cat /tmp/f; busybox env"]}
            }
            with envd.open("process.Process/Start", message) as response:
                events = list(envelopes(response.iter_raw()))
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()

    assert written.status_code == 200
    output = json.dumps(events)
    assert '"exitCode"' not in output
    assert '"exited": true' in output
    # Nothing of the bundle is in the environment of what it starts.
    assert "LD_LIBRARY_PATH" not in output
    assert "PYTHON" not in output


def test_it_holds_no_path_of_the_machine_that_built_it(bundle):
    here = str(envd_bundle.Path(envd_bundle.__file__).parents[3]).encode()
    found = [
        path.relative_to(bundle.directory)
        for path in bundle.directory.rglob("*.pyc")
        if here in path.read_bytes()
    ]

    assert found == []


def test_building_again_replaces_it(tmp_path):
    first = envd_bundle.build(tmp_path / "envd")
    (first.directory / "stale").touch()
    second = envd_bundle.build(tmp_path / "envd")

    assert not (second.directory / "stale").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["envd"]
    assert second == envd_bundle.load(tmp_path / "envd")
