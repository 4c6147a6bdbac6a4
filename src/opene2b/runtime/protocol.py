"""The runtime protocol: what the node agent asks of whatever isolates a sandbox.

One whole life, as the agent drives it:

    lease = await slots.take()                     # a network place and an id range (the agent's)
    handle = await runtime.start(spec)             # processes, mounts, envd on :49983
    exit = await runtime.wait(handle)              # ... until it ends, or the agent is told to end it
    await runtime.stop(handle, grace_s=0)          # no process of it is left
    await runtime.destroy(handle)                  # nothing of it is left
    slots.give_back(lease)

and after a restart of the agent, `await runtime.recover(handle)` in place of `start`.
Calls for different sandboxes overlap; for one sandbox the agent makes them one at a time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from opene2b.core.ids import ExecutionId, SandboxId
from opene2b.core.resources import Resources

Handle = Mapping[str, Any]
"""JSON-able; the driver writes it, the agent keeps it, nobody else reads it."""


class Isolation(StrEnum):
    NONE = "none"
    NAMESPACE = "namespace"
    """Shares the host's kernel; own namespaces and id range, seccomp, cgroup."""
    USERSPACE_KERNEL = "userspace-kernel"
    MICROVM = "microvm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a driver can do; travels to the scheduler, so it is data."""

    isolation: Isolation
    pause: bool = False
    """`pause` and `resume`: every process stops where it stands, its memory stays."""


class Status(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """Why a sandbox ended by itself."""

    reason: str
    """`exited`, `oom`, or what the driver knows; a metric label, from a closed set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPlace:
    """One prepared place in the network: an address, and the namespace that has it."""

    index: int
    """Number of the slot; the id range of the sandbox is derived from it."""
    netns_path: Path
    """Openable while the agent lives; afterwards the sandbox's own processes keep the namespace."""
    address: str
    """IPv4 address inside, e.g. `10.201.0.2`."""
    nameservers: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvdConfig:
    """What envd must know at its start; given in memory where the node can enter the sandbox, else by `POST /init`."""

    sandbox_id: SandboxId
    template_id: str
    access_token: str | None
    env_vars: Mapping[str, str] = field(default_factory=dict)
    default_user: str = "user"
    default_workdir: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    sandbox_id: SandboxId
    execution_id: ExecutionId
    layers: Sequence[Path]
    """Read-only trees of the root filesystem, lowest first; ids in them are those inside (root is 0)."""
    directory: Path
    """Empty directory of this sandbox alone, mode 0700, on the disk that holds what it writes; the
    driver may put anything there; `destroy` leaves it empty."""
    resources: Resources
    place: NetworkPlace
    envd: EnvdConfig
    hostname: str = "e2b.local"


class Runtime(Protocol):
    """Starts and ends sandboxes on one machine. See the module for one whole life."""

    name: str
    capabilities: Capabilities

    async def open(self) -> None:
        """Make ready what all sandboxes share (helper processes, profiles). Called once, first."""
        ...

    async def close(self) -> None:
        """Let go of what `open` made. Sandboxes go on."""
        ...

    async def start(self, spec: SandboxSpec) -> Handle:
        """Start a sandbox; returns once envd can be reached on port 49983 in its network.

        If it raises (also CancelledError), everything it had made is gone again.

        Raises:
            OutOfSpace, DeadlineExceeded, Internal
        """
        ...

    async def recover(self, handle: Handle) -> Status:
        """Take a sandbox over after a restart of the agent; repeatable."""
        ...

    async def wait(self, handle: Handle) -> Exit:
        """Return when the sandbox has ended. Cancelling leaves the sandbox alone."""
        ...

    async def pause(self, handle: Handle) -> None:
        """Stop every process of it where it stands: it uses no processor time until `resume`. Repeatable.

        Raises:
            Unsupported: not by this driver (`capabilities.pause`).
            DeadlineExceeded: a process cannot be stopped; all go on.
        """
        ...

    async def resume(self, handle: Handle) -> None:
        """Let it go on. Repeatable."""
        ...

    async def stop(self, handle: Handle, *, grace_s: float) -> None:
        """End every process of it; a no-op if that is so already.

        Args:
            grace_s: Seconds between asking (SIGTERM) and ending; 0 ends at once.
        """
        ...

    async def destroy(self, handle: Handle) -> None:
        """Free everything that start acquired, but for files below the spec's directory: what a guest wrote may take
        long to remove, and goes with the directory, which is its maker's. Repeatable; after `stop`."""
        ...

    async def undo(self, spec_directory: Path, sandbox_id: SandboxId) -> None:
        """As `destroy`, for a start that never reported (the agent was killed in its middle)."""
        ...

    def netns_path(self, handle: Handle) -> Path | None:
        """The network namespace of a running sandbox, for the gateway; None when there is none to enter
        (then the sandbox shares the agent's own network)."""
        ...

    def envd_port(self, handle: Handle) -> int:
        """The port that envd has in that network: 49983, but where sandboxes share a network."""
        ...
