"""A real registry (Debian's docker-registry) with what the tests push to it over HTTP."""

import contextlib
import gzip
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
START_LIMIT_S = 20.0


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def layer_of(files: dict[str, Any]) -> bytes:
    """A tar: bytes are a file, a str is a link to it, None a directory."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.mode = 0o755
            if data is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(data, str):
                info.type, info.linkname = tarfile.SYMTYPE, data
            else:
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data) if isinstance(data, bytes) else None)
    return buffer.getvalue()


@dataclass
class Server:
    """A running registry and the least of a push client."""

    port: int
    storage: Path
    auth: tuple[str, str] | None = None
    client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.client = httpx.Client(base_url=self.url, auth=self.auth, timeout=10)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def push_blob(self, repository: str, data: bytes) -> dict[str, Any]:
        answer = self.client.post(f"/v2/{repository}/blobs/uploads/").raise_for_status()
        where = httpx.URL(answer.headers["location"]).copy_merge_params({"digest": sha256(data)})
        self.client.put(where, content=data).raise_for_status()
        return {"digest": sha256(data), "size": len(data)}

    def push_manifest(self, repository: str, tag: str, kind: str, document: Any) -> dict[str, Any]:
        body = json.dumps({"schemaVersion": 2, "mediaType": kind, **document}).encode()
        self.client.put(
            f"/v2/{repository}/manifests/{tag}", content=body, headers={"Content-Type": kind}
        ).raise_for_status()
        return {"mediaType": kind, "digest": sha256(body), "size": len(body)}

    def push(
        self,
        repository: str,
        layers: list[bytes],
        *,
        tag: str = "latest",
        architecture: str = "amd64",
        config: dict[str, Any] | None = None,
        encode: Any = gzip.compress,
        media: str = "application/vnd.oci.image.layer.v1.tar+gzip",
        diff_ids: list[str] | None = None,
    ) -> dict[str, Any]:
        blobs = [
            {"mediaType": media, **self.push_blob(repository, encode(data))} for data in layers
        ]
        document = {
            "architecture": architecture,
            "os": "linux",
            "config": config or {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids or [sha256(d) for d in layers]},
        }
        found = self.push_blob(repository, json.dumps(document).encode())
        kind = "application/vnd.oci.image.config.v1+json"
        return self.push_manifest(
            repository, tag, MANIFEST, {"config": {"mediaType": kind, **found}, "layers": blobs}
        )

    def blob_file(self, digest: str) -> Path:
        hexes = digest.partition(":")[2]
        return self.storage / "docker/registry/v2/blobs/sha256" / hexes[:2] / hexes / "data"


def need(program: str, *, package: str) -> str:
    """The path of a program; without it the test is skipped on a laptop and fails in CI."""
    found = shutil.which(program)
    if found is None:
        message = f"{program} is not installed: apt-get install {package}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return found


@contextlib.contextmanager
def running(folder: Path, auth: tuple[str, str] | None = None) -> Iterator[Server]:
    program = need("docker-registry", package="docker-registry")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    folder.mkdir()
    config: dict[str, Any] = {
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "storage")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    if auth is not None:
        # bcrypt of `secret`, cost 5.
        hashed = "$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a"
        (folder / "htpasswd").write_text(f"{auth[0]}:{hashed}\n")
        config["auth"] = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
    (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [program, "serve", str(folder / "config.yml")], stdout=output, stderr=output
        )
    server = Server(port=port, storage=folder / "storage", auth=auth)
    try:
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            try:
                server.client.get("/v2/")
                break
            except httpx.ConnectError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.02)
        yield server
    finally:
        server.client.close()
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("registry") / "r") as server:
        yield server


@pytest.fixture
def closed_registry(tmp_path: Path) -> Iterator[Server]:
    """Asks for the user `joe` with the password `secret`."""
    with running(tmp_path / "closed", ("joe", "secret")) as server:
        yield server
