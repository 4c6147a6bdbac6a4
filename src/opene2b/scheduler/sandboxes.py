"""The verbs: create, connect, kill, set a timeout. Each reads the record, asks the state table, does what it says.

A record is written before the node is asked and removed after the node has freed everything, so whatever dies
in between, a record says what was wanted, and `reconcile` finishes it.
"""

import asyncio
import logging
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from opene2b.core import states
from opene2b.core.errors import (
    InvalidArgument,
    NoCapacity,
    NotFound,
    SandboxNotFound,
    ServiceError,
    Unsupported,
    WrongState,
)
from opene2b.core.ids import ExecutionId, SandboxId, new_sandbox_id, new_uuid
from opene2b.core.records import IdempotencyRecord, Sandbox, Team
from opene2b.core.resources import Resources
from opene2b.core.states import Instruction, SandboxEvent, SandboxState
from opene2b.scheduler import templates
from opene2b.scheduler.expiry import Deadlines
from opene2b.scheduler.node import Node, outcome_is_known
from opene2b.scheduler.tokens import Tokens
from opene2b.scheduler.turns import Turns
from opene2b.store.protocol import Store

log = logging.getLogger(__name__)

RUNNING = frozenset({SandboxState.RUNNING})
STANDING = frozenset({SandboxState.PAUSING, SandboxState.PAUSED, SandboxState.RESUMING})
"""What clients are told is paused."""
VISIBLE = RUNNING | STANDING
FRESH_REFRESH_S = 15
PROMISE_KEPT = timedelta(hours=24)
KILL_RETRY_S = 2.0


class IdempotencyMismatch(InvalidArgument):
    """The same key with another request."""

    http_status = 422


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    resources: Resources
    max_timeout_s: int
    team_max_sandboxes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A create request, validated as far as that needs no records."""

    template: str
    timeout_s: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    env_vars: Mapping[str, str] = field(default_factory=dict, repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)
    """See records.Sandbox.options; `internet` (bool) and `private_ingress` (bool) are ours."""


class Scheduler:
    """All methods on one event loop."""

    def __init__(self, *, store: Store, node: Node, tokens: Tokens, settings: Settings) -> None:
        self.store = store
        self.node = node
        self.tokens = tokens
        self.settings = settings
        self.deadlines = Deadlines(self.expire)
        self.creating: set[SandboxId] = set()
        """Creates under way in this process: nobody else may judge their records."""
        self.ended_meanwhile: set[SandboxId] = set()
        """Of those being created: what the node said has ended already."""
        self.onlookers: list[set[SandboxId]] = []
        """Each collects the creates that begin while it looks."""
        self.promises: dict[tuple[str, str], tuple[str, asyncio.Task[Sandbox]]] = {}
        """(team, idempotency key) -> (digest of the request, its create under way)."""
        self.background: set[asyncio.Task[Any]] = set()
        self.turns = Turns(self)

    def run(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """In the background, with its failure in the log."""

        def done(task: asyncio.Task[Any]) -> None:
            self.background.discard(task)
            if not task.cancelled() and (exc := task.exception()) is not None:
                log.error("background_failed", extra={"task": name, "detail": repr(exc)})

        task = asyncio.create_task(work, name=name)
        self.background.add(task)
        task.add_done_callback(done)
        return task

    @contextmanager
    def creates_seen(self) -> Iterator[set[SandboxId]]:
        """Every create that is under way at some moment of the block: what was read before and after it began cannot be
        compared."""
        seen = set(self.creating)
        self.onlookers.append(seen)
        try:
            yield seen
        finally:
            self.onlookers.remove(seen)

    async def close(self) -> None:
        """Stop what goes on in the background. What was promised is finished by the next start."""
        await self.turns.close()
        creating = [task for _, task in self.promises.values()]
        for task in (*creating, *self.background):
            task.cancel()
        await asyncio.gather(*creating, *self.background, return_exceptions=True)

    # create

    async def create(
        self, team: Team, order: Order, *, key: str | None = None, digest: str = ""
    ) -> Sandbox:
        """Make a sandbox; returns once envd answers.

        With an idempotency key, the same key and request give the same sandbox, also while the first is still
        being made, and a caller who is cancelled leaves the create going on.

        Raises:
            InvalidArgument, NotFound, PermissionDenied: the template or timeout.
            LimitExceeded: the team has as many as it may.
            NoCapacity: no node can take it, or the template is still being built.
            IdempotencyMismatch, WrongState: see `Idempotency-Key`.
        """
        if key is None:
            return await self.start(team, order, new_sandbox_id(), key=None)
        known = self.promises.get((team.id, key))
        if known is None:
            task = asyncio.create_task(self.create_promised(team, order, key, digest))
            known = self.promises[team.id, key] = (digest, task)
            task.add_done_callback(lambda _: self.promises.pop((team.id, key), None))
        kept_digest, task = known
        if kept_digest != digest:
            raise mismatch(key)
        return await asyncio.shield(task)

    async def create_promised(self, team: Team, order: Order, key: str, digest: str) -> Sandbox:
        sandbox_id = new_sandbox_id()
        kept = await self.store.claim_idempotency(
            IdempotencyRecord(
                team_id=team.id,
                key=key,
                body_digest=digest,
                sandbox_id=sandbox_id,
                created_at=datetime.now(UTC),
            )
        )
        if kept is not None:
            if kept.body_digest != digest:
                raise mismatch(key)
            sandbox = await self.store.sandbox(kept.sandbox_id)
            if sandbox is not None and sandbox.state in VISIBLE:
                return sandbox
            if sandbox is not None and sandbox.state is SandboxState.STARTING:
                raise WrongState(
                    "the first request with this Idempotency-Key is still being finished",
                    reason="idempotency_in_progress",
                    retryable=True,
                )
            raise WrongState(
                "the sandbox that was made under this Idempotency-Key has ended: use a new key",
                reason="idempotency_outcome_unknown",
                retryable=False,
            )
        try:
            return await self.start(team, order, sandbox_id, key=key)
        except BaseException:
            # Nothing was made, or what was is ended until it is gone: the next try may try again.
            await self.store.drop_idempotency(team.id, key)
            raise

    async def start(
        self, team: Team, order: Order, sandbox_id: SandboxId, *, key: str | None
    ) -> Sandbox:
        self.check_timeout(order.timeout_s)
        template = await templates.resolve(self.store, order.template, team)
        now = datetime.now(UTC)
        private = bool(order.options.get("private_ingress"))
        sandbox = Sandbox(
            id=sandbox_id,
            team_id=team.id,
            template_id=template.id,
            build_id=template.build_id,
            image_id=template.image_id,
            alias=template.aliases[0] if template.aliases else None,
            execution_id=ExecutionId(new_uuid()),
            node_id=self.node.id,
            state=SandboxState.STARTING,
            resources=template.resources,
            started_at=now,
            end_at=now + timedelta(seconds=order.timeout_s),
            max_end_at=now + timedelta(seconds=self.settings.max_timeout_s),
            envd_access_token=self.tokens.envd(sandbox_id),
            traffic_access_token=self.tokens.traffic(sandbox_id) if private else None,
            metadata=order.metadata,
            env_vars=order.env_vars,
            options={
                **order.options,
                "timeout_s": order.timeout_s,
                **({"idempotency_key": key} if key else {}),
            },
        )
        self.creating.add(sandbox_id)
        for seen in self.onlookers:
            seen.add(sandbox_id)
        try:
            await self.store.add_sandbox(sandbox, team_limit=self.settings.team_max_sandboxes)
            try:
                await self.node.create(sandbox)
            except ServiceError as exc:
                await self.start_failed(sandbox, exc)
                raise refused(exc, order.template) from exc
            except BaseException:
                self.run(self.abandon(sandbox), f"abandon {sandbox_id}")
                raise
            started = datetime.now(UTC)
            try:
                row = await self.store.update_sandbox(
                    sandbox_id,
                    expected=frozenset({SandboxState.STARTING}),
                    state=SandboxState.RUNNING,
                    started_at=started,
                    end_at=started + timedelta(seconds=order.timeout_s),
                    max_end_at=started + timedelta(seconds=self.settings.max_timeout_s),
                )
            except BaseException:
                self.run(self.abandon(sandbox), f"abandon {sandbox_id}")
                raise
        finally:
            self.creating.discard(sandbox_id)
            has_ended = sandbox_id in self.ended_meanwhile
            self.ended_meanwhile.discard(sandbox_id)
        if row is None:
            raise WrongState(f"sandbox '{sandbox_id}' was ended while it started")
        if has_ended:
            self.run(self.end(row, SandboxEvent.LOST), f"lost {sandbox_id}")
        self.deadlines.set(sandbox_id, order.timeout_s)
        self.run(self.store.count_spawn(template.id, at=started), f"count {sandbox_id}")
        log.info("sandbox_created", extra={"sandbox_id": sandbox_id, "team_id": team.id})
        return row

    async def abandon(self, sandbox: Sandbox) -> None:
        """End a create that nobody gets, however long the store or the node cannot do their part."""
        while True:
            try:
                current = await self.store.sandbox(sandbox.id)
                if current is not None and current.state is not SandboxState.KILLING:
                    await self.end(current, SandboxEvent.KILL)
                return
            except ServiceError as exc:
                log.warning("abandon_failed", extra={"sandbox_id": sandbox.id, "detail": str(exc)})
                await asyncio.sleep(KILL_RETRY_S)

    async def start_failed(self, sandbox: Sandbox, error: ServiceError) -> None:
        log.warning(
            "sandbox_create_failed",
            extra={
                "sandbox_id": sandbox.id,
                "reason": error.reason,
                "detail": f"{error.message} ({error.detail})",
            },
        )
        if outcome_is_known(error):
            await self.store.delete_sandbox(sandbox.id)
        else:
            self.run(self.abandon(sandbox), f"undo {sandbox.id}")

    async def discard(self, creating: "asyncio.Task[Sandbox]") -> None:
        """End what a create makes whose caller has gone and has no key to ask for it again."""
        try:
            sandbox = await creating
        except ServiceError:
            return
        log.info("sandbox_discarded", extra={"sandbox_id": sandbox.id})
        await self.end(sandbox, SandboxEvent.KILL)

    # look

    async def find(
        self,
        team: Team,
        sandbox_id: SandboxId,
        *,
        states: frozenset[SandboxState] = VISIBLE,
    ) -> Sandbox:
        """A sandbox of this team, running or paused. Raises SandboxNotFound."""
        sandbox = await self.store.sandbox(sandbox_id)
        if sandbox is None or sandbox.team_id != team.id or sandbox.state not in states:
            raise SandboxNotFound(sandbox_id)
        return sandbox

    # change

    async def connect(
        self, team: Team, sandbox_id: SandboxId, timeout_s: int, *, disk_only: bool = False
    ) -> tuple[Sandbox, bool]:
        """Make it run for at least so many seconds from now; never shortens. Resumes a paused one.

        Args:
            disk_only: Start a paused one again from its disk, also if its memory was kept.
        Returns: the sandbox, and whether it was paused.
        """
        self.check_timeout(timeout_s)
        was_paused = False
        while True:
            sandbox = await self.find(team, sandbox_id)
            if sandbox.state is SandboxState.RUNNING:
                try:
                    row = await self.extend(team, sandbox_id, timeout_s, only_longer=True)
                except SandboxNotFound:
                    continue  # paused just now, or gone: looked at again
                return row, was_paused
            was_paused = True
            if sandbox.state is SandboxState.PAUSED and sandbox_id not in self.turns.under_way:
                try:
                    resumed = await self.turns.resume(sandbox, timeout_s, disk_only=disk_only)
                    return resumed, True
                except WrongState:
                    continue
            await self.turns.wait(sandbox_id)

    async def pause(self, team: Team, sandbox_id: SandboxId, *, disk_only: bool = False) -> Sandbox:
        """Let its processes stand still, or end and keep the disk.

        Raises WrongState: it does already, or is just being changed.
        """
        sandbox = await self.find(team, sandbox_id)
        if sandbox.state is not SandboxState.RUNNING:
            raise WrongState(f"Sandbox '{sandbox_id}' is already {sandbox.state.value}")
        return await self.turns.pause(sandbox, disk_only=disk_only)

    async def refresh(self, team: Team, sandbox_id: SandboxId, duration_s: int) -> Sandbox:
        return await self.extend(
            team, sandbox_id, max(duration_s, FRESH_REFRESH_S), only_longer=True
        )

    async def set_timeout(self, team: Team, sandbox_id: SandboxId, timeout_s: int) -> Sandbox:
        """Let it end so many seconds from now, sooner or later than before; 0 ends it at once."""
        return await self.extend(team, sandbox_id, timeout_s, only_longer=False)

    async def extend(
        self, team: Team, sandbox_id: SandboxId, seconds: int, *, only_longer: bool
    ) -> Sandbox:
        while True:
            sandbox = await self.find(team, sandbox_id, states=RUNNING)
            end_at = min(datetime.now(UTC) + timedelta(seconds=seconds), sandbox.max_end_at)
            if only_longer and end_at <= sandbox.end_at:
                return sandbox
            row = await self.store.update_sandbox(
                sandbox_id,
                expected=RUNNING,
                execution_id=sandbox.execution_id,
                # Somebody else may have given it more time meanwhile.
                ends_by=end_at if only_longer else None,
                end_at=end_at,
            )
            if row is not None:
                self.deadlines.set(sandbox_id, (end_at - datetime.now(UTC)).total_seconds())
                return row

    def check_timeout(self, timeout_s: int) -> None:
        if timeout_s <= 0:
            raise InvalidArgument("Timeout must be greater than 0")
        if timeout_s > self.settings.max_timeout_s:
            hours = self.settings.max_timeout_s // 3600
            raise InvalidArgument(f"Timeout cannot be greater than {hours} hours")  # wire

    # end

    async def kill(self, team: Team, sandbox_id: SandboxId) -> None:
        """Raises SandboxNotFound. Afterwards its processes have ended and its record is gone, or will be as
        soon as its node can be reached."""
        while True:
            sandbox = await self.find(team, sandbox_id)
            if await self.end(sandbox, SandboxEvent.KILL):
                return

    async def expire(self, sandbox_id: SandboxId) -> None:
        sandbox = await self.store.sandbox(sandbox_id)
        if sandbox is None or sandbox.state is not SandboxState.RUNNING:
            return
        left_s = (sandbox.end_at - datetime.now(UTC)).total_seconds()
        if left_s > 0:
            self.deadlines.set(sandbox_id, left_s)
            return
        log.info("sandbox_expired", extra={"sandbox_id": sandbox_id})
        if sandbox.options.get("auto_pause"):
            try:
                disk_only = sandbox.options.get("auto_pause_memory") is False
                await self.turns.pause(sandbox, disk_only=disk_only, ends_by=datetime.now(UTC))
                return
            except Unsupported as exc:
                log.warning(
                    "auto_pause_refused", extra={"sandbox_id": sandbox_id, "detail": str(exc)}
                )
            except ServiceError:
                # Either it is paused later, as its record says; or it runs on, and its time is over still.
                self.deadlines.set(sandbox_id, KILL_RETRY_S)
                return
        if not await self.end(sandbox, SandboxEvent.EXPIRED, ends_by=datetime.now(UTC)):
            # It was given more time just now, or it is being changed otherwise: look again.
            self.deadlines.set(sandbox_id, KILL_RETRY_S)

    async def end(
        self, sandbox: Sandbox, event: SandboxEvent, *, ends_by: datetime | None = None
    ) -> bool:
        """Carry out what the table says of an event that ends it; False when somebody else was quicker.

        Args:
            ends_by: Only if its time is over by then.
        """
        new_state, instructions = states.apply(sandbox.state, event)
        row = await self.store.update_sandbox(
            sandbox.id,
            expected=frozenset({sandbox.state}),
            execution_id=sandbox.execution_id,
            ends_by=ends_by,
            state=new_state,
        )
        if row is None:
            return False
        if Instruction.CANCEL_EXPIRY in instructions or event is SandboxEvent.EXPIRED:
            self.deadlines.cancel(sandbox.id)
        if Instruction.KILL_ON_NODE in instructions:
            await self.finish_kill(row)
        return True

    async def finish_kill(self, sandbox: Sandbox) -> None:
        """Ask the node until it has freed everything; then the record goes."""
        try:
            await self.node.kill(sandbox.id)
        except ServiceError as exc:
            log.warning(
                "kill_failed", extra={"sandbox_id": sandbox.id, "detail": f"{exc} ({exc.detail})"}
            )
            self.run(self.kill_later(sandbox), f"kill again {sandbox.id}")
            return
        _, instructions = states.apply(SandboxState.KILLING, SandboxEvent.FREED)
        if Instruction.FORGET in instructions:
            try:
                await self.store.delete_sandbox(sandbox.id)
            except ServiceError:
                self.run(self.kill_later(sandbox), f"forget again {sandbox.id}")
                raise
        log.info("sandbox_killed", extra={"sandbox_id": sandbox.id})

    async def kill_later(self, sandbox: Sandbox) -> None:
        await asyncio.sleep(KILL_RETRY_S)
        try:
            current = await self.store.sandbox(sandbox.id)
        except ServiceError:
            self.run(self.kill_later(sandbox), f"kill again {sandbox.id}")
            raise
        if current is not None and current.state is SandboxState.KILLING:
            await self.finish_kill(current)


def refused(exc: ServiceError, template: str) -> ServiceError:
    """What a create's caller is told of what the node said."""
    if exc.reason == "image_not_ready":
        return NoCapacity(
            f"template '{template}' is being built: {exc.message}",
            reason="template_not_ready",
            retryable=False,
        )
    if isinstance(exc, NotFound) and exc.reason == "image_not_found":
        return NoCapacity(
            f"template '{template}' is not built on this node yet: wait for `opene2b serve` to "
            "build it, or run `opene2b setup-base`",
            reason="template_not_ready",
            retryable=False,
        )
    if isinstance(exc, NoCapacity):
        return NoCapacity(exc.message, reason="sandbox_capacity_unavailable")
    return exc


def mismatch(key: str) -> IdempotencyMismatch:
    return IdempotencyMismatch(
        f"Idempotency-Key '{key}' was used with another request",
        reason="idempotency_request_mismatch",
        retryable=False,
    )
