"""What the agent asks of the pool of network places, and the pool of a runtime that has no networks of its own."""

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Protocol, runtime_checkable

from opene2b.core.errors import NoCapacity
from opene2b.runtime.protocol import NetworkPlace

OWN_NETWORK = Path("/proc/self/ns/net")


class Places(Protocol):
    """The network places of a node. All methods on one event loop."""

    capacity: int

    @property
    def in_use(self) -> int: ...

    async def open(self, in_use: Mapping[int, Path], offline: Set[int] = frozenset()) -> None:
        """Take over the places of sandboxes that outlived the last agent, then fill the pool in the background.

        Args:
            in_use: Index -> openable path of the network namespace; read before this returns.
            offline: Those of them that may not reach the internet.
        """
        ...

    async def close(self) -> None: ...

    async def take(self, *, allow_internet_access: bool = True) -> NetworkPlace:
        """Raises NoCapacity (`node_full`)."""
        ...

    async def give_back(self, index: int) -> None:
        """The place may be used again: call it when nothing of its sandbox is left."""
        ...


@runtime_checkable
class Preparing(Protocol):
    """A runtime that has work to do for each place, ahead of its first sandbox."""

    async def prepare(self, index: int) -> None: ...


class LoopbackPlaces:
    """Places that are all the agent's own network, for runtimes that isolate nothing. They only count."""

    def __init__(self, *, capacity: int) -> None:
        self.capacity = capacity
        self.used: set[int] = set()

    @property
    def in_use(self) -> int:
        return len(self.used)

    async def open(self, in_use: Mapping[int, Path], offline: Set[int] = frozenset()) -> None:
        self.used.update(in_use)

    async def close(self) -> None:
        return

    async def take(self, *, allow_internet_access: bool = True) -> NetworkPlace:
        # What shares our network cannot be kept off the internet; the runtime says that it isolates nothing.
        for index in range(self.capacity):
            if index not in self.used:
                self.used.add(index)
                return NetworkPlace(index=index, netns_path=OWN_NETWORK, address="127.0.0.1")
        raise NoCapacity(f"all {self.capacity} places of this node are in use", reason="node_full")

    async def give_back(self, index: int) -> None:
        # Raises KeyError for a place that nobody holds: given back twice, it would be given out twice.
        self.used.remove(index)
