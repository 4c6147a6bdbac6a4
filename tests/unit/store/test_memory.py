import pytest

from opene2b.store.memory import MemoryStore
from opene2b.testing.store_suite import BEHAVIOURS


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda behaviour: behaviour.__name__)
async def test_the_memory_store(behaviour):
    store = MemoryStore()
    await store.open()
    await behaviour(store)
    await store.close()
