import asyncio
import json
import os
import stat
from dataclasses import replace

import pytest

from opene2b.core.errors import (
    AlreadyExists,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NoCapacity,
    NotFound,
    WrongState,
)
from opene2b.core.ids import ImageId, SandboxId, new_uuid
from opene2b.image import manifest as manifests
from opene2b.node.table import Phase
from opene2b.runtime import protocol
from opene2b.runtime.protocol import Status

LIMIT_S = 20


def phases(agent):
    return {status.sandbox_id: status.phase for status in agent.statuses()}


def on_disk(home):
    return sorted(path.name for path in (home.node / "sandboxes").iterdir())


async def next_phase(subscription, phase):
    async with asyncio.timeout(LIMIT_S):
        while (status := await subscription.next()).phase is not phase:
            pass
    return status


async def test_a_created_sandbox_runs_and_is_on_disk_with_its_handle(agent, home, order):
    seconds = await agent.create(order)

    entry = agent.table.load()[order.sandbox_id]
    assert 0 < seconds < LIMIT_S
    assert phases(agent) == {order.sandbox_id: Phase.RUNNING}
    assert entry.phase is Phase.RUNNING
    assert await agent.runtime.recover(entry.handle) is protocol.Status.RUNNING


async def test_only_root_can_read_an_entry_for_it_holds_tokens(agent, home, order):
    await agent.create(order)

    directory = home.node / "sandboxes" / order.sandbox_id
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / "entry.json").stat().st_mode) == 0o600


async def test_envd_gets_the_environment_of_the_image_and_of_the_order(agent, home, make_order):
    order = make_order(env_vars={"B": "2"})
    await agent.create(order)

    told = json.loads((home.node / "sandboxes" / order.sandbox_id / "disk/envd.json").read_text())
    assert told["env_vars"] == {"A": "1", "B": "2"}


async def test_a_killed_sandbox_leaves_nothing(agent, home, order):
    await agent.create(order)
    handle = agent.live[order.sandbox_id].entry.handle
    found = await agent.kill(order.sandbox_id)
    await agent.close()

    assert found is True
    assert agent.statuses() == []
    assert agent.places.in_use == 0
    assert on_disk(home) == []
    assert list((home.node / "trash").iterdir()) == []
    assert await agent.runtime.recover(handle) is protocol.Status.ENDED


async def test_killing_what_never_was_finds_nothing(agent):
    assert await agent.kill(SandboxId("inothing")) is False


async def test_a_kill_is_repeatable_and_joined(agent, order):
    await agent.create(order)

    found = await asyncio.gather(agent.kill(order.sandbox_id), agent.kill(order.sandbox_id))
    again = await agent.kill(order.sandbox_id)

    assert found == [True, True]
    assert again is False


async def test_the_same_execution_joins_the_create_that_is_under_way(agent, order):
    first, second = await asyncio.gather(agent.create(order), agent.create(order))
    third = await agent.create(order)

    assert first == second == third
    assert agent.places.in_use == 1


async def test_another_execution_of_a_running_id_is_refused(agent, order, make_order):
    await agent.create(order)

    with pytest.raises(AlreadyExists):
        await agent.create(make_order(sandbox_id=order.sandbox_id))


async def test_a_caller_that_goes_away_still_gets_its_sandbox(agent, runtime, order):
    runtime.behavior.start_delay_s = 0.05
    with agent.events.subscribe() as events:
        calling = asyncio.create_task(agent.create(order))
        await next_phase(events, Phase.STARTING)
        calling.cancel()
        await asyncio.wait({calling})
        await next_phase(events, Phase.RUNNING)

    assert calling.cancelled()
    assert phases(agent) == {order.sandbox_id: Phase.RUNNING}


async def test_a_kill_during_the_start_undoes_it(agent, home, runtime, order):
    runtime.behavior.starts = False
    with agent.events.subscribe() as events:
        creating = asyncio.create_task(agent.create(order))
        await next_phase(events, Phase.STARTING)
        found = await agent.kill(order.sandbox_id)
    await asyncio.wait({creating})

    assert found is True
    assert isinstance(creating.exception(), WrongState)
    assert agent.statuses() == []
    assert agent.places.in_use == 0
    assert on_disk(home) == []


async def test_a_failed_start_leaves_nothing_and_may_be_tried_again(agent, home, runtime, order):
    runtime.behavior.start_error = Internal("as asked")
    with pytest.raises(Internal, match="as asked"):
        await agent.create(order)
    left = (agent.statuses(), agent.places.in_use, on_disk(home))
    runtime.behavior.start_error = None
    await agent.create(order)

    assert left == ([], 0, [])
    assert phases(agent) == {order.sandbox_id: Phase.RUNNING}


async def test_what_a_driver_raises_by_accident_is_not_shown_to_callers(agent, runtime, order):
    runtime.behavior.start_error = ValueError("/secret/path")
    with pytest.raises(Internal) as caught:
        await agent.create(order)

    assert "/secret/path" not in caught.value.message
    assert "/secret/path" in caught.value.detail


async def test_a_start_that_hangs_is_given_up(open_agent, home, runtime, order):
    agent = await open_agent(start_limit_s=0.05)
    runtime.behavior.starts = False
    with pytest.raises(DeadlineExceeded):
        await agent.create(order)

    assert agent.places.in_use == 0
    assert on_disk(home) == []


async def test_a_full_node_says_so_and_keeps_nothing(open_agent, home, order, make_order):
    agent = await open_agent(capacity=1)
    await agent.create(order)
    with pytest.raises(NoCapacity) as caught:
        await agent.create(make_order())

    assert caught.value.reason == "node_full"
    assert on_disk(home) == [order.sandbox_id]


async def test_an_image_that_is_not_there_is_not_found(agent, make_order):
    with pytest.raises(NotFound) as caught:
        await agent.create(make_order(image_id=ImageId("other")))

    assert caught.value.reason == "image_not_found"
    assert agent.statuses() == []


async def test_an_image_that_is_being_built_says_how_far_it_is(agent, home, make_order):
    progress = manifests.progress_path(home, ImageId("other"))
    progress.parent.mkdir(parents=True)
    progress.write_text("unpacking 3 of 9")
    with pytest.raises(NoCapacity, match="unpacking 3 of 9") as caught:
        await agent.create(make_order(image_id=ImageId("other")))

    assert caught.value.reason == "image_not_ready"


async def test_an_image_id_may_not_lead_out_of_the_images(agent, make_order):
    with pytest.raises(InvalidArgument):
        await agent.create(make_order(image_id=ImageId("../base")))


async def test_a_sandbox_that_ends_by_itself_waits_to_be_killed(agent, runtime, home, order):
    with agent.events.subscribe() as events:
        await agent.create(order)
        await runtime.stop(agent.live[order.sandbox_id].entry.handle, grace_s=0)
        await next_phase(events, Phase.ENDED)
    ended = phases(agent)
    held = agent.places.in_use
    await agent.kill(order.sandbox_id)

    assert ended == {order.sandbox_id: Phase.ENDED}
    assert held == 1
    assert agent.places.in_use == 0
    assert on_disk(home) == []


async def test_a_sandbox_that_cannot_be_freed_stays_until_a_kill_succeeds(agent, runtime, order):
    await agent.create(order)
    runtime.behavior.leaks = True
    with pytest.raises(Internal):
        await agent.kill(order.sandbox_id)
    stuck = phases(agent), agent.places.in_use
    runtime.behavior.leaks = False
    found = await agent.kill(order.sandbox_id)

    assert stuck == ({order.sandbox_id: Phase.STOPPING}, 1)
    assert found is True
    assert agent.places.in_use == 0


async def test_routes_go_before_the_place_is_given_back(agent, order):
    seen = []
    agent.events.listeners.append(lambda status: seen.append((status.phase, agent.places.in_use)))
    await agent.create(order)
    await agent.kill(order.sandbox_id)

    assert (Phase.STOPPING, 1) in seen


async def test_a_restarted_agent_adopts_what_runs_and_sees_its_end(open_agent, runtime, order):
    first = await open_agent()
    await first.create(order)
    second = await open_agent()
    adopted, held = phases(second), second.places.in_use
    with second.events.subscribe() as events:
        await runtime.stop(second.live[order.sandbox_id].entry.handle, grace_s=0)
        await next_phase(events, Phase.ENDED)

    assert adopted == {order.sandbox_id: Phase.RUNNING}
    assert held == 1


async def test_an_adopted_sandbox_answers_a_repeated_create(open_agent, order):
    first = await open_agent()
    seconds = await first.create(order)
    second = await open_agent()

    assert await second.create(order) == seconds


async def test_a_sandbox_that_ended_meanwhile_is_listed_as_ended(open_agent, runtime, order):
    first = await open_agent()
    await first.create(order)
    handle = first.live[order.sandbox_id].entry.handle
    await first.close()
    await runtime.stop(handle, grace_s=0)
    second = await open_agent()

    assert phases(second) == {order.sandbox_id: Phase.ENDED}
    assert second.places.in_use == 0


async def test_a_start_that_died_with_its_agent_is_undone(open_agent, home, runtime, order):
    first = await open_agent()
    await first.create(order)
    handle = first.live[order.sandbox_id].entry.handle
    await first.close()
    entry = home.node / "sandboxes" / order.sandbox_id / "entry.json"
    told = json.loads(entry.read_text())
    entry.write_text(json.dumps({**told, "phase": "starting", "handle": None}))
    second = await open_agent()

    assert second.statuses() == []
    assert on_disk(home) == []
    assert await runtime.recover(handle) is protocol.Status.ENDED


async def test_a_damaged_entry_is_undone(open_agent, home, runtime, order):
    first = await open_agent()
    await first.create(order)
    handle = first.live[order.sandbox_id].entry.handle
    await first.close()
    (home.node / "sandboxes" / order.sandbox_id / "entry.json").write_text('{"order"')
    second = await open_agent()

    assert second.statuses() == []
    assert on_disk(home) == []
    assert await runtime.recover(handle) is protocol.Status.ENDED


async def test_a_kill_that_died_with_its_agent_is_finished(open_agent, home, runtime, order):
    first = await open_agent()
    await first.create(order)
    handle = first.live[order.sandbox_id].entry.handle
    await first.close()
    entry = home.node / "sandboxes" / order.sandbox_id / "entry.json"
    told = json.loads(entry.read_text())
    entry.write_text(json.dumps({**told, "phase": "stopping"}))
    second = await open_agent()
    places = [await second.places.take() for _ in range(second.places.capacity)]

    assert second.statuses() == []
    assert on_disk(home) == []
    assert await runtime.recover(handle) is protocol.Status.ENDED
    assert len({place.index for place in places}) == second.places.capacity


async def test_one_sandbox_in_a_bad_way_does_not_keep_the_agent_from_opening(
    open_agent, home, runtime, order, make_order
):
    first = await open_agent()
    other = make_order()
    await first.create(order)
    await first.create(other)
    await first.close()
    entry = home.node / "sandboxes" / order.sandbox_id / "entry.json"
    told = json.loads(entry.read_text())
    entry.write_text(json.dumps({**told, "phase": "stopping"}))
    runtime.behavior.leaks = True
    second = await open_agent()
    listed, held = phases(second), second.places.in_use
    runtime.behavior.leaks = False
    await second.kill(order.sandbox_id)

    assert listed == {order.sandbox_id: Phase.ENDED, other.sandbox_id: Phase.RUNNING}
    # What could not be freed still runs, so its place is not given to anyone else.
    assert held == 2
    assert phases(second) == {other.sandbox_id: Phase.RUNNING}


async def test_trash_of_a_dead_agent_is_removed(open_agent, home):
    left = home.node / "trash" / "iold.abc" / "deep"
    left.mkdir(parents=True)
    (left / "file").write_text("x")
    agent = await open_agent()
    await agent.close()

    assert list((home.node / "trash").iterdir()) == []


async def test_a_closing_agent_undoes_a_create_that_hangs(open_agent, home, runtime, order):
    from opene2b.node import agent as module

    module_limit, module.CLOSE_LIMIT_S = module.CLOSE_LIMIT_S, 0.05
    try:
        agent = await open_agent()
        runtime.behavior.starts = False
        creating = asyncio.create_task(agent.create(order))
        await asyncio.sleep(0)
        await agent.close()
        await asyncio.wait({creating})
    finally:
        module.CLOSE_LIMIT_S = module_limit

    assert isinstance(creating.exception(), WrongState)
    assert on_disk(home) == []


@pytest.mark.slow
async def test_twenty_at_once_end_as_they_began(open_agent, home, make_order):
    agent = await open_agent(capacity=20)
    before = len(os.listdir("/proc/self/fd"))
    orders = [make_order(execution_id=new_uuid()) for _ in range(20)]
    await asyncio.gather(*(agent.create(order) for order in orders))
    running = len(agent.statuses())
    await asyncio.gather(*(agent.kill(order.sandbox_id) for order in orders))
    # What is being removed in the background takes descriptors too.
    await agent.close()

    assert running == 20
    assert agent.places.in_use == 0
    assert on_disk(home) == []
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_paused_sandbox_has_no_route_and_goes_on_where_it_stood(agent, runtime, order):
    await agent.create(order)
    handle = agent.live[order.sandbox_id].entry.handle
    with agent.events.subscribe() as events:
        await agent.turns.pause(order.sandbox_id, order.execution_id)
        await next_phase(events, Phase.PAUSED)
    paused = (agent.running(order.sandbox_id), await runtime.recover(handle))
    await agent.turns.pause(order.sandbox_id, order.execution_id)
    await agent.turns.resume(order.sandbox_id, order.execution_id)
    resumed = (agent.running(order.sandbox_id), await runtime.recover(handle))
    await agent.kill(order.sandbox_id)

    assert paused == (None, Status.PAUSED)
    assert resumed[0] is not None
    assert resumed[1] is Status.RUNNING


async def test_a_paused_sandbox_is_killed(agent, home, order):
    await agent.create(order)
    await agent.turns.pause(order.sandbox_id, order.execution_id)
    found = await agent.kill(order.sandbox_id)

    assert found
    assert list((home.node / "sandboxes").iterdir()) == []


@pytest.mark.parametrize("wanted", [Phase.PAUSED, Phase.RUNNING])
async def test_what_a_dead_agent_had_written_down_is_done(open_agent, runtime, order, wanted):
    """It died between its word and its deed: paused on paper and running, or the other way round."""
    first = await open_agent()
    await first.create(order)
    live = first.live[order.sandbox_id]
    if wanted is Phase.RUNNING:
        await runtime.pause(live.entry.handle)
    first.table.save(replace(live.entry, phase=wanted))
    second = await open_agent()
    seen = (phases(second), await runtime.recover(live.entry.handle))
    await second.kill(order.sandbox_id)

    assert seen == ({order.sandbox_id: wanted}, Status(wanted.value))


async def test_only_what_runs_is_paused(agent, order):
    with pytest.raises(NotFound):
        await agent.turns.pause(order.sandbox_id, order.execution_id)
    await agent.create(order)
    with pytest.raises(NotFound):
        await agent.turns.pause(order.sandbox_id, "another")
    await agent.kill(order.sandbox_id)


async def test_a_pause_that_fails_leaves_it_running(agent, runtime, order, monkeypatch):
    await agent.create(order)

    async def fail(handle):
        raise DeadlineExceeded("cannot be frozen")

    monkeypatch.setattr(runtime, "pause", fail)
    with pytest.raises(DeadlineExceeded):
        await agent.turns.pause(order.sandbox_id, order.execution_id)
    running = agent.running(order.sandbox_id)
    await agent.kill(order.sandbox_id)

    assert running is not None


async def test_a_stored_sandbox_keeps_its_disk_and_nothing_else(open_agent, runtime, order):
    agent = await open_agent()
    await agent.create(order)
    disk = agent.table.disk(order.sandbox_id)
    (disk / "kept").write_text("yes")
    await agent.turns.pause(order.sandbox_id, order.execution_id, disk_only=True)
    stored = (phases(agent), agent.places.in_use)
    second = await open_agent()
    found = phases(second)
    await second.turns.resume(order.sandbox_id, order.execution_id)
    running = (phases(second), second.places.in_use, (disk / "kept").read_text())
    await second.kill(order.sandbox_id)

    assert stored == ({order.sandbox_id: Phase.STORED}, 0)
    assert found == {order.sandbox_id: Phase.STORED}
    assert running == ({order.sandbox_id: Phase.RUNNING}, 1, "yes")


async def test_a_paused_sandbox_whose_processes_are_gone_becomes_a_stored_one(
    open_agent, runtime, order
):
    first = await open_agent()
    await first.create(order)
    await first.turns.pause(order.sandbox_id, order.execution_id)
    await runtime.stop(first.live[order.sandbox_id].entry.handle, grace_s=0)
    first.table.save(replace(first.live[order.sandbox_id].entry, phase=Phase.PAUSED))
    second = await open_agent()
    found = phases(second)
    await second.kill(order.sandbox_id)

    assert found == {order.sandbox_id: Phase.STORED}


async def test_a_store_that_died_with_its_agent_is_finished(open_agent, runtime, order):
    first = await open_agent()
    await first.create(order)
    live = first.live[order.sandbox_id]
    first.table.save(replace(live.entry, phase=Phase.STORED))
    second = await open_agent()
    seen = (phases(second), await runtime.recover(live.entry.handle), second.places.in_use)
    await second.kill(order.sandbox_id)

    assert seen == ({order.sandbox_id: Phase.STORED}, Status.ENDED, 0)


async def test_a_sandbox_that_ends_while_it_is_paused_is_not_told_to_be_paused(
    agent, runtime, order, monkeypatch
):
    await agent.create(order)
    real = runtime.pause

    async def pause(handle):
        await real(handle)
        await runtime.stop(handle, grace_s=0)
        async with asyncio.timeout(LIMIT_S):
            while phases(agent)[order.sandbox_id] is not Phase.ENDED:
                await asyncio.sleep(0.01)

    monkeypatch.setattr(runtime, "pause", pause)
    with pytest.raises(WrongState):
        await agent.turns.pause(order.sandbox_id, order.execution_id)
    seen = phases(agent)
    await agent.kill(order.sandbox_id)

    assert seen == {order.sandbox_id: Phase.ENDED}
