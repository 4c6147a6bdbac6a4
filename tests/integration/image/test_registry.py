"""Images from a real registry become trees; what is wrong with them is said."""

import asyncio
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from opene2b.core.errors import Internal, InvalidArgument, NotFound, PermissionDenied, ServiceError
from opene2b.core.paths import Home
from opene2b.image import base, reference
from opene2b.image import manifest as manifests
from opene2b.image.base import BaseSettings
from opene2b.image.progress import Progress
from opene2b.image.registry import ARCHITECTURES, Registry

from .conftest import INDEX, Server, layer_of, need, sha256

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0 and not os.environ.get("CI"), reason="needs root"),
]

HERE = ARCHITECTURES[os.uname().machine]
SYSTEM = layer_of(
    {
        "bin": None,
        "etc": None,
        "bin/bash": b"#!",
        "etc/passwd": b"root:x:0:0::/root:/bin/bash\nweb:x:33:33::/srv:/bin/bash\n",
        "opt/old": b"1",
        "opt/kept": b"1",
        "data/a": b"1",
        "usr/bin": None,
    }
)
CHANGES = layer_of(
    {"opt/.wh.old": b"", "data/.wh..wh..opq": b"", "data/b": b"2", "tool": "/bin/bash"}
)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


async def take(home: Home, image: str, **settings: Any) -> Path:
    built = await base.ensure(home, BaseSettings(oci_image=image, **settings))
    return home.layers / built.layers[0]


def files_of(tree: Path, *folders: str) -> list[str]:
    return sorted(
        str(path.relative_to(tree))
        for folder in folders
        for path in (tree / folder).rglob("*")
        if path.is_file()
    )


async def test_an_image_becomes_one_tree_with_whiteouts_applied(
    home: Home, registry: Server
) -> None:
    registry.push(
        "acme/app",
        [SYSTEM, CHANGES],
        architecture=HERE,
        config={"Env": ["A=1", "B=x=y"], "User": "33:33", "WorkingDir": "/srv"},
    )

    tree = await take(home, f"{registry.host}/acme/app")

    built = manifests.load(home, base.BASE)
    assert built is not None
    assert files_of(tree, "opt", "data") == ["data/b", "opt/kept"]
    assert (tree / "tool").readlink() == Path("/bin/bash")
    assert "user:x:1000:1000::/home/user:/bin/bash" in (tree / "etc/passwd").read_text()
    assert (built.env_vars, built.user, built.workdir) == ({"A": "1", "B": "x=y"}, "web", "/srv")
    assert os.listdir(home.layers) == list(built.layers)


async def test_progress_goes_up_to_the_end(home: Home, registry: Server) -> None:
    registry.push("acme/progress", [SYSTEM], architecture=HERE)
    steps: list[Progress] = []

    settings = BaseSettings(oci_image=f"{registry.host}/acme/progress")
    await base.ensure(home, settings, steps.append)

    fractions = [step.fraction or 0 for step in steps]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert not manifests.progress_path(home, base.BASE).exists()


async def test_the_image_for_this_machine_is_chosen_from_an_index(
    home: Home, registry: Server
) -> None:
    other = "arm64" if HERE == "amd64" else "amd64"
    mine = registry.push("acme/multi", [SYSTEM], architecture=HERE, tag="mine")
    theirs = registry.push(
        "acme/multi", [layer_of({"other": b""})], architecture=other, tag="theirs"
    )
    unknown = {"os": "unknown", "architecture": "unknown"}
    registry.push_manifest(
        "acme/multi",
        "latest",
        INDEX,
        {
            "manifests": [
                {**theirs, "platform": unknown},
                {**theirs, "platform": {"os": "linux", "architecture": other}},
                {**mine, "platform": {"os": "linux", "architecture": HERE}},
            ]
        },
    )

    tree = await take(home, f"{registry.host}/acme/multi")

    assert (tree / "bin/bash").exists()
    assert not (tree / "other").exists()


async def test_an_image_for_another_machine_is_refused(home: Home, registry: Server) -> None:
    registry.push("acme/riscv", [SYSTEM], architecture="riscv64")

    with pytest.raises(NotFound, match="is for linux/riscv64, this machine needs"):
        await take(home, f"{registry.host}/acme/riscv")


async def test_an_image_is_found_by_its_digest(home: Home, registry: Server) -> None:
    pushed = registry.push("acme/pinned", [SYSTEM], architecture=HERE)

    tree = await take(home, f"{registry.host}/acme/pinned@{pushed['digest']}")

    assert (tree / "bin/bash").exists()


@pytest.mark.parametrize(
    ("encode", "media"),
    [
        (bytes, "application/vnd.oci.image.layer.v1.tar"),
        (lambda d: gzip.compress(d[:700]) + gzip.compress(d[700:]), "application/x+gzip"),
        (
            lambda d: subprocess.run(["zstd", "-c"], input=d, capture_output=True).stdout,
            "application/vnd.oci.image.layer.v1.tar+zstd",
        ),
    ],
    ids=["plain", "gzip in two members", "zstd"],
)
async def test_layers_come_in_several_compressions(
    home: Home, registry: Server, encode: Callable[[bytes], bytes], media: str
) -> None:
    if "zstd" in media:
        need("zstd", package="zstd")
    registry.push("acme/packed", [SYSTEM], architecture=HERE, encode=encode, media=media)

    tree = await take(home, f"{registry.host}/acme/packed")

    assert (tree / "opt/kept").read_bytes() == b"1"


async def test_an_image_that_is_not_there_is_not_found(home: Home, registry: Server) -> None:
    with pytest.raises(NotFound, match="does not have it"):
        await take(home, f"{registry.host}/acme/absent:9")


async def test_a_layer_changed_on_the_registrys_disk_is_refused(
    home: Home, registry: Server
) -> None:
    layer = layer_of({"bin/bash": b"honest" * 50})
    registry.push("acme/tampered", [layer], architecture=HERE, encode=bytes)
    path = registry.blob_file(sha256(layer))
    path.write_bytes(path.read_bytes().replace(b"honest", b"stolen"))

    with pytest.raises(Internal, match="other bytes for blob"):
        await take(home, f"{registry.host}/acme/tampered")
    assert os.listdir(home.layers) == []


async def test_a_layer_that_is_not_what_the_configuration_says_is_refused(
    home: Home, registry: Server
) -> None:
    wrong = ["sha256:" + "0" * 64]
    registry.push("acme/wrong", [SYSTEM], architecture=HERE, diff_ids=wrong)

    with pytest.raises(InvalidArgument, match="unpacks to something else"):
        await take(home, f"{registry.host}/acme/wrong")


@pytest.mark.parametrize("damage", ["cut", "garbage"])
async def test_a_damaged_layer_is_refused(home: Home, registry: Server, damage: str) -> None:
    def encode(data: bytes) -> bytes:
        packed = gzip.compress(data)
        return packed[:-40] if damage == "cut" else packed[:20] + bytes(40) + packed[60:]

    registry.push(f"acme/{damage}", [SYSTEM], architecture=HERE, encode=encode)

    with pytest.raises(InvalidArgument):
        await take(home, f"{registry.host}/acme/{damage}")
    assert os.listdir(home.layers) == []


async def test_an_image_without_bash_is_refused_and_leaves_nothing(
    home: Home, registry: Server
) -> None:
    registry.push("acme/bare", [layer_of({"bin/sh": b""})], architecture=HERE)

    with pytest.raises(InvalidArgument, match="no bash"):
        await take(home, f"{registry.host}/acme/bare")
    assert os.listdir(home.layers) == []
    assert manifests.load(home, base.BASE) is None


async def test_an_unknown_user_of_the_image_is_refused(home: Home, registry: Server) -> None:
    registry.push("acme/nobody", [SYSTEM], architecture=HERE, config={"User": "ghost"})

    with pytest.raises(InvalidArgument, match="user 'ghost'"):
        await take(home, f"{registry.host}/acme/nobody")


async def test_a_closed_registry_opens_to_the_right_password(
    home: Home, closed_registry: Server
) -> None:
    closed_registry.push("acme/app", [SYSTEM], architecture=HERE)

    tree = await take(
        home,
        f"{closed_registry.host}/acme/app",
        registry_username="joe",
        registry_password="secret",
    )

    assert (tree / "bin/bash").exists()


@pytest.mark.parametrize("username", [None, "joe"])
async def test_a_closed_registry_stays_closed_without_it(
    home: Home, closed_registry: Server, username: str | None
) -> None:
    with pytest.raises(PermissionDenied, match="OPENE2B_BASE_IMAGE_USERNAME"):
        await take(
            home,
            f"{closed_registry.host}/acme/app",
            registry_username=username,
            registry_password="wrong",
        )


async def test_a_registry_that_is_not_running_is_named(home: Home) -> None:
    with pytest.raises(ServiceError, match=r"127\.0\.0\.1:1 cannot be reached"):
        await take(home, "127.0.0.1:1/acme/app")


def test_a_password_is_not_shown() -> None:
    settings = BaseSettings(registry_username="joe", registry_password="hidden-word")
    client = Registry(reference=reference.parse("a/b"), username="joe", password="hidden-word")

    assert "hidden-word" not in repr(settings) + repr(client)


def test_the_builder_as_a_program_prints_progress_and_the_manifest(
    home: Home, registry: Server
) -> None:
    registry.push("acme/program", [SYSTEM], architecture=HERE)
    request = {
        "home": str(home.root),
        "settings": {"oci_image": f"{registry.host}/acme/program"},
    }

    done = subprocess.run(
        [sys.executable, "-m", "opene2b.image.build_base"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[0]["stage"] == "waiting"
    assert lines[-1]["manifest"]["layers"] == os.listdir(home.layers)


async def test_a_cancelled_pull_leaves_nothing(home: Home, registry: Server) -> None:
    many = layer_of({f"f{number}": b"x" for number in range(20_000)})
    registry.push("acme/large", [SYSTEM, many], architecture=HERE)
    unpacking = asyncio.Event()

    def watch(step: Progress) -> None:
        if step.stage == "unpack":
            unpacking.set()

    settings = BaseSettings(oci_image=f"{registry.host}/acme/large")
    task = asyncio.create_task(base.ensure(home, settings, watch))
    await asyncio.wait_for(unpacking.wait(), 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert os.listdir(home.layers) == []
    assert os.listdir(home.images / "base") == ["lock"]
