import pytest

from opene2b.core.errors import NoCapacity
from opene2b.node.places import OWN_NETWORK, LoopbackPlaces


async def test_places_are_counted_up_to_the_capacity():
    places = LoopbackPlaces(capacity=2)
    taken = [await places.take(), await places.take()]
    with pytest.raises(NoCapacity) as caught:
        await places.take()

    assert {place.index for place in taken} == {0, 1}
    assert caught.value.reason == "node_full"


async def test_a_place_that_was_given_back_is_taken_again():
    places = LoopbackPlaces(capacity=1)
    place = await places.take()
    await places.give_back(place.index)

    assert (await places.take()).index == place.index


async def test_places_of_recovered_sandboxes_are_in_use():
    places = LoopbackPlaces(capacity=3)
    await places.open({0: OWN_NETWORK, 2: OWN_NETWORK})

    assert places.in_use == 2
    assert (await places.take()).index == 1


async def test_a_place_that_nobody_holds_cannot_be_given_back():
    with pytest.raises(KeyError):
        await LoopbackPlaces(capacity=1).give_back(0)
