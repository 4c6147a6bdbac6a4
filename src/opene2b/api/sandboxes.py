"""Endpoints of sandboxes. Source: E2B REST contract, /sandboxes and /v2/sandboxes."""

import asyncio
import hashlib
from datetime import datetime
from urllib.parse import parse_qsl, unquote

import msgspec
from starlette.responses import Response

from opene2b import ENVD_VERSION
from opene2b.api import networks, paging, wire
from opene2b.api.call import Call, ClientGone, Json, empty
from opene2b.core.errors import InvalidArgument, NotFound, PermissionDenied, WrongState
from opene2b.core.ids import TemplateId
from opene2b.core.records import Sandbox
from opene2b.core.states import SandboxState
from opene2b.scheduler import templates
from opene2b.scheduler.node import PAUSE_MODE
from opene2b.scheduler.sandboxes import RUNNING, STANDING, Order
from opene2b.store.protocol import SandboxQuery

CREATE_TIMEOUT_S = 300
OLD_CREATE_TIMEOUT_S = 15
CLIENT_ID = "opene2b"
"""The contract's deprecated clientID: any constant."""
UNPAGED_LIMIT = 5000
STATES = {"running": RUNNING, "paused": STANDING}
"""The contract's states -> ours."""

VARIABLE_LIMIT_BYTES = 128 << 10
"""The kernel's limit of one `NAME=value` (MAX_ARG_STRLEN): a longer one would fail every command."""
VARIABLES_LIMIT_BYTES = 1 << 20
"""Half of what the kernel takes for all arguments and variables of a program."""
METADATA_LIMIT_BYTES = 1 << 20
DEPTH_LIMIT = 64
FILTER_LIMIT = 50
"""Pairs of a metadata filter: each is a join, and SQLite takes 64 of them."""


async def create(call: Call) -> Response:
    return await create_with(call, CREATE_TIMEOUT_S)


async def create_old(call: Call) -> Response:
    return await create_with(call, OLD_CREATE_TIMEOUT_S)


async def create_with(call: Call, default_timeout_s: int) -> Response:
    key = call.idempotency_key()
    order = ordered(await call.body(wire.NewSandbox), default_timeout_s)
    scheduler = call.parts.scheduler
    making = asyncio.create_task(
        scheduler.create(call.team, order, key=key, digest=digest(order) if key else "")
    )
    leaving = asyncio.create_task(call.gone())
    try:
        await asyncio.wait({making, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not making.done():
            raise ClientGone
        return Json(view(await making, call.parts.domain), status_code=201)
    finally:
        leaving.cancel()
        if not making.done() and key is None:
            # Nobody knows its id, so nobody could ever end it. With a key the client may ask again.
            scheduler.run(scheduler.discard(making), "discard")


def ordered(body: wire.NewSandbox, default_timeout_s: int) -> Order:
    """Everything about the request that needs no records. Raises InvalidArgument, Unsupported."""
    auto_resume = body.auto_resume is not None and bool(body.auto_resume.enabled)
    if body.auto_pause_memory is False and not body.auto_pause:
        raise InvalidArgument("autoPauseMemory needs autoPause")
    if body.auto_pause_memory is False and auto_resume:
        raise InvalidArgument("autoPauseMemory false cannot be combined with autoResume")
    for name, value in (
        ("volumeMounts", body.volume_mounts),
        ("iam", (body.iam or {}).get("tokens")),
    ):
        if value:
            raise networks.not_yet(name)
    for name, free in (("mcp", body.mcp), ("iam", body.iam), ("network", body.network)):
        check_depth(name, msgspec.to_builtins(free) if name == "network" else free)
    plan = networks.plan(body.network, body.allow_internet_access)
    options = {
        "internet": plan.internet,
        "private_ingress": plan.private_ingress,
        "allow_internet_access": body.allow_internet_access,
        "network": msgspec.to_builtins(body.network) if body.network else None,
        "mcp": body.mcp,
        "auto_pause": body.auto_pause or None,
        "auto_pause_memory": body.auto_pause_memory,
        "auto_resume": auto_resume or None,
    }
    return Order(
        template=body.template_id,
        timeout_s=default_timeout_s if body.timeout is None else body.timeout,
        metadata=checked_metadata(body.metadata or {}),
        env_vars=checked_variables(body.env_vars or {}),
        options={name: value for name, value in options.items() if value is not None},
    )


def check_depth(name: str, value: object) -> None:
    """What has no schema is kept as it is, by layers that go down into it."""
    level = [value]
    for _ in range(DEPTH_LIMIT):
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise InvalidArgument(f"validation error: {name} is nested deeper than {DEPTH_LIMIT} levels")


def checked_metadata(pairs: dict[str, str]) -> dict[str, str]:
    if sum(len(name) + len(value) for name, value in pairs.items()) > METADATA_LIMIT_BYTES:
        raise InvalidArgument(f"metadata is larger than {METADATA_LIMIT_BYTES} bytes")
    if any("\0" in name or "\0" in value for name, value in pairs.items()):
        raise InvalidArgument("metadata cannot contain NUL")
    return pairs


def checked_variables(pairs: dict[str, str]) -> dict[str, str]:
    total = 0
    for name, value in pairs.items():
        if not name or "=" in name or "\0" in name:
            raise InvalidArgument(f"envVars: '{name[:100]}' cannot be the name of a variable")
        if "\0" in value:
            raise InvalidArgument(f"envVars: the value of '{name[:100]}' contains NUL")
        size = len(name.encode()) + len(value.encode()) + 2
        if size > VARIABLE_LIMIT_BYTES:
            raise InvalidArgument(
                f"envVars: '{name[:100]}' is longer than {VARIABLE_LIMIT_BYTES} bytes"
            )
        total += size
    if total > VARIABLES_LIMIT_BYTES:
        raise InvalidArgument(f"envVars are longer than {VARIABLES_LIMIT_BYTES} bytes together")
    return pairs


def digest(order: Order) -> str:
    """The same for requests that mean the same, whatever the order of their properties."""
    return hashlib.sha256(msgspec.json.encode(order, order="deterministic")).hexdigest()


async def connect(call: Call) -> Response:
    body = await call.body(wire.ConnectSandbox, default=wire.ConnectSandbox())
    timeout_s = CREATE_TIMEOUT_S if body.timeout is None else body.timeout
    sandbox, was_paused = await call.parts.scheduler.connect(
        call.team, call.sandbox_id(), timeout_s, disk_only=body.memory is False
    )
    # wire: 201 says that it was paused
    return Json(view(sandbox, call.parts.domain), status_code=201 if was_paused else 200)


async def resume(call: Call) -> Response:
    """The oldest form: only of what is paused."""
    body = await call.body(wire.ResumeSandbox, default=wire.ResumeSandbox())
    scheduler, sandbox_id = call.parts.scheduler, call.sandbox_id()
    if (await scheduler.find(call.team, sandbox_id)).state is SandboxState.RUNNING:
        raise WrongState(f"Sandbox '{sandbox_id}' is already running")
    timeout_s = OLD_CREATE_TIMEOUT_S if body.timeout is None else body.timeout
    sandbox, _ = await scheduler.connect(call.team, sandbox_id, timeout_s)
    return Json(view(sandbox, call.parts.domain), status_code=201)


async def pause(call: Call) -> Response:
    body = await call.body(wire.PauseSandbox, default=wire.PauseSandbox())
    disk_only = body.memory is False
    await call.parts.scheduler.pause(call.team, call.sandbox_id(), disk_only=disk_only)
    return empty()


async def get(call: Call) -> Response:
    sandbox = await call.parts.scheduler.find(call.team, call.sandbox_id())
    return Json(detail(sandbox, call.parts.domain))


async def kill(call: Call) -> Response:
    await call.parts.scheduler.kill(call.team, call.sandbox_id())
    return empty()


async def set_timeout(call: Call) -> Response:
    body = await call.body(wire.SandboxTimeout)
    await call.parts.scheduler.set_timeout(call.team, call.sandbox_id(), body.timeout)
    return empty()


async def refresh(call: Call) -> Response:
    body = await call.body(wire.SandboxRefresh, default=wire.SandboxRefresh())
    await call.parts.scheduler.refresh(call.team, call.sandbox_id(), body.duration or 0)
    return empty()


async def list_page(call: Call) -> Response:
    """One page, chosen by the query."""
    states = parse_states(call.query("state"))
    ascending = parse_order(call.query("order"))
    limit = paging.parse_limit(call.query("limit"))
    token = call.query("nextToken")
    cursor = paging.decode(token, ascending=ascending) if token else None
    started_after = parse_moment(call.query("startedAfter"))
    metadata = parse_metadata(call.query("metadata"))
    template_id, is_known = await parse_template(call)
    store = call.parts.store
    headers = {}
    if SandboxState.RUNNING in states:
        headers["X-Total-Running"] = str(
            await store.count_sandboxes(call.team.id, frozenset({SandboxState.RUNNING}))
        )
    if not states or not is_known:
        return Json([], headers=headers)
    rows = list(
        await store.query_sandboxes(
            SandboxQuery(
                team_id=call.team.id,
                states=states,
                metadata=metadata,
                template_id=template_id,
                started_after=started_after,
                ascending=ascending,
                after=(cursor.moment, cursor.id) if cursor else None,
                limit=limit,
            )
        )
    )
    if len(rows) > limit:
        last = rows[limit - 1]
        headers[paging.NEXT] = paging.encode(paging.Cursor(last.started_at, last.id, ascending))
    return Json([listed(row) for row in rows[:limit]], headers=headers)


async def list_all(call: Call) -> Response:
    """The older form: every running sandbox at once."""
    rows = await call.parts.store.query_sandboxes(
        SandboxQuery(
            team_id=call.team.id,
            states=STATES["running"],
            metadata=parse_metadata(call.query("metadata")),
            limit=UNPAGED_LIMIT,
        )
    )
    if len(rows) > UNPAGED_LIMIT:
        raise InvalidArgument(
            f"there are more than {UNPAGED_LIMIT} sandboxes: use GET /v2/sandboxes, which has pages"
        )
    return Json([listed(row) for row in rows])


# queries


def parse_states(text: str | None) -> frozenset[SandboxState]:
    """Comma separated; default both."""
    names = STATES.keys() if text is None else [name.strip() for name in text.split(",")]
    chosen: frozenset[SandboxState] = frozenset()
    for name in names:
        if name not in STATES:
            raise InvalidArgument(
                f"validation error: state '{name[:40]}' is neither running nor paused"
            )
        chosen |= STATES[name]
    return chosen


def parse_order(text: str | None) -> bool:
    """Whether ascending."""
    if text not in {None, "asc", "desc"}:
        raise InvalidArgument("validation error: order must be asc or desc")
    return text == "asc"


def parse_moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        # An unencoded '+' of the offset arrives as a space.
        return paging.parse_moment(text.replace(" ", "+"))
    except ValueError as exc:
        raise InvalidArgument(f"validation error: startedAfter: {exc}") from exc


def parse_metadata(text: str | None) -> dict[str, str]:
    """A form inside the query, whose names and values are percent-encoded once more."""
    if not text:
        return {}
    try:
        pairs = parse_qsl(
            text, keep_blank_values=True, strict_parsing=True, max_num_fields=FILTER_LIMIT
        )
    except ValueError as exc:
        raise InvalidArgument(f"validation error: metadata: {exc}") from exc
    return {unquote(name): unquote(value) for name, value in pairs}


async def parse_template(call: Call) -> tuple[TemplateId | None, bool]:
    """(the template that the page is about or None for any, whether it can have sandboxes at all)."""
    text = call.query("template")
    if text is None:
        return None, True
    try:
        return (await templates.resolve(call.parts.store, text, call.team)).id, True
    except (NotFound, PermissionDenied):
        return None, False


# answers


def view(sandbox: Sandbox, domain: str) -> wire.Sandbox:
    return wire.Sandbox(
        template_id=sandbox.template_id,
        sandbox_id=sandbox.id,
        client_id=CLIENT_ID,
        envd_version=ENVD_VERSION,
        envd_access_token=sandbox.envd_access_token,
        alias=sandbox.alias,
        traffic_access_token=sandbox.traffic_access_token,
        domain=domain,
    )


def listed(sandbox: Sandbox) -> wire.ListedSandbox:
    return wire.ListedSandbox(
        template_id=sandbox.template_id,
        sandbox_id=sandbox.id,
        client_id=CLIENT_ID,
        started_at=sandbox.started_at,
        end_at=sandbox.end_at,
        cpu_count=sandbox.resources.cpu_count,
        memory_mib=sandbox.resources.memory_mib,
        disk_mib=sandbox.resources.disk_mib,
        state="running" if sandbox.state is SandboxState.RUNNING else "paused",
        envd_version=ENVD_VERSION,
        alias=sandbox.alias,
        metadata=dict(sandbox.metadata),
    )


def detail(sandbox: Sandbox, domain: str) -> wire.SandboxDetail:
    head = listed(sandbox)
    network = sandbox.options.get("network")
    return wire.SandboxDetail(
        **{name: getattr(head, name) for name in head.__struct_fields__},
        envd_access_token=sandbox.envd_access_token,
        domain=domain,
        allow_internet_access=sandbox.options.get("allow_internet_access"),
        network=msgspec.convert(network, wire.Network) if network else None,
        lifecycle=wire.Lifecycle(
            auto_resume=bool(sandbox.options.get("auto_resume")),
            on_timeout="pause" if sandbox.options.get("auto_pause") else "kill",
        ),
        pause_mode=sandbox.options.get(PAUSE_MODE) if sandbox.state in STANDING else None,
    )
