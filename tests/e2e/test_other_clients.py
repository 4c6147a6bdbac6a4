"""The stock JavaScript SDK, newest and oldest supported, and the oldest supported Python SDK."""

import os
import shutil
import subprocess
import venv
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OLDEST_LOCK = ROOT / "requirements/oldest-client.txt"


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """Installed from the lock file, once for each version of it."""
    js = HERE / "js"
    stamp = js / "node_modules/.installed"
    lock = (js / "package-lock.json").read_bytes()
    if not stamp.exists() or stamp.read_bytes() != lock:
        npm = shutil.which("npm")
        if npm is None:
            pytest.fail("npm is missing: install the packages nodejs and npm")
        subprocess.run([npm, "ci", "--no-audit", "--no-fund"], cwd=js, check=True, timeout=300)
        stamp.write_bytes(lock)
    return js


@pytest.fixture(scope="session")
def oldest_python() -> Path:
    place = ROOT / ".venv-oldest"
    python = place / "bin/python"
    stamp = place / ".installed"
    lock = OLDEST_LOCK.read_bytes()
    if not stamp.exists() or stamp.read_bytes() != lock:
        venv.create(place, with_pip=True, clear=True)
        subprocess.run(
            [python, "-m", "pip", "install", "-q", "--require-hashes", "-r", OLDEST_LOCK],
            check=True,
            timeout=300,
        )
        stamp.write_bytes(lock)
    return python


@pytest.mark.timeout(400)
@pytest.mark.parametrize("client", ["e2b", "e2b-oldest"])
def test_the_stock_javascript_sdk_works(server, node_modules, client):
    result = subprocess.run(
        ["node", "--test", "--test-reporter=spec", "sdk.test.mjs"],
        cwd=node_modules,
        env={**os.environ, **server.client_env, "OPENE2B_JS_CLIENT": client},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )

    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]


@pytest.mark.timeout(400)
def test_the_oldest_stock_python_sdk_works(server, oldest_python):
    result = subprocess.run(
        [oldest_python, HERE / "oldest_client.py"],
        env={**os.environ, **server.client_env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert result.returncode == 0, result.stdout + result.stderr[-4000:]
    assert result.stdout.split()[-1] == "kill"
