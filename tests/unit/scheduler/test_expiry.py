import asyncio

import pytest

from opene2b.scheduler.expiry import COMPACT_AT, Deadlines


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def deadlines(clock):
    async def nothing(sandbox_id):
        raise AssertionError("nothing runs here")

    return Deadlines(nothing, clock=clock)


async def test_deadlines_come_due_in_their_order(deadlines, clock):
    for name, in_s in (("b", 2), ("a", 1), ("c", 3)):
        deadlines.set(name, in_s)
    clock.now = 2

    assert deadlines.take_due() == ["a", "b"]
    assert deadlines.take_due() == []


async def test_a_deadline_that_was_moved_counts_once_and_later(deadlines, clock):
    deadlines.set("a", 1)
    deadlines.set("a", 5)
    clock.now = 4
    early = deadlines.take_due()
    clock.now = 5

    assert early == []
    assert deadlines.take_due() == ["a"]


async def test_a_deadline_that_was_moved_forward_comes_sooner(deadlines, clock):
    deadlines.set("a", 5)
    deadlines.set("a", 1)
    clock.now = 1
    first = deadlines.take_due()
    clock.now = 10

    assert first == ["a"]
    assert deadlines.take_due() == []


async def test_a_cancelled_deadline_never_comes(deadlines, clock):
    deadlines.set("a", 1)
    deadlines.cancel("a")
    clock.now = 2

    assert deadlines.take_due() == []


async def test_moving_one_deadline_for_ever_does_not_grow_the_heap(deadlines):
    for _ in range(10 * COMPACT_AT):
        deadlines.set("a", 1)

    assert len(deadlines.heap) <= COMPACT_AT + 1


async def test_due_calls_do_not_wait_for_one_another_and_survive_a_failure():
    ended = asyncio.Event()
    never = asyncio.Event()
    seen = []

    async def on_due(sandbox_id):
        seen.append(sandbox_id)
        if sandbox_id == "hangs":
            await never.wait()
        if sandbox_id == "fails":
            raise RuntimeError("on purpose")
        if sandbox_id == "last":
            ended.set()

    deadlines = Deadlines(on_due)
    running = asyncio.create_task(deadlines.run())
    for name, in_s in (("hangs", -1), ("fails", 0), ("last", 0.01)):
        deadlines.set(name, in_s)
    await asyncio.wait_for(ended.wait(), 5)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    assert seen == ["hangs", "fails", "last"]


async def test_an_earlier_deadline_wakes_the_queue():
    due = asyncio.Event()

    async def on_due(sandbox_id):
        due.set()

    deadlines = Deadlines(on_due)
    running = asyncio.create_task(deadlines.run())
    deadlines.set("late", 3600)
    await asyncio.sleep(0)
    deadlines.set("soon", 0.01)
    await asyncio.wait_for(due.wait(), 5)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    assert "late" in deadlines.current
