"""`opene2b down` with the real node agent and the driver that isolates nothing."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from opene2b.core.ids import ImageId
from opene2b.core.paths import Home
from opene2b.gen import node_pb2, node_pb2_grpc
from opene2b.image import manifest as manifests
from opene2b.image.manifest import Manifest
from opene2b.linux import processes

pytestmark = [pytest.mark.root, pytest.mark.slow]
SUBNET = "10.204.0.0/24"


class Node:
    """An agent of a home of its own, and what it runs."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.env = {
            **os.environ,
            "OPENE2B_HOME": str(home.root),
            "OPENE2B_RUNTIME": "fake",
            "OPENE2B_SUBNET": SUBNET,
        }
        self.log = home.root.parent / "node.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "opene2b", "node"], env=self.env, stdout=log, stderr=log
            )
        until = time.monotonic() + 20
        while not self.home.node_socket.exists():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.02)

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(20)

    def create(self, sandbox_id: str) -> None:
        with grpc.insecure_channel(f"unix:{self.home.node_socket}") as channel:
            node_pb2_grpc.NodeStub(channel).Create(
                node_pb2.CreateRequest(
                    spec=node_pb2.SandboxSpec(
                        sandbox_id=sandbox_id,
                        execution_id=str(uuid.uuid4()),
                        template_id="template",
                        image_id="base",
                        resources=node_pb2.Resources(cpu_count=1, memory_mib=128, pids=64),
                        envd_access_token="token",
                        allow_internet_access=True,
                    )
                ),
                timeout=30,
            )

    def processes(self) -> list[int]:
        """Everything that runs in the name of this home, the agent itself left out."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            pid = int(path.name)
            with contextlib.suppress(OSError):
                if (
                    str(self.home.root).encode()
                    in (path / "environ").read_bytes() + (path / "cmdline").read_bytes()
                ):
                    found.append(pid)
        own = {self.process.pid} if self.process is not None else set()
        return [pid for pid in found if pid not in own and processes.start_time(pid) is not None]

    def down(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "opene2b", "down", *arguments],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    home = Home(tmp_path / "home")
    (home.layers / "one").mkdir(parents=True)
    manifests.save(home, Manifest(image_id=ImageId("base"), layers=["one"]))
    found = Node(home)
    yield found
    found.stop()
    found.down()


def test_sandboxes_that_outlived_their_server_are_ended(node):
    node.start()
    node.create("iaaa")
    node.create("ibbb")
    node.stop()
    before = node.processes()
    result = node.down()

    assert len(before) >= 2
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["ended 2 sandboxes", f"removed {node.home.run}"]
    assert node.processes() == []
    assert list((node.home.node / "sandboxes").iterdir()) == []


def test_a_running_agent_ends_them_and_goes_on(node):
    node.start()
    node.create("iaaa")
    result = node.down()

    assert result.stdout.splitlines()[0] == "ended 1 sandbox"
    assert node.process.poll() is None
    assert node.processes() == []


def test_the_templates_and_keys_stay(node):
    (node.home.root / "api-key").write_text("key")
    node.down()

    assert manifests.load(node.home, ImageId("base")) is not None
    assert (node.home.root / "api-key").exists()


def test_purge_leaves_an_empty_home(node):
    node.start()
    node.create("iaaa")
    node.stop()
    (node.home.root / "api-key").write_text("key")
    result = node.down("--purge")

    assert result.returncode == 0, result.stderr
    assert list(node.home.root.iterdir()) == []


def test_nothing_to_do_is_said_and_makes_nothing(node, tmp_path):
    node.env["OPENE2B_HOME"] = str(tmp_path / "nowhere")
    result = node.down()

    assert result.stdout == f"nothing to do: there is no {tmp_path / 'nowhere'}\n"
    assert not (tmp_path / "nowhere").exists()


def test_purge_beside_a_running_server_is_refused(serve):
    serve.start()
    serve.ready()
    result = subprocess.run(
        [sys.executable, "-m", "opene2b", "down", "--purge"],
        env={**os.environ, **serve.env},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert result.returncode == 1
    assert "stop it before `down --purge`" in result.stderr
    assert json.loads((serve.home / "images/base/manifest.json").read_text())
