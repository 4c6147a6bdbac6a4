"""One real server for all end-to-end tests of a session."""

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from real_server import (
    BASE_LIMIT_S,
    COMMAND,
    HOME,
    Server,
    server_env,
    start_server,
    stop_server,
)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if os.geteuid() != 0:
        pytest.fail("the end-to-end tests need root: run them through `make test` or with sudo")
    env = server_env()
    subprocess.run([*COMMAND, "down"], env=env, check=True, timeout=60)
    subprocess.run([*COMMAND, "setup-base"], env=env, check=True, timeout=BASE_LIMIT_S)
    log = tmp_path_factory.mktemp("server") / "serve.log"
    process = start_server(env, log)
    try:
        yield Server(env=env)
    finally:
        stop_server(process)
        subprocess.run([*COMMAND, "down"], env=env, check=True, timeout=60)
        for name in ("node", "api", "proxy"):
            path = HOME / "logs" / f"{name}.log"
            if path.exists():
                shutil.copy(path, log.parent)
        print(f"server logs: {log.parent}")


@pytest.fixture(autouse=True)
def client_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user exports; the stock SDKs read nothing else."""
    for name, value in server.client_env.items():
        monkeypatch.setenv(name, value)
