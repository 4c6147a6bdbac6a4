"""What every runtime driver must do: behaviours, each taking a `Subject` that makes runtimes and specs.

    @pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda behaviour: behaviour.__name__)
    async def test_the_driver(behaviour, subject):
        await behaviour(subject)

A behaviour ends everything that it started, unless the driver itself failed.
"""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from opene2b.core.errors import ServiceError
from opene2b.node.dial import Dialer
from opene2b.runtime.protocol import Handle, Runtime, SandboxSpec, Status

LIMIT_S = 30.0
"""For each call of the driver; generous, for a wait without an end would hide what failed."""
SOME = 4
"""Sandboxes at once."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One implementation, made ready for the suite."""

    make_runtime: Callable[[], Runtime]
    """A driver over the same state each time: a second one is the first after a restart of the agent."""
    make_spec: Callable[[], AbstractAsyncContextManager[SandboxSpec]]
    """A spec of a sandbox of its own, with an empty directory and a place, which the context gives back."""
    impossible_layer: Path
    """Something that no sandbox can be made of, e.g. a path where there is nothing."""
    left_behind: Callable[[SandboxSpec], list[str]]
    """What there still is of a sandbox on this machine: processes, mounts, cgroups. Empty after destroy."""


@contextlib.asynccontextmanager
async def opened(subject: Subject) -> AsyncIterator[Runtime]:
    runtime = subject.make_runtime()
    async with asyncio.timeout(LIMIT_S):
        await runtime.open()
    try:
        yield runtime
    finally:
        async with asyncio.timeout(LIMIT_S):
            await runtime.close()


@contextlib.asynccontextmanager
async def started(runtime: Runtime, spec: SandboxSpec) -> AsyncIterator[Handle]:
    async with asyncio.timeout(LIMIT_S):
        handle = await runtime.start(spec)
    try:
        yield handle
    finally:
        await ended(runtime, handle)


async def ended(runtime: Runtime, handle: Handle) -> None:
    async with asyncio.timeout(LIMIT_S):
        await runtime.stop(handle, grace_s=0)
        await runtime.destroy(handle)


async def health(runtime: Runtime, spec: SandboxSpec, handle: Handle) -> int:
    """The status that envd answers to GET /health, reached as the gateway does."""
    path = runtime.netns_path(handle)
    netns = None if path is None else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    dialer = Dialer()
    try:
        made = await dialer.dial(netns, ("127.0.0.1",), runtime.envd_port(handle))
        reader, writer = await asyncio.open_connection(sock=made)
        try:
            writer.write(b"GET /health HTTP/1.1\r\nHost: sandbox\r\nConnection: close\r\n\r\n")
            async with asyncio.timeout(LIMIT_S):
                line = await reader.readline()
        finally:
            writer.close()
    finally:
        dialer.close()
        if netns is not None:
            os.close(netns)
    return int(line.split()[1])


def check_nothing_left(subject: Subject, spec: SandboxSpec) -> None:
    left = subject.left_behind(spec)
    assert left == [], f"left behind: {left}"


async def check_start_fails(subject: Subject, runtime: Runtime, spec: SandboxSpec) -> ServiceError:
    try:
        async with asyncio.timeout(LIMIT_S):
            handle = await runtime.start(spec)
    except ServiceError as exc:
        check_nothing_left(subject, spec)
        return exc
    await ended(runtime, handle)
    raise AssertionError("the start succeeded")


async def envd_answers_after_start(subject: Subject) -> None:
    async with opened(subject) as runtime, subject.make_spec() as spec:
        async with started(runtime, spec) as handle:
            assert await health(runtime, spec, handle) == 204


async def destroy_leaves_nothing(subject: Subject) -> None:
    async with opened(subject) as runtime, subject.make_spec() as spec:
        async with started(runtime, spec):
            pass

        check_nothing_left(subject, spec)


async def a_handle_is_plain_data(subject: Subject) -> None:
    async with opened(subject) as runtime, subject.make_spec() as spec:
        async with started(runtime, spec) as handle:
            copy = json.loads(json.dumps(dict(handle)))

            assert copy == dict(handle)
            assert await runtime.recover(copy) is Status.RUNNING


async def wait_returns_when_the_sandbox_ends(subject: Subject) -> None:
    async with opened(subject) as runtime, subject.make_spec() as spec:
        async with started(runtime, spec) as handle:
            waiting = asyncio.create_task(runtime.wait(handle))
            await asyncio.sleep(0)
            was_done = waiting.done()
            await runtime.stop(handle, grace_s=0)
            async with asyncio.timeout(LIMIT_S):
                result = await waiting

            assert not was_done
            assert result.reason


async def wait_returns_at_once_for_an_ended_sandbox(subject: Subject) -> None:
    async with opened(subject) as runtime, subject.make_spec() as spec:
        async with started(runtime, spec) as handle:
            await runtime.stop(handle, grace_s=0)
            async with asyncio.timeout(LIMIT_S):
                result = await runtime.wait(handle)

            assert result.reason


async def cancelling_wait_leaves_the_sandbox_alone(subject: Subject) -> None:
    async with opened(subject) as runtime, subject.make_spec() as spec:
        async with started(runtime, spec) as handle:
            waiting = asyncio.create_task(runtime.wait(handle))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait({waiting})

            assert waiting.cancelled()
            assert await runtime.recover(handle) is Status.RUNNING
            assert await health(runtime, spec, handle) == 204


async def stop_with_grace_ends_the_sandbox(subject: Subject) -> None:
    async with opened(subject) as runtime, subject.make_spec() as spec:
        async with started(runtime, spec) as handle:
            async with asyncio.timeout(LIMIT_S):
                await runtime.stop(handle, grace_s=1)

            assert await runtime.recover(handle) is Status.ENDED


async def stop_and_destroy_are_repeatable(subject: Subject) -> None:
    async with opened(subject) as runtime, subject.make_spec() as spec:
        async with started(runtime, spec) as handle:
            for _ in range(2):
                await ended(runtime, handle)

            assert await runtime.recover(handle) is Status.ENDED
            check_nothing_left(subject, spec)


async def a_sandbox_outlives_its_agent(subject: Subject) -> None:
    async with subject.make_spec() as spec:
        async with opened(subject) as first:
            handle = await first.start(spec)
        async with opened(subject) as second:
            try:
                status = await second.recover(handle)
                answer = await health(second, spec, handle)
            finally:
                await ended(second, handle)

            assert status is Status.RUNNING
            assert answer == 204
            check_nothing_left(subject, spec)


async def a_sandbox_that_ended_meanwhile_is_seen_as_ended(subject: Subject) -> None:
    async with subject.make_spec() as spec:
        async with opened(subject) as first:
            handle = await first.start(spec)
            await first.stop(handle, grace_s=0)
        async with opened(subject) as second:
            try:
                statuses = [await second.recover(handle) for _ in range(2)]
            finally:
                await ended(second, handle)

            assert statuses == [Status.ENDED, Status.ENDED]
            check_nothing_left(subject, spec)


async def a_start_that_fails_leaves_nothing(subject: Subject) -> None:
    async with opened(subject) as runtime, subject.make_spec() as spec:
        await check_start_fails(
            subject, runtime, replace(spec, layers=[*spec.layers, subject.impossible_layer])
        )


async def a_cancelled_start_leaves_nothing(subject: Subject) -> None:
    async with opened(subject) as runtime:
        # Cut off at different moments: each leaves something else half made.
        for delay_s in (0, 0.002, 0.01, 0.03, 0.1):
            async with subject.make_spec() as spec:
                starting = asyncio.create_task(runtime.start(spec))
                await asyncio.wait({starting}, timeout=delay_s)
                starting.cancel()
                await asyncio.wait({starting}, timeout=LIMIT_S)

                assert starting.done()
                if not starting.cancelled():
                    await ended(runtime, starting.result())
                check_nothing_left(subject, spec)


async def undo_removes_a_start_that_never_reported(subject: Subject) -> None:
    async with opened(subject) as runtime, subject.make_spec() as spec:
        # The agent died after the start and before it could write the handle down.
        await runtime.start(spec)
        async with asyncio.timeout(LIMIT_S):
            await runtime.undo(spec.directory, spec.sandbox_id)
            await runtime.undo(spec.directory, spec.sandbox_id)

        check_nothing_left(subject, spec)


async def several_start_and_end_at_once(subject: Subject) -> None:
    async def life(runtime: Runtime, spec: SandboxSpec) -> int:
        async with started(runtime, spec) as handle:
            return await health(runtime, spec, handle)

    async with opened(subject) as runtime, contextlib.AsyncExitStack() as stack:
        specs = [await stack.enter_async_context(subject.make_spec()) for _ in range(SOME)]
        answers = await asyncio.gather(*(life(runtime, spec) for spec in specs))

        assert answers == [204] * SOME
        for spec in specs:
            check_nothing_left(subject, spec)


async def a_paused_sandbox_stands_still_and_goes_on(subject: Subject) -> None:
    async with opened(subject) as runtime, subject.make_spec() as spec:
        async with started(runtime, spec) as handle:
            await runtime.pause(handle)
            await runtime.pause(handle)
            paused = await runtime.recover(handle)
            asking = asyncio.create_task(health(runtime, spec, handle))
            await asyncio.wait({asking}, timeout=0.3)
            answered = asking.done()
            await runtime.resume(handle)
            await runtime.resume(handle)

            assert paused is Status.PAUSED
            assert not answered
            # It was asked while it stood still, and answers when it goes on.
            assert await asking == 204
            assert await runtime.recover(handle) is Status.RUNNING


async def a_paused_sandbox_outlives_its_agent_and_ends(subject: Subject) -> None:
    async with subject.make_spec() as spec:
        async with opened(subject) as first:
            handle = await first.start(spec)
            await first.pause(handle)
        async with opened(subject) as second:
            try:
                status = await second.recover(handle)
            finally:
                await ended(second, handle)

            assert status is Status.PAUSED
            assert await second.recover(handle) is Status.ENDED
            check_nothing_left(subject, spec)


async def undo_removes_a_paused_sandbox(subject: Subject) -> None:
    async with opened(subject) as runtime, subject.make_spec() as spec:
        await runtime.pause(await runtime.start(spec))
        async with asyncio.timeout(LIMIT_S):
            await runtime.undo(spec.directory, spec.sandbox_id)

        check_nothing_left(subject, spec)


Behaviour = Callable[[Subject], Awaitable[None]]

BEHAVIOURS: tuple[Behaviour, ...] = (
    envd_answers_after_start,
    destroy_leaves_nothing,
    a_handle_is_plain_data,
    wait_returns_when_the_sandbox_ends,
    wait_returns_at_once_for_an_ended_sandbox,
    cancelling_wait_leaves_the_sandbox_alone,
    stop_with_grace_ends_the_sandbox,
    stop_and_destroy_are_repeatable,
    a_sandbox_outlives_its_agent,
    a_sandbox_that_ended_meanwhile_is_seen_as_ended,
    a_start_that_fails_leaves_nothing,
    a_cancelled_start_leaves_nothing,
    undo_removes_a_start_that_never_reported,
    several_start_and_end_at_once,
    a_paused_sandbox_stands_still_and_goes_on,
    a_paused_sandbox_outlives_its_agent_and_ends,
    undo_removes_a_paused_sandbox,
)
