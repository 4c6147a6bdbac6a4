"""A node agent as the scheduler sees it: proto/node.proto over gRPC, its failures as our errors."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from grpc import aio

from opene2b.core.errors import (
    AlreadyExists,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NoCapacity,
    NotFound,
    OutOfSpace,
    ServiceError,
    Unsupported,
    WrongState,
)
from opene2b.core.ids import NodeId, SandboxId
from opene2b.core.records import Sandbox
from opene2b.gen import node_pb2, node_pb2_grpc
from opene2b.gen.node_pb2 import SandboxStatus

log = logging.getLogger(__name__)

PAUSE_MODE = "pause_mode"
"""In the options of a sandbox that is paused: what is kept of it, DISK_ONLY or WITH_MEMORY."""
DISK_ONLY, WITH_MEMORY = "filesystem", "full"
REASON_TRAILER = "opene2b-reason"
MESSAGE_LIMIT_BYTES = 16 << 20
CREATE_LIMIT_S = 40.0
"""More than the agent's own limit: its answer says more than ours would."""
CALL_LIMIT_S = 40.0

CLASSES: dict[grpc.StatusCode, type[ServiceError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: WrongState,
    grpc.StatusCode.RESOURCE_EXHAUSTED: NoCapacity,
    grpc.StatusCode.UNAVAILABLE: NoCapacity,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNIMPLEMENTED: Unsupported,
}
REASONS: dict[str, type[ServiceError]] = {"out_of_space": OutOfSpace}


class Node:
    """One agent. Calls wait for an agent that is just being started again, up to their limit."""

    def __init__(self, target: str, *, node_id: NodeId) -> None:
        """`target` as gRPC has it, e.g. `unix:/run/opene2b/node.sock`."""
        self.id = node_id
        self.channel = aio.insecure_channel(
            target,
            options=[
                ("grpc.max_send_message_length", MESSAGE_LIMIT_BYTES * 2),
                ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES * 2),
                # An agent that was killed is back within a second: look often.
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.min_reconnect_backoff_ms", 50),
                ("grpc.max_reconnect_backoff_ms", 1000),
                ("grpc.enable_http_proxy", 0),
            ],
        )
        self.stub: Any = node_pb2_grpc.NodeStub(self.channel)  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        await self.channel.close()

    async def create(self, sandbox: Sandbox) -> float:
        """Returns the seconds that the node took.

        Raises what `proto/node.proto` says. For Internal, DeadlineExceeded and a lost connection (NoCapacity with
        reason `node_unreachable`) the outcome is not known: kill it.
        """
        options = sandbox.options
        network = options.get("network") or {}
        spec = node_pb2.SandboxSpec(
            sandbox_id=sandbox.id,
            execution_id=sandbox.execution_id,
            template_id=sandbox.template_id,
            image_id=sandbox.image_id,
            resources=node_pb2.Resources(
                cpu_count=sandbox.resources.cpu_count,
                memory_mib=sandbox.resources.memory_mib,
                disk_mib=sandbox.resources.disk_mib,
                pids=sandbox.resources.pids,
            ),
            env_vars=dict(sandbox.env_vars),
            envd_access_token=sandbox.envd_access_token,
            traffic_access_token=sandbox.traffic_access_token or "",
            mask_request_host=network.get("maskRequestHost") or "",
            allow_internet_access=options.get("internet", True),
            auto_resume=bool(options.get("auto_resume")),
        )
        request = node_pb2.CreateRequest(spec=spec)
        answer = await self.call(self.stub.Create, request, CREATE_LIMIT_S)
        return float(answer.start_seconds)

    async def pause(self, sandbox: Sandbox) -> None:
        """Raises what `proto/node.proto` says."""
        request = node_pb2.PauseRequest(
            sandbox_id=sandbox.id,
            execution_id=sandbox.execution_id,
            disk_only=sandbox.options.get(PAUSE_MODE) == DISK_ONLY,
        )
        await self.call(self.stub.Pause, request, CALL_LIMIT_S)

    async def resume(self, sandbox: Sandbox) -> None:
        """Raises what `proto/node.proto` says."""
        request = node_pb2.ResumeRequest(sandbox_id=sandbox.id, execution_id=sandbox.execution_id)
        await self.call(self.stub.Resume, request, CALL_LIMIT_S)

    async def decline(self, sandbox: Sandbox) -> None:
        """Whoever waits for this paused sandbox waits in vain. Raises NotFound."""
        request = node_pb2.DeclineRequest(sandbox_id=sandbox.id, execution_id=sandbox.execution_id)
        await self.call(self.stub.Decline, request, CALL_LIMIT_S)

    async def kill(self, sandbox_id: SandboxId) -> bool:
        answer = await self.call(
            self.stub.Kill, node_pb2.KillRequest(sandbox_id=sandbox_id), CALL_LIMIT_S
        )
        return bool(answer.found)

    async def sandboxes(self) -> Sequence[SandboxStatus]:
        answer = await self.call(self.stub.List, node_pb2.ListRequest(), CALL_LIMIT_S)
        return list(answer.sandboxes)

    async def info(self) -> node_pb2.InfoResponse:
        answer: node_pb2.InfoResponse = await self.call(
            self.stub.Info, node_pb2.InfoRequest(), CALL_LIMIT_S
        )
        return answer

    async def watch(self, subscribed: asyncio.Event) -> AsyncIterator[SandboxStatus]:
        """Events until the connection is lost (raises NoCapacity). Sets `subscribed` once none can be missed."""
        call = self.stub.Watch(node_pb2.WatchRequest(), wait_for_ready=True)
        try:
            await call.initial_metadata()
            subscribed.set()
            async for event in call:
                yield event.changed
        except aio.AioRpcError as exc:
            raise translate(exc) from exc
        finally:
            call.cancel()
        raise NoCapacity("the node agent ended its events", reason="node_unreachable")

    async def call(self, method: Any, request: Any, limit_s: float) -> Any:
        try:
            return await method(request, timeout=limit_s, wait_for_ready=True)
        except aio.AioRpcError as exc:
            raise translate(exc) from exc


def translate(exc: aio.AioRpcError) -> ServiceError:
    reason = next(
        (str(value) for key, value in exc.trailing_metadata() or () if key == REASON_TRAILER), None
    )
    code = exc.code()
    message = exc.details() or code.name.lower()
    if code is grpc.StatusCode.UNAVAILABLE and reason is None:
        return NoCapacity(
            "the node agent cannot be reached", reason="node_unreachable", detail=message
        )
    kind = REASONS.get(reason or "") or CLASSES.get(code, Internal)
    return kind(message, reason=reason, detail=f"grpc {code.name}")


def outcome_is_known(error: ServiceError) -> bool:
    """Whether a failed create certainly left nothing on the node."""
    if isinstance(error, Internal | DeadlineExceeded):
        return False
    return error.reason != "node_unreachable"
