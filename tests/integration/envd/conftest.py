"""A real envd as a process of its own on this machine."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from connect_client import TOKEN, Envd, new_client

from opene2b.image import envd_bundle
from opene2b.image.envd_bundle import Bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return envd_bundle.build(tmp_path_factory.mktemp("bundle") / "envd")


@pytest.fixture(params=["module", "bundle", "http2"])
def envd(request: pytest.FixtureRequest) -> Iterator[Envd]:
    """As a module of this interpreter, and as the bundle that any root filesystem can start; over HTTP/1.1 and HTTP/2."""
    command = [sys.executable, "-m", "opene2b.envd"]
    if request.param == "bundle":
        command = request.getfixturevalue("bundle").command()
    read, write = os.pipe()
    os.write(write, json.dumps({"access_token": TOKEN, "env_vars": {"FROM": "sandbox"}}).encode())
    os.close(write)
    process = subprocess.Popen(
        [*command, "--config-fd", str(read)],
        pass_fds=(read,),
        stdout=subprocess.PIPE,
    )
    os.close(read)
    port = json.loads(process.stdout.readline())["port"]
    http2 = request.param == "http2"
    client = new_client(port, http2=http2)
    try:
        yield Envd(port=port, pid=process.pid, http=client, http2=http2)
    finally:
        client.close()
        process.terminate()
        process.wait(10)
        process.stdout.close()
