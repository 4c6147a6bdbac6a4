"""What a control plane finds when it starts: records and node may disagree, and afterwards they do not."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from opene2b.core.ids import ExecutionId, new_uuid
from opene2b.core.states import SandboxState
from opene2b.gen import node_pb2
from opene2b.gen.node_pb2 import SandboxStatus

pytestmark = pytest.mark.slow
BODY = {"templateID": "base"}
LIMIT_S = 10


async def create(plane, **headers):
    response = await plane.client.post("/v2/sandboxes", json=BODY, headers=headers)
    assert response.status_code == 201, response.text
    return response.json()["sandboxID"]


async def listed(plane):
    return [row["sandboxID"] for row in (await plane.client.get("/v2/sandboxes")).json()]


async def until(condition):
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.01)


async def test_running_sandboxes_are_found_again(host):
    async with host.control_plane() as plane:
        sandbox_id = await create(plane)
        before = (await plane.client.get(f"/sandboxes/{sandbox_id}")).json()
    async with host.control_plane() as plane:
        after = (await plane.client.get(f"/sandboxes/{sandbox_id}")).json()
        killed = await plane.client.delete(f"/sandboxes/{sandbox_id}")

    assert after["endAt"] == before["endAt"]
    assert killed.status_code == 204
    assert host.agent.statuses() == []


async def test_timers_go_on(host):
    async with host.control_plane() as plane:
        sandbox_id = await create(plane)
        await plane.store.update_sandbox(
            sandbox_id,
            expected=frozenset({SandboxState.RUNNING}),
            end_at=datetime.now(UTC) + timedelta(seconds=0.2),
        )
    async with host.control_plane() as plane:
        await until(lambda: not host.agent.statuses())

        assert await listed(plane) == []


async def test_a_kill_that_was_promised_is_finished(host):
    async with host.control_plane() as plane:
        sandbox_id = await create(plane)
        await plane.store.update_sandbox(
            sandbox_id, expected=frozenset({SandboxState.RUNNING}), state=SandboxState.KILLING
        )
    async with host.control_plane() as plane:
        await until(lambda: not host.agent.statuses())

        assert await plane.store.all_sandboxes() == []


async def as_if_cut_off_in_create(plane, sandbox_id):
    """Put the record back to what it was while the node was making the sandbox."""
    row = await plane.store.update_sandbox(
        sandbox_id, expected=frozenset({SandboxState.RUNNING}), state=SandboxState.STARTING
    )
    assert row is not None


async def test_a_create_that_nobody_can_ask_for_again_is_undone(host):
    async with host.control_plane() as plane:
        await as_if_cut_off_in_create(plane, await create(plane))
    async with host.control_plane() as plane:
        await until(lambda: not host.agent.statuses())

        assert await plane.store.all_sandboxes() == []


async def test_a_create_under_a_key_is_finished_and_given_to_who_asks_again(host):
    async with host.control_plane() as plane:
        sandbox_id = await create(plane, **{"Idempotency-Key": "k"})
        await as_if_cut_off_in_create(plane, sandbox_id)
    async with host.control_plane() as plane:
        again = await create(plane, **{"Idempotency-Key": "k"})

        assert again == sandbox_id
        assert await listed(plane) == [sandbox_id]


async def test_a_record_without_a_sandbox_goes(host):
    async with host.control_plane() as plane:
        sandbox_id = await create(plane)
        row = await plane.store.sandbox(sandbox_id)
    await host.agent.kill(sandbox_id)
    async with host.control_plane() as plane:
        assert row is not None
        assert await listed(plane) == []
        assert await plane.store.all_sandboxes() == []


async def test_a_sandbox_without_a_record_is_ended(host):
    async with host.control_plane() as plane:
        sandbox_id = await create(plane)
        await plane.store.delete_sandbox(sandbox_id)
    async with host.control_plane():
        await until(lambda: not host.agent.statuses())


async def test_another_execution_under_the_same_id_is_not_taken_for_it(host):
    async with host.control_plane() as plane:
        sandbox_id = await create(plane)
        row = await plane.store.sandbox(sandbox_id)
        assert row is not None
        await plane.store.delete_sandbox(sandbox_id)
        await plane.store.add_sandbox(replace(row, execution_id=ExecutionId(new_uuid())))
    async with host.control_plane() as plane:
        await until(lambda: not host.agent.statuses())

        assert await listed(plane) == []


async def test_a_sandbox_that_is_made_during_a_comparison_is_left_alone(host, monkeypatch):
    async with host.control_plane() as plane:
        node = plane.scheduler.node
        listing = node.sandboxes
        made = []

        async def list_and_then_create():
            # The node's list is older than the record.
            statuses = await listing()
            made.append(await create(plane))
            return statuses

        monkeypatch.setattr(node, "sandboxes", list_and_then_create)
        await plane.reconciler.compare()

        assert await listed(plane) == made
        assert [status.sandbox_id for status in host.agent.statuses()] == made


# a caller who leaves


class Caller:
    """One POST whose sender can go away."""

    def __init__(self, plane, headers=()):
        self.leaves = asyncio.Event()
        self.app = plane.client._transport.app
        self.sent = []
        self.body = b'{"templateID": "base"}'
        key = plane.client.headers["x-api-key"].encode()
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": "/v2/sandboxes",
            "raw_path": b"/v2/sandboxes",
            "query_string": b"",
            "headers": [(b"x-api-key", key), *headers],
        }

    async def receive(self):
        if self.body is not None:
            body, self.body = self.body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        self.sent.append(message)

    async def call(self):
        await self.app(self.scope, self.receive, self.send)


async def leave_in_the_middle(plane, host, headers=()):
    host.runtime.behavior.start_delay_s = 0.3
    caller = Caller(plane, headers)
    calling = asyncio.create_task(caller.call())
    await until(lambda: host.agent.statuses())
    caller.leaves.set()
    await asyncio.wait_for(calling, LIMIT_S)
    return caller


async def test_the_sandbox_of_a_caller_who_left_is_ended(host):
    async with host.control_plane() as plane:
        caller = await leave_in_the_middle(plane, host)
        await until(lambda: not plane.scheduler.background)

        assert caller.sent == []
        assert host.agent.statuses() == []
        assert await plane.store.all_sandboxes() == []


async def test_a_caller_who_left_gets_the_sandbox_back_by_the_key(host):
    async with host.control_plane() as plane:
        await leave_in_the_middle(plane, host, [(b"idempotency-key", b"k")])
        host.runtime.behavior.start_delay_s = 0
        sandbox_id = await create(plane, **{"Idempotency-Key": "k"})

        assert [status.sandbox_id for status in host.agent.statuses()] == [sandbox_id]
        assert await listed(plane) == [sandbox_id]


async def test_the_kill_of_a_sandbox_that_cannot_be_freed_is_tried_again(host):
    async with host.control_plane() as plane:
        sandbox_id = await create(plane)
        host.runtime.behavior.leaks = True
        killed = await plane.client.delete(f"/sandboxes/{sandbox_id}")
        seen = await listed(plane)
        kept = [row.state for row in await plane.store.all_sandboxes()]
        host.runtime.behavior.leaks = False
        await until(lambda: not plane.scheduler.background)

        assert killed.status_code == 204
        assert seen == []
        assert kept == [SandboxState.KILLING]
        assert host.agent.statuses() == []
        assert await plane.store.all_sandboxes() == []


@pytest.mark.parametrize(
    ("record", "on_node", "wanted"),
    [
        (SandboxState.PAUSING, "running", SandboxState.PAUSED),
        (SandboxState.PAUSING, "paused", SandboxState.PAUSED),
        (SandboxState.PAUSED, "running", SandboxState.PAUSED),
        (SandboxState.RESUMING, "paused", SandboxState.RUNNING),
        (SandboxState.RESUMING, "running", SandboxState.RUNNING),
        (SandboxState.RUNNING, "paused", SandboxState.RUNNING),
    ],
)
async def test_what_was_asked_for_is_done_after_a_restart(host, record, on_node, wanted):
    async with host.control_plane() as plane:
        sandbox_id = await create(plane)
        row = await plane.store.update_sandbox(
            sandbox_id, expected=frozenset({SandboxState.RUNNING}), state=record
        )
    if on_node == "paused":
        await host.agent.turns.pause(sandbox_id, row.execution_id)
    async with host.control_plane() as plane:

        async def settled():
            now = await plane.store.sandbox(sandbox_id)
            phases = [status.phase.value for status in host.agent.statuses()]
            return now.state is wanted and phases == [wanted.value]

        async with asyncio.timeout(LIMIT_S):
            while not await settled():
                await asyncio.sleep(0.01)
        due = sandbox_id in plane.scheduler.deadlines.current
        killed = await plane.client.delete(f"/sandboxes/{sandbox_id}")

    assert due is (wanted is SandboxState.RUNNING)
    assert killed.status_code == 204


@pytest.mark.parametrize(
    "record", [SandboxState.PAUSING, SandboxState.PAUSED, SandboxState.RESUMING]
)
async def test_a_paused_sandbox_that_its_node_lost_is_gone(host, record):
    async with host.control_plane() as plane:
        sandbox_id = await create(plane)
        await plane.store.update_sandbox(
            sandbox_id, expected=frozenset({SandboxState.RUNNING}), state=record
        )
    await host.agent.kill(sandbox_id)
    async with host.control_plane() as plane:
        async with asyncio.timeout(LIMIT_S):
            while await plane.store.all_sandboxes():
                await asyncio.sleep(0.01)

        assert await listed(plane) == []


async def test_a_sandbox_whose_memory_went_with_the_machine_keeps_its_disk(host):
    async with host.control_plane() as plane:
        sandbox_id = await create(plane)
        await plane.client.post(f"/sandboxes/{sandbox_id}/pause")
    row_execution = host.agent.statuses()[0].execution_id
    # What the agent finds after the machine was started anew.
    await host.agent.turns.pause(sandbox_id, row_execution, disk_only=True)
    async with host.control_plane() as plane:
        found = (await plane.client.get(f"/sandboxes/{sandbox_id}")).json()
        resumed = await plane.client.post(f"/v2/sandboxes/{sandbox_id}/connect", json={})

    assert (found["state"], found["pauseMode"]) == ("paused", "filesystem")
    assert resumed.status_code == 201
    await host.agent.kill(sandbox_id)


async def test_a_key_whose_create_died_with_everything_may_be_used_again(host):
    headers = {"Idempotency-Key": "k1"}
    async with host.control_plane() as plane:
        sandbox_id = await create(plane, **headers)
        await as_if_cut_off_in_create(plane, sandbox_id)
    await host.agent.kill(sandbox_id)
    async with host.control_plane() as plane:
        async with asyncio.timeout(LIMIT_S):
            while await plane.store.all_sandboxes():
                await asyncio.sleep(0.01)
        again = await create(plane, **headers)

        assert again != sandbox_id
    await host.agent.kill(again)


async def test_word_of_a_start_that_comes_late_changes_nothing(host):
    async with host.control_plane() as plane:
        sandbox_id = await create(plane)
        row = await plane.store.sandbox(sandbox_id)
        late = SandboxStatus(
            sandbox_id=sandbox_id, execution_id=row.execution_id, phase=node_pb2.PHASE_STARTING
        )
        await plane.reconciler.changed(late)

        assert await listed(plane) == [sandbox_id]
    await host.agent.kill(sandbox_id)
