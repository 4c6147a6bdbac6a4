"""What may happen to a sandbox: one pure table.

`apply` takes the state a sandbox is in and what happened, and answers the new state with the
instructions that its owner (the scheduler) must carry out. Nothing else changes a state.
"""

from enum import StrEnum

from opene2b.core.errors import WrongState


class SandboxState(StrEnum):
    STARTING = "starting"
    """Promised; the node is making it. Not visible to clients."""
    RUNNING = "running"
    """envd answers."""
    PAUSING = "pausing"
    """Asked to stand still. Clients see it as paused."""
    PAUSED = "paused"
    """Its processes stand still; no deadline runs."""
    RESUMING = "resuming"
    """Asked to go on. Clients see it as paused."""
    KILLING = "killing"
    """Asked to end; the node is freeing what it used. Clients see it as gone."""


class SandboxEvent(StrEnum):
    STARTED = "started"
    """The node says that envd answers."""
    START_FAILED = "start_failed"
    """The node undid it, or never had it."""
    KILL = "kill"
    """A client asked."""
    EXPIRED = "expired"
    """`end_at` has passed."""
    PAUSE = "pause"
    """A client asked, or `end_at` has passed and the sandbox is one to be paused then."""
    PAUSED = "paused"
    """The node says that it stands still."""
    PAUSE_FAILED = "pause_failed"
    """The node says that it runs on."""
    RESUME = "resume"
    """A client asked, or traffic came."""
    RESUME_FAILED = "resume_failed"
    """The node says that it cannot, now; the sandbox is as it was."""
    RESUMED = "resumed"
    """The node says that it goes on."""
    LOST = "lost"
    """It ended by itself, or its node has it no longer."""
    FREED = "freed"
    """The node freed everything it used."""


class Instruction(StrEnum):
    KILL_ON_NODE = "kill_on_node"
    PAUSE_ON_NODE = "pause_on_node"
    RESUME_ON_NODE = "resume_on_node"
    SCHEDULE_EXPIRY = "schedule_expiry"
    CANCEL_EXPIRY = "cancel_expiry"
    FORGET = "forget"
    """Delete the row: the sandbox is no more."""


S, E, I = SandboxState, SandboxEvent, Instruction  # noqa: E741 - the table reads better with short names

TABLE: dict[
    tuple[SandboxState, SandboxEvent], tuple[SandboxState | None, tuple[Instruction, ...]]
] = {
    (S.STARTING, E.STARTED): (S.RUNNING, (I.SCHEDULE_EXPIRY,)),
    (S.STARTING, E.START_FAILED): (None, (I.FORGET,)),
    (S.STARTING, E.KILL): (S.KILLING, (I.KILL_ON_NODE,)),
    (S.STARTING, E.EXPIRED): (S.KILLING, (I.KILL_ON_NODE,)),
    (S.STARTING, E.LOST): (None, (I.FORGET,)),
    (S.RUNNING, E.KILL): (S.KILLING, (I.CANCEL_EXPIRY, I.KILL_ON_NODE)),
    (S.RUNNING, E.EXPIRED): (S.KILLING, (I.KILL_ON_NODE,)),
    (S.RUNNING, E.LOST): (S.KILLING, (I.CANCEL_EXPIRY, I.KILL_ON_NODE)),
    (S.RUNNING, E.PAUSE): (S.PAUSING, (I.CANCEL_EXPIRY, I.PAUSE_ON_NODE)),
    (S.PAUSING, E.PAUSED): (S.PAUSED, ()),
    (S.PAUSING, E.PAUSE_FAILED): (S.RUNNING, (I.SCHEDULE_EXPIRY,)),
    (S.PAUSING, E.KILL): (S.KILLING, (I.KILL_ON_NODE,)),
    (S.PAUSING, E.LOST): (S.KILLING, (I.KILL_ON_NODE,)),
    (S.PAUSED, E.RESUME): (S.RESUMING, (I.RESUME_ON_NODE,)),
    (S.PAUSED, E.KILL): (S.KILLING, (I.KILL_ON_NODE,)),
    (S.PAUSED, E.LOST): (S.KILLING, (I.KILL_ON_NODE,)),
    (S.RESUMING, E.RESUMED): (S.RUNNING, (I.SCHEDULE_EXPIRY,)),
    (S.RESUMING, E.RESUME_FAILED): (S.PAUSED, ()),
    (S.RESUMING, E.KILL): (S.KILLING, (I.KILL_ON_NODE,)),
    (S.RESUMING, E.LOST): (S.KILLING, (I.KILL_ON_NODE,)),
    # The node frees what an ended sandbox used only when told: KILL_ON_NODE is repeatable.
    (S.KILLING, E.FREED): (None, (I.FORGET,)),
    (S.KILLING, E.LOST): (S.KILLING, ()),
    (S.KILLING, E.EXPIRED): (S.KILLING, ()),
    (S.KILLING, E.STARTED): (S.KILLING, (I.KILL_ON_NODE,)),
    (S.KILLING, E.START_FAILED): (None, (I.FORGET,)),
}
"""(state, event) -> (new state or None when the sandbox is no more, instructions in order)."""


def apply(
    state: SandboxState, event: SandboxEvent
) -> tuple[SandboxState | None, tuple[Instruction, ...]]:
    """Raises WrongState for what the table does not have."""
    try:
        return TABLE[state, event]
    except KeyError:
        raise WrongState(f"a sandbox that is {state.value!r} cannot take {event.value!r}") from None
