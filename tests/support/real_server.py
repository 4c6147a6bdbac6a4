"""A real server for tests and benchmarks: `opene2b serve` with a home, ports and a subnet of its own.

The home is kept between runs (OPENE2B_TEST_HOME), because building the base template takes most of a minute;
everything else in it is removed by `opene2b down` at the end, and a test looks that nothing is left.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

HOME = Path(os.environ.get("OPENE2B_TEST_HOME", "/var/lib/opene2b-test"))
API_PORT = 13000
PROXY_PORT = 13983
SUBNET = "10.203.0.0/20"
KEY = "e2b_" + "0123456789abcdef" * 2 + "01234567"
READY_LIMIT_S = 60
BASE_LIMIT_S = 540
COMMAND = [sys.executable, "-m", "opene2b"]


@dataclass(frozen=True)
class Server:
    """One `opene2b serve` and how to reach it."""

    env: dict[str, str]
    api_url: str = f"http://127.0.0.1:{API_PORT}"
    proxy_url: str = f"http://127.0.0.1:{PROXY_PORT}"
    key: str = KEY

    @property
    def client_env(self) -> dict[str, str]:
        """What a user exports before starting a client."""
        return {
            "E2B_API_URL": self.api_url,
            "E2B_SANDBOX_URL": self.proxy_url,
            "E2B_API_KEY": self.key,
        }

    def request(self, method: str, path: str, body: object = None, **headers: str):
        """(status, decoded body or None, headers) of a plain API call."""
        request = urllib.request.Request(
            self.api_url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"X-API-Key": self.key, "Content-Type": "application/json", **headers},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                raw, status, seen = response.read(), response.status, response.headers
        except urllib.error.HTTPError as error:
            with error:
                raw, status, seen = error.read(), error.code, error.headers
        return status, json.loads(raw) if raw else None, seen


def server_env(home: Path = HOME) -> dict[str, str]:
    return {
        **os.environ,
        "OPENE2B_HOME": str(home),
        "E2B_API_PORT": str(API_PORT),
        "OPENE2B_PROXY_PORT": str(PROXY_PORT),
        "OPENE2B_SUBNET": SUBNET,
        "OPENE2B_API_KEY": KEY,
        "PYTHONUNBUFFERED": "1",
    }


def start_server(env: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start and wait until GET /health answers 200."""
    output = log.open("ab")
    process = subprocess.Popen([*COMMAND, "serve"], env=env, stdout=output, stderr=output)
    output.close()
    until = time.monotonic() + READY_LIMIT_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"serve ended with {process.returncode}:\n{log.read_text()[-4000:]}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{API_PORT}/health", timeout=2):
                return process
        except OSError:
            time.sleep(0.05)
    process.kill()
    raise RuntimeError(f"serve was not ready in {READY_LIMIT_S} s:\n{log.read_text()[-4000:]}")


def stop_server(process: subprocess.Popen[bytes]) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(30)


def leftovers(home: Path = HOME) -> list[str]:
    """Everything that sandboxes could have left on this host."""
    found = [f"directory {path}" for path in (home / "node/sandboxes").glob("*")]
    found += [f"trash {path}" for path in (home / "node/trash").glob("*")]
    found += [
        f"cgroup {path}" for path in Path("/sys/fs/cgroup").rglob("opene2b/i*") if path.is_dir()
    ]
    for line in Path("/proc/self/mounts").read_text().splitlines():
        if str(home) in line:
            found.append(f"mount {line}")
    prefix = f"o2b{0x0ACB00:06x}"
    found += [
        f"link {p.name}" for p in Path("/sys/class/net").iterdir() if p.name.startswith(prefix)
    ]
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False)
    found += [f"nft {line}" for line in tables.stdout.splitlines() if "opene2b_0acb0000" in line]
    for status in Path("/proc").glob("[0-9]*/cgroup"):
        try:
            if "/opene2b/i" in status.read_text():
                found.append(f"process {status.parent.name}")
        except OSError:
            continue
    return found
