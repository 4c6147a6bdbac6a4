"""The OCI driver keeps the promises of the runtime protocol, with real containers of the base template."""

import contextlib
import ipaddress
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from real_server import BASE_LIMIT_S, COMMAND, HOME, server_env

from opene2b.core.ids import ExecutionId, ImageId, new_sandbox_id, new_uuid
from opene2b.core.paths import Home
from opene2b.core.resources import Resources
from opene2b.image import manifest as manifests
from opene2b.linux import cgroups
from opene2b.node.slots import Slots
from opene2b.runtime.oci import spec as specs
from opene2b.runtime.oci.driver import OciRuntime
from opene2b.runtime.protocol import EnvdConfig, SandboxSpec
from opene2b.testing.runtime_suite import BEHAVIOURS, Subject

pytestmark = [pytest.mark.root, pytest.mark.slow]
SUBNET = ipaddress.IPv4Network("10.205.0.0/24")


@pytest.fixture(scope="session")
def base_layers() -> list[Path]:
    if os.geteuid() != 0:
        pytest.fail("containers need root: run through `make test` or with sudo")
    subprocess.run([*COMMAND, "setup-base"], env=server_env(), check=True, timeout=BASE_LIMIT_S)
    home = Home(HOME)
    manifest = manifests.load(home, ImageId("base"))
    assert manifest is not None
    return [home.layers / name for name in manifest.layers]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    # As an installation has it: root's alone, on a path that other users can pass.
    root = Path("/var/tmp/opene2b-oci-suite")
    shutil.rmtree(root, ignore_errors=True)
    (root / "run").mkdir(parents=True)
    yield Home(root)
    shutil.rmtree(root)


def left_behind(spec: SandboxSpec) -> list[str]:
    found = []
    for path in cgroups.named(specs.cgroup_path(spec.sandbox_id), cgroups.discover()):
        found.append(f"cgroup {path}")
    found += [
        f"mount {line}"
        for line in Path("/proc/self/mounts").read_text().splitlines()
        if spec.sandbox_id in line
    ]
    for path in Path("/proc").glob("[0-9]*/cgroup"):
        with contextlib.suppress(OSError):
            stat = path.with_name("stat").read_text()
            # One that has ended and whose starter has too is the machine's own init to reap, when it likes.
            if spec.sandbox_id in path.read_text() and ") Z 1 " not in stat:
                found.append(f"process {stat[:40]}")
    state = spec.directory.parent.parent / "run/oci" / spec.sandbox_id
    return found + ([f"state {state}"] if state.exists() else [])


@pytest.fixture(params=["crun", "runc"])
async def subject(
    request: pytest.FixtureRequest, home: Home, base_layers: list[Path]
) -> AsyncIterator[Subject]:
    binary = request.param
    if shutil.which(binary) is None:
        pytest.skip(f"{binary} is not installed; the other OCI runtime is tested")
    slots = Slots(subnet=SUBNET, capacity=8, warm=2, state=home.root / "slots")
    await slots.open({})

    @contextlib.asynccontextmanager
    async def make_spec() -> AsyncIterator[SandboxSpec]:
        sandbox_id = new_sandbox_id()
        directory = home.root / "disks" / sandbox_id
        directory.mkdir(mode=0o700, parents=True)
        place = await slots.take()
        yield SandboxSpec(
            sandbox_id=sandbox_id,
            execution_id=ExecutionId(new_uuid()),
            layers=base_layers,
            directory=directory,
            resources=Resources(memory_mib=256),
            place=place,
            envd=EnvdConfig(sandbox_id=sandbox_id, template_id="base", access_token=None),
        )
        await slots.give_back(place.index)

    yield Subject(
        make_runtime=lambda: OciRuntime(home=home, binary=binary),
        make_spec=make_spec,
        impossible_layer=home.root / "missing",
        left_behind=left_behind,
    )
    await slots.close()


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda behaviour: behaviour.__name__)
async def test_the_oci_driver(behaviour, subject):
    await behaviour(subject)
