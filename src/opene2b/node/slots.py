"""Network places: namespaces with an address each, made ahead, recycled.

A free place is a descriptor of this process and nothing else: when the agent dies, the kernel removes the
namespaces of all free places with their interfaces. A place in use is also kept by the sandbox's processes,
so it survives the agent, and `open` takes it over again.

The namespace is made outside the sandbox's user namespace, so that guest root has no power over it:
what root inside needs (low ports, ping) is allowed by settings of the namespace.
"""

import asyncio
import ipaddress
import logging
import os
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from opene2b.core.errors import NoCapacity
from opene2b.linux import conntrack, syscalls
from opene2b.linux.netlink import Rtnetlink
from opene2b.node import firewall
from opene2b.runtime.protocol import NetworkPlace

log = logging.getLogger(__name__)

ADDRESSES_PER_PLACE = 4
"""A /30: network, host's end, sandbox's end, broadcast."""
HIGHEST_GROUP = 2**31 - 1


class Slots:
    """All methods on one event loop; the work is done in threads of its own."""

    def __init__(
        self,
        *,
        subnet: ipaddress.IPv4Network,
        capacity: int,
        warm: int,
        nameservers: Sequence[str] = (),
        state: Path,
        prepare: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        """
        Args:
            subnet: Cut into a /30 for each place; bounds the capacity.
            warm: Places kept ready beyond those in use.
            nameservers: Empty: those of the host.
            state: Directory that remembers which settings of the host were changed.
            prepare: Called once for each index before it is first handed out (id ranges of a runtime).
        """
        self.subnet = subnet
        self.capacity = min(capacity, subnet.num_addresses // ADDRESSES_PER_PLACE)
        self.warm = min(warm, self.capacity)
        self.nameservers = tuple(nameservers) or firewall.host_nameservers()
        self.state = state
        self.prepare = prepare
        self.namespaces: dict[int, int] = {}
        """Index -> descriptor of its network namespace: every place that exists."""
        self.ready: deque[int] = deque()
        self.unmade: set[int] = set(range(self.capacity))
        self.offline: set[int] = set()
        self.used: set[int] = set()
        self.executor = ThreadPoolExecutor(max_workers=2, thread_name_prefix="slots")
        self.filler: asyncio.Task[None] | None = None
        self.wanted = asyncio.Event()

    @property
    def in_use(self) -> int:
        return len(self.used)

    async def open(self, in_use: Mapping[int, Path], offline: Set[int] = frozenset()) -> None:
        """Set up firewall and forwarding, take over the places in use, begin to fill the pool.

        Args:
            offline: Those in use that may not reach the internet.
        """
        self.offline = set(offline)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self.executor, self.open_host)
        for index, path in in_use.items():
            self.namespaces[index] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.unmade.discard(index)
            self.used.add(index)
        self.filler = asyncio.create_task(self.fill(), name="slots-fill")
        self.wanted.set()

    def open_host(self) -> None:
        offline = [str(self.guest_address(index)) for index in sorted(self.offline)]
        firewall.install(self.subnet, self.nameservers, offline)
        changed = self.state / "forwarding"
        self.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        before = set(changed.read_text().split()) if changed.exists() else set()
        for interface in firewall.uplinks():
            if firewall.set_forwarding(interface, on=True):
                before.add(interface)
        changed.write_text("\n".join(sorted(before)))

    async def close(self) -> None:
        """Let go of the free places. When none is in use, the host is left as it was found."""
        if self.filler is not None:
            self.filler.cancel()
            await asyncio.gather(self.filler, return_exceptions=True)
        self.executor.shutdown(wait=True)
        for fd in self.namespaces.values():
            os.close(fd)
        self.namespaces.clear()
        if not self.used:
            self.close_host()

    def close_host(self) -> None:
        firewall.remove(self.subnet)
        changed = self.state / "forwarding"
        if changed.exists():
            for interface in changed.read_text().split():
                if Path(f"/proc/sys/net/ipv4/conf/{interface}").exists():
                    firewall.set_forwarding(interface, on=False)
            changed.unlink()

    async def take(self, *, allow_internet_access: bool = True) -> NetworkPlace:
        """Raises NoCapacity when every place of the node is in use."""
        if self.ready:
            index = self.ready.popleft()
        elif self.unmade:
            index = self.unmade.pop()
            await self.make(index)
        else:
            raise NoCapacity(
                f"all {self.capacity} places of this node are in use", reason="node_full"
            )
        self.used.add(index)
        self.wanted.set()
        place = NetworkPlace(
            index=index,
            netns_path=Path(f"/proc/{os.getpid()}/fd/{self.namespaces[index]}"),
            address=str(self.guest_address(index)),
            nameservers=self.nameservers,
        )
        if not allow_internet_access:
            self.offline.add(index)
            try:
                await self.set_offline(place.address, offline=True)
            except BaseException:
                await asyncio.shield(self.give_back(index))
                raise
        return place

    async def give_back(self, index: int) -> None:
        """The place may be used again: nothing of its sandbox is left, its connections included."""
        address = str(self.guest_address(index))
        await asyncio.get_running_loop().run_in_executor(self.executor, conntrack.forget, address)
        if index in self.offline:
            await self.set_offline(address, offline=False)
            self.offline.discard(index)
        self.used.discard(index)
        self.ready.append(index)

    async def set_offline(self, address: str, *, offline: bool) -> None:
        await asyncio.get_running_loop().run_in_executor(
            self.executor, lambda: firewall.set_offline(self.subnet, address, offline=offline)
        )

    async def fill(self) -> None:
        while True:
            await self.wanted.wait()
            self.wanted.clear()
            while len(self.ready) < self.warm and self.unmade:
                index = self.unmade.pop()
                try:
                    await self.make(index)
                except OSError as exc:
                    log.error("slot_failed", extra={"index": index, "detail": str(exc)})
                    break
                self.ready.append(index)

    async def make(self, index: int) -> None:
        try:
            if self.prepare is not None:
                await self.prepare(index)
            self.namespaces[index] = await asyncio.get_running_loop().run_in_executor(
                self.executor, self.make_namespace, index
            )
        except BaseException:
            self.unmade.add(index)
            raise

    def network(self, index: int) -> int:
        return int(self.subnet.network_address) + index * ADDRESSES_PER_PLACE

    def host_address(self, index: int) -> ipaddress.IPv4Address:
        return ipaddress.IPv4Address(self.network(index) + 1)

    def guest_address(self, index: int) -> ipaddress.IPv4Address:
        return ipaddress.IPv4Address(self.network(index) + 2)

    def make_namespace(self, index: int) -> int:
        """A namespace with `eth0` and a route out; returns its descriptor."""
        result: list[int | OSError] = []
        # A thread of its own, because it never comes back to the host's network: it ends instead.
        thread = threading.Thread(target=self.build, args=(index, result))
        host = Rtnetlink()
        name = firewall.interface_name(self.guest_address(index))
        # The host's end of a namespace that the kernel is still taking down.
        host.delete(name)
        thread.start()
        thread.join()
        made = result[0]
        if isinstance(made, OSError):
            host.close()
            raise made
        try:
            host.add_address(name, str(self.host_address(index)), 30)
            conf = Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6")
            if conf.exists():
                conf.write_text("1")
            firewall.set_forwarding(name, on=True)
            host.set_up(name)
        except BaseException:
            os.close(made)
            raise
        finally:
            host.close()
        return made

    def build(self, index: int, result: list[int | OSError]) -> None:
        namespace = -1
        try:
            outside = Rtnetlink()
            syscalls.unshare(syscalls.CLONE_NEWNET)
            namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            inside = Rtnetlink()
            try:
                name = firewall.interface_name(self.guest_address(index))
                outside.add_veth(name, "eth0", namespace)
                settings = Path("/proc/sys/net")
                (settings / "ipv4/ip_unprivileged_port_start").write_text("0")
                (settings / "ipv4/ping_group_range").write_text(f"0 {HIGHEST_GROUP}")
                if (settings / "ipv6/conf/eth0").exists():
                    (settings / "ipv6/conf/eth0/disable_ipv6").write_text("1")
                inside.set_up("lo")
                inside.add_address("eth0", str(self.guest_address(index)), 30)
                inside.set_up("eth0")
                inside.add_default_route(str(self.host_address(index)))
            finally:
                outside.close()
                inside.close()
            result.append(namespace)
        except OSError as exc:
            if namespace >= 0:
                os.close(namespace)
            result.append(exc)
