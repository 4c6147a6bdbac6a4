"""The agent over gRPC (proto/node.proto), on a unix socket that root and one group may connect to."""

import contextlib
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import grpc
from grpc import aio

from opene2b import __version__
from opene2b.core.errors import Internal, InvalidArgument, ServiceError, WrongState
from opene2b.core.ids import SANDBOX_ID, ExecutionId, ImageId, SandboxId
from opene2b.core.resources import Resources
from opene2b.gen import node_pb2, node_pb2_grpc
from opene2b.node import images, sockets
from opene2b.node.agent import Agent
from opene2b.node.events import Status, TooSlow
from opene2b.node.table import Order, Phase

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

REASON_TRAILER = "opene2b-reason"
SERVICE = "opene2b.node.v1.Node"
MESSAGE_LIMIT_BYTES = 16 << 20
"""Environment variables of a sandbox may be megabytes."""
STOP_GRACE_S = 2.0
EXECUTION_ID = re.compile(r"[A-Za-z0-9-]{1,64}\Z")

STATUS_OF_RPC_CODE = {
    "invalid_argument": grpc.StatusCode.INVALID_ARGUMENT,
    "unauthenticated": grpc.StatusCode.UNAUTHENTICATED,
    "permission_denied": grpc.StatusCode.PERMISSION_DENIED,
    "not_found": grpc.StatusCode.NOT_FOUND,
    "already_exists": grpc.StatusCode.ALREADY_EXISTS,
    "failed_precondition": grpc.StatusCode.FAILED_PRECONDITION,
    "resource_exhausted": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "internal": grpc.StatusCode.INTERNAL,
    "unimplemented": grpc.StatusCode.UNIMPLEMENTED,
    "unavailable": grpc.StatusCode.UNAVAILABLE,
    "deadline_exceeded": grpc.StatusCode.DEADLINE_EXCEEDED,
}
STATUS_OF_REASON = {
    "node_full": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "node_closing": grpc.StatusCode.UNAVAILABLE,
    "watch_too_slow": grpc.StatusCode.UNAVAILABLE,
}
"""Where gRPC tells apart what a class of ours does not."""

PHASES = {
    Phase.STARTING: node_pb2.PHASE_STARTING,
    Phase.RUNNING: node_pb2.PHASE_RUNNING,
    Phase.ENDED: node_pb2.PHASE_ENDED,
    Phase.STOPPING: node_pb2.PHASE_STOPPING,
    Phase.PAUSED: node_pb2.PHASE_PAUSED,
    Phase.STORED: node_pb2.PHASE_STORED,
}


class NodeService(node_pb2_grpc.NodeServicer):
    """Wire to words and back; the decisions are the agent's."""

    def __init__(self, agent: Agent, *, node_id: str = "local") -> None:
        self.agent = agent
        self.node_id = node_id

    async def Create(  # noqa: N802 - gRPC's name
        self, request: node_pb2.CreateRequest, context: Any
    ) -> node_pb2.CreateResponse:
        async def create() -> float:
            return await self.agent.create(parse_order(request.spec))

        return node_pb2.CreateResponse(start_seconds=await answer(context, create()))

    async def Kill(  # noqa: N802
        self, request: node_pb2.KillRequest, context: Any
    ) -> node_pb2.KillResponse:
        found = await answer(context, self.agent.kill(SandboxId(request.sandbox_id)))
        return node_pb2.KillResponse(found=found)

    async def Pause(  # noqa: N802
        self, request: node_pb2.PauseRequest, context: Any
    ) -> node_pb2.PauseResponse:
        await answer(
            context,
            self.agent.turns.pause(
                SandboxId(request.sandbox_id),
                ExecutionId(request.execution_id),
                disk_only=request.disk_only,
            ),
        )
        return node_pb2.PauseResponse()

    async def Resume(  # noqa: N802
        self, request: node_pb2.ResumeRequest, context: Any
    ) -> node_pb2.ResumeResponse:
        await answer(
            context,
            self.agent.turns.resume(
                SandboxId(request.sandbox_id), ExecutionId(request.execution_id)
            ),
        )
        return node_pb2.ResumeResponse()

    async def Decline(  # noqa: N802
        self, request: node_pb2.DeclineRequest, context: Any
    ) -> node_pb2.DeclineResponse:
        async def decline() -> None:
            self.agent.turns.decline(
                SandboxId(request.sandbox_id), ExecutionId(request.execution_id)
            )

        await answer(context, decline())
        return node_pb2.DeclineResponse()

    async def List(  # noqa: N802
        self, request: node_pb2.ListRequest, context: Any
    ) -> node_pb2.ListResponse:
        return node_pb2.ListResponse(sandboxes=[wire(status) for status in self.agent.statuses()])

    async def Info(  # noqa: N802
        self, request: node_pb2.InfoRequest, context: Any
    ) -> node_pb2.InfoResponse:
        return node_pb2.InfoResponse(
            node_id=self.node_id,
            version=__version__,
            runtime=self.agent.runtime.name,
            isolation=self.agent.runtime.capabilities.isolation.value,
            max_sandboxes=self.agent.places.capacity,
            images=[
                node_pb2.Image(
                    image_id=image.image_id,
                    status="ready" if image.is_ready else "building",
                    progress=image.progress,
                )
                for image in images.on_disk(self.agent.home)
            ],
        )

    async def Watch(  # noqa: N802
        self, request: node_pb2.WatchRequest, context: Any
    ) -> AsyncIterator[node_pb2.NodeEvent]:
        """Sends its initial metadata once it is subscribed: what a client lists after that it cannot have missed."""
        with self.agent.events.subscribe() as subscription:
            await context.send_initial_metadata(())
            while True:
                try:
                    status = await subscription.next()
                except TooSlow:
                    await abort(
                        context,
                        WrongState(
                            "the subscriber missed events: subscribe again, then list",
                            reason="watch_too_slow",
                        ),
                    )
                yield node_pb2.NodeEvent(changed=wire(status))


async def answer(context: Any, work: Awaitable[Answer]) -> Answer:
    """The result, or the end of the call with the status and the reason of what it raised."""
    try:
        return await work
    except ServiceError as exc:
        await abort(context, exc)
    except Exception:
        # Its text may tell about the host; the log has it.
        log.exception("node_call_failed")
        await abort(context, Internal("internal error of the node agent", reason="node_internal"))


async def abort(context: Any, exc: ServiceError) -> NoReturn:
    trailers = ((REASON_TRAILER, exc.reason),) if exc.reason else ()
    await context.abort(status_of(exc), exc.message, trailers)
    raise AssertionError("abort returned")


def status_of(exc: ServiceError) -> grpc.StatusCode:
    return STATUS_OF_REASON.get(exc.reason or "") or STATUS_OF_RPC_CODE[exc.rpc_code]


def parse_order(spec: node_pb2.SandboxSpec) -> Order:
    """Raises InvalidArgument. The ids become names of directories, so nothing else may pass."""
    if not SANDBOX_ID.match(spec.sandbox_id) or len(spec.sandbox_id) > 64:
        raise InvalidArgument(f"sandbox id {spec.sandbox_id!r} must match {SANDBOX_ID.pattern}")
    if not EXECUTION_ID.match(spec.execution_id):
        raise InvalidArgument(f"execution id {spec.execution_id!r} must be a UUID")
    given = spec.resources
    default = Resources()
    return Order(
        sandbox_id=SandboxId(spec.sandbox_id),
        execution_id=ExecutionId(spec.execution_id),
        template_id=spec.template_id,
        image_id=ImageId(spec.image_id),
        resources=Resources(
            # Proto3: an older control plane's absent field reads 0.
            cpu_count=given.cpu_count or default.cpu_count,
            memory_mib=given.memory_mib or default.memory_mib,
            disk_mib=given.disk_mib or default.disk_mib,
            pids=given.pids or default.pids,
        ),
        env_vars=dict(spec.env_vars),
        envd_access_token=spec.envd_access_token or None,
        traffic_access_token=spec.traffic_access_token or None,
        mask_request_host=spec.mask_request_host or None,
        allow_internet_access=spec.allow_internet_access,
        auto_resume=spec.auto_resume,
    )


def wire(status: Status) -> node_pb2.SandboxStatus:
    return node_pb2.SandboxStatus(
        sandbox_id=status.sandbox_id,
        execution_id=status.execution_id,
        phase=PHASES[status.phase],
        wanted=status.is_wanted,
    )


async def check_health(request: bytes, context: Any) -> bytes:
    """grpc.health.v1.Health/Check, written by hand: its messages have one field each.

    Source: grpc/grpc-proto, grpc/health/v1/health.proto (request: string service = 1; response: enum status = 1).
    """
    name = SERVICE.encode()
    if request not in {b"", b"\x0a\x00", b"\x0a" + bytes([len(name)]) + name}:
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
    return b"\x08\x01"


@contextlib.asynccontextmanager
async def serve(
    agent: Agent, path: Path, *, control_gid: int | None, node_id: str = "local"
) -> AsyncIterator[None]:
    """Serve until the block ends. Call it holding the agent's lock: a socket found there is a dead agent's.

    Args:
        control_gid: Group that may connect, beside root; None: the own user only.
    """
    server = aio.server(
        options=(
            ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
            ("grpc.so_reuseport", 0),
        )
    )
    # Generated without types.
    register: Callable[[NodeService, aio.Server], None] = node_pb2_grpc.add_NodeServicer_to_server
    register(NodeService(agent, node_id=node_id), server)
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "grpc.health.v1.Health",
                {"Check": grpc.unary_unary_rpc_method_handler(check_health)},
            ),
        )
    )
    with sockets.place(path, control_gid):
        server.add_insecure_port(f"unix:{path}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(STOP_GRACE_S)
        sockets.remove(path)
