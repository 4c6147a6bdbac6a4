"""A `serve` whose three parts are stand-ins of a few lines: what is tested is how they are kept running."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from opene2b.core.ids import ImageId
from opene2b.core.paths import Home
from opene2b.image import manifest as manifests
from opene2b.image.manifest import Manifest
from opene2b.linux import processes

LIMIT_S = 30.0

# Reads the ports from the environment, as the real ones do; `health` answers 200 to everything.
STAND_IN = """
import http.server, os, signal, sys, threading
name = sys.argv[1]
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *_): pass
print(name, "starts", flush=True)
if os.environ.get("STAND_IN_BROKEN") == name:
    sys.exit(f"{name} cannot: out of order")
def stop(*_):
    if os.environ.get("STAND_IN_DEAF") != name:
        print(name, "stops", flush=True); os._exit(0)
signal.signal(signal.SIGTERM, stop)
if name != "node":
    port = int(os.environ["E2B_API_PORT" if name == "api" else "OPENE2B_PROXY_PORT"])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Health)
    threading.Thread(target=server.serve_forever, daemon=True).start()
while True:
    signal.pause()
"""

DRIVER = """
import sys
from opene2b.cli import config, launcher, serve
from opene2b.core.errors import ServiceError
launcher.opene2b = lambda name: [sys.executable, "-c", {stand_in!r}, name]
try:
    sys.exit(serve.run(config.load()))
except ServiceError as exc:
    sys.exit(exc.message)
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@dataclass
class Serve:
    """One home, and the servers started with it."""

    home: Path
    output: Path
    env: dict[str, str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, **env: str) -> subprocess.Popen[bytes]:
        with self.output.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", DRIVER.format(stand_in=STAND_IN)],
                env={**os.environ, **self.env, **env},
                stdout=output,
                stderr=output,
            )
        self.processes.append(process)
        return process

    def said(self) -> str:
        return self.output.read_text()

    def ready(self, times: int = 1) -> None:
        self.until(lambda: self.said().count("OpenE2B is ready") >= times)

    def until(self, condition) -> None:
        end = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < end, f"it did not happen; serve said:\n{self.said()}"
            time.sleep(0.01)

    def children(self) -> dict[str, int]:
        """Name -> process id, as serve remembers them; waits until all three are there."""
        path = self.home / "run/children.json"

        def known() -> dict[str, list[int]]:
            try:
                return json.loads(path.read_text())
            except (FileNotFoundError, ValueError):
                return {}

        self.until(lambda: len(known()) == 3)
        return {name: pid for name, (pid, _) in known().items()}


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    found = Serve(
        home=tmp_path / "home",
        output=tmp_path / "output",
        env={
            "OPENE2B_HOME": str(tmp_path / "home"),
            "OPENE2B_RUNTIME": "fake",
            "E2B_API_PORT": str(free_port()),
            "OPENE2B_PROXY_PORT": str(free_port()),
            "PYTHONUNBUFFERED": "1",
        },
    )
    found.output.touch()
    # As if it had been built: that is another test's subject.
    manifests.save(Home(found.home), Manifest(image_id=ImageId("base"), layers=[]))
    yield found
    with contextlib.suppress(FileNotFoundError, ValueError):
        for pid, started in json.loads((found.home / "run/children.json").read_text()).values():
            if (fd := processes.open_process(pid, started)) is not None:
                processes.kill(fd)
                os.close(fd)
    for process in found.processes:
        if process.poll() is None:
            process.kill()
        process.wait()
