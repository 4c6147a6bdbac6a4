"""The fake driver keeps the promises of the runtime protocol, with real processes."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from opene2b.core.errors import Internal
from opene2b.core.ids import ExecutionId, new_sandbox_id, new_uuid
from opene2b.core.resources import Resources
from opene2b.node.places import LoopbackPlaces
from opene2b.runtime.fake.driver import Behavior, FakeRuntime
from opene2b.runtime.protocol import EnvdConfig, SandboxSpec, Status
from opene2b.testing import runtime_suite
from opene2b.testing.runtime_suite import BEHAVIOURS, Subject


def processes_with(word: str) -> list[str]:
    """Every process whose standard error or config lies below a directory of this name."""
    found = []
    for path in Path("/proc").glob("[0-9]*/fd/2"):
        with contextlib.suppress(OSError):
            if word in os.readlink(path):
                found.append(f"process {path.parts[2]}")
    return found


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    places = LoopbackPlaces(capacity=8)
    layer = tmp_path / "layer"
    layer.mkdir()

    @contextlib.asynccontextmanager
    async def make_spec() -> AsyncIterator[SandboxSpec]:
        sandbox_id = new_sandbox_id()
        directory = tmp_path / sandbox_id
        directory.mkdir(mode=0o700)
        place = await places.take()
        yield SandboxSpec(
            sandbox_id=sandbox_id,
            execution_id=ExecutionId(new_uuid()),
            layers=[layer],
            directory=directory,
            resources=Resources(),
            place=place,
            envd=EnvdConfig(sandbox_id=sandbox_id, template_id="base", access_token=None),
        )
        await places.give_back(place.index)

    return Subject(
        make_runtime=FakeRuntime,
        make_spec=make_spec,
        impossible_layer=tmp_path / "missing",
        left_behind=lambda spec: processes_with(spec.sandbox_id),
    )


@pytest.mark.slow
@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda behaviour: behaviour.__name__)
async def test_the_fake_driver(behaviour: runtime_suite.Behaviour, subject: Subject) -> None:
    await behaviour(subject)


@pytest.mark.slow
async def test_a_start_that_fails_after_envd_was_up_leaves_nothing(subject: Subject) -> None:
    runtime = FakeRuntime(behavior=Behavior(start_error=Internal("as asked")))
    async with subject.make_spec() as spec:
        with pytest.raises(Internal, match="as asked"):
            await runtime.start(spec)

        assert subject.left_behind(spec) == []
        assert not (spec.directory / "started.json").exists()


async def test_a_start_that_never_ends_can_be_cancelled(subject: Subject) -> None:
    runtime = FakeRuntime(behavior=Behavior(starts=False))
    async with subject.make_spec() as spec:
        starting = asyncio.create_task(runtime.start(spec))
        done, _ = await asyncio.wait({starting}, timeout=0.05)
        starting.cancel()
        await asyncio.wait({starting})

        assert not done
        assert starting.cancelled()
        assert not (spec.directory / "started.json").exists()


@pytest.mark.slow
async def test_a_sandbox_dies_when_it_was_told_to(subject: Subject) -> None:
    runtime = FakeRuntime(behavior=Behavior(dies_after_s=0.05))
    async with subject.make_spec() as spec, runtime_suite.started(runtime, spec) as handle:
        async with asyncio.timeout(10):
            result = await runtime.wait(handle)

        assert result.reason == "exited"
        assert await runtime.recover(handle) is Status.ENDED


@pytest.mark.slow
async def test_a_leaking_driver_frees_when_it_no_longer_leaks(subject: Subject) -> None:
    runtime = FakeRuntime()
    async with subject.make_spec() as spec, runtime_suite.started(runtime, spec) as handle:
        runtime.behavior.leaks = True
        with pytest.raises(Internal):
            await runtime.stop(handle, grace_s=0)
        still = await runtime.recover(handle)
        runtime.behavior.leaks = False
        await runtime_suite.ended(runtime, handle)

        assert still is Status.RUNNING
        assert subject.left_behind(spec) == []


@pytest.mark.slow
async def test_envd_that_cannot_start_is_told_with_its_last_words(subject: Subject) -> None:
    import sys

    runtime = FakeRuntime(command=(sys.executable, "-c", "raise SystemExit('no envd here')"))
    async with subject.make_spec() as spec:
        with pytest.raises(Internal) as caught:
            await runtime.start(spec)

        assert "no envd here" in (caught.value.detail or "")
        assert not (spec.directory / "started.json").exists()
