import asyncio

import pytest

from opene2b.core.ids import ExecutionId, SandboxId
from opene2b.node.events import Events, Status, TooSlow
from opene2b.node.table import Phase


def status(number):
    return Status(
        sandbox_id=SandboxId(f"i{number}"), execution_id=ExecutionId("e"), phase=Phase.RUNNING
    )


async def test_every_subscriber_hears_everything_in_order():
    events = Events()
    with events.subscribe() as one, events.subscribe() as two:
        for number in range(3):
            events.publish(status(number))
        heard = [[await each.next() for _ in range(3)] for each in (one, two)]

    assert heard == [[status(0), status(1), status(2)]] * 2


async def test_a_subscriber_hears_nothing_of_the_past():
    events = Events()
    events.publish(status(0))
    with events.subscribe() as subscription:
        events.publish(status(1))

        assert await subscription.next() == status(1)


async def test_a_slow_subscriber_gets_what_came_before_the_gap_and_is_cut_off():
    events = Events()
    with events.subscribe(limit=2) as slow, events.subscribe() as quick:
        for number in range(4):
            events.publish(status(number))
        first = [await slow.next(), await slow.next()]
        with pytest.raises(TooSlow):
            await slow.next()

        assert first == [status(0), status(1)]
        assert quick.queue.qsize() == 4
        assert slow not in events.subscriptions


async def test_a_waiting_subscriber_is_woken():
    events = Events()
    with events.subscribe() as subscription:
        waiting = asyncio.create_task(subscription.next())
        await asyncio.sleep(0)
        events.publish(status(5))

        assert await waiting == status(5)


def test_a_listener_is_called_before_publish_returns():
    events = Events()
    heard = []
    events.listeners.append(heard.append)
    events.publish(status(1))

    assert heard == [status(1)]


async def test_a_subscription_ends_with_its_block():
    events = Events()
    with events.subscribe():
        pass

    assert events.subscriptions == set()
