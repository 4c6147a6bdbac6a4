"""A real envd as a process of its own on this machine."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest
from connect_client import TOKEN, Envd


@pytest.fixture
def envd() -> Iterator[Envd]:
    read, write = os.pipe()
    os.write(write, json.dumps({"access_token": TOKEN, "env_vars": {"FROM": "sandbox"}}).encode())
    os.close(write)
    process = subprocess.Popen(
        [sys.executable, "-m", "opene2b.envd", "--config-fd", str(read)],
        pass_fds=(read,),
        stdout=subprocess.PIPE,
    )
    os.close(read)
    port = json.loads(process.stdout.readline())["port"]
    client = httpx.Client(
        base_url=f"http://127.0.0.1:{port}", headers={"X-Access-Token": TOKEN}, timeout=20
    )
    try:
        yield Envd(port=port, pid=process.pid, http=client)
    finally:
        client.close()
        process.terminate()
        process.wait(10)
        process.stdout.close()
