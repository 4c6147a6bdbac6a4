"""The routes of envd: RPC services and REST, behind one check of the token.

Source: E2B envd contract, REST and RPC.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from opene2b.connect import server
from opene2b.connect.http import Request, Response
from opene2b.connect.protobuf import Schema
from opene2b.connect.server import MethodSpec
from opene2b.core.errors import Internal, InvalidArgument, NotFound, ServiceError, Unauthenticated
from opene2b.envd import auth, compose, environment, files
from opene2b.envd.config import Config
from opene2b.envd.filesystem import rpc as filesystem
from opene2b.envd.filesystem.controller import Controller as Filesystem
from opene2b.envd.filesystem.owners import OwnerNames
from opene2b.envd.filesystem.watch_rpc import WatchService
from opene2b.envd.metrics import Meter
from opene2b.envd.process.controller import Controller as Processes
from opene2b.envd.process.rpc import ProcessService
from opene2b.envd.requests import Requests
from opene2b.envd.users import Users
from opene2b.gen import envd_schema

log = logging.getLogger(__name__)

SCHEMA = Schema(envd_schema.MESSAGES, envd_schema.ENUMS, envd_schema.METHODS)
VERSION_HEADER = "X-Envd-Version"
MAX_INIT_BYTES = 32 << 20
CORS = (
    ("Access-Control-Allow-Origin", "*"),
    (
        "Access-Control-Expose-Headers",
        "Location, Cache-Control, X-Content-Type-Options, Grpc-Status, Grpc-Message, "
        "Grpc-Status-Details-Bin, Content-Disposition, Content-Range, ETag",
    ),
)
PREFLIGHT = (
    *CORS,
    ("Access-Control-Allow-Methods", "HEAD, GET, POST, PUT, PATCH, DELETE"),
    ("Access-Control-Allow-Headers", "*"),
    ("Access-Control-Max-Age", "7200"),
)


class InitRequest(msgspec.Struct, kw_only=True, rename="camel"):
    """POST /init: what a control plane tells an envd that was not forked with the knowledge."""

    env_vars: dict[str, str] | None = None
    access_token: str | None = None
    timestamp: str | None = None
    default_user: str | None = None
    default_workdir: str | None = None


class App:
    def __init__(self, config: Config, *, version: str, users: Users | None = None) -> None:
        self.config = config
        self.version = version
        self.users = users or Users()
        names = OwnerNames(users=self.users.user_file, groups=self.users.group_file)
        self.requests = Requests(config, self.users, Filesystem(names))
        self.processes = Processes(config)
        self.meter = Meter(config)
        self.methods: Mapping[str, MethodSpec] = {
            **ProcessService(self.processes, self.requests).methods(),
            **filesystem.methods(self.requests),
            **WatchService(self.requests).methods(),
        }
        self.routes: dict[tuple[str, str], Callable[[Request], Awaitable[Response]]] = {
            ("GET", "/health"): self.health,
            ("GET", "/metrics"): self.metrics,
            ("GET", "/envs"): self.envs,
            ("POST", "/init"): self.init,
            ("GET", "/files"): self.download,
            ("POST", "/files"): self.upload,
            ("POST", "/files/compose"): self.compose,
        }
        self.paths = {path for _, path in self.routes}

    async def __call__(self, request: Request) -> Response:
        response = await self.route(request)
        return Response(response.status, [*response.headers, *CORS], response.body)

    async def route(self, request: Request) -> Response:
        if request.method == "OPTIONS":
            return Response(204, PREFLIGHT)
        path = request.path
        try:
            if (request.method, path) != ("POST", "/init"):
                auth.check(request, self.config.access_token)
            method = "GET" if request.method == "HEAD" else request.method
            handler = self.routes.get((method, path))
            if handler is not None:
                return await handler(request)
            if path in self.paths:
                return failure(405, f"{request.method} is not for {path}")
            if path.count("/") == 2 and "." in path:
                return await server.serve(self.methods, request, SCHEMA)
            raise NotFound(f"there is no route {path!a}")
        except ServiceError as exc:
            if isinstance(exc, Internal):
                log.error("request_failed %s: %s (%s)", path, exc.message, exc.detail)
            return failure(exc.http_status, exc.message)
        except (ConnectionResetError, asyncio.CancelledError):
            raise
        except Exception:
            log.exception("request_failed %s", path)
            return failure(500, server.INTERNAL_MESSAGE)

    async def health(self, request: Request) -> Response:
        return Response(204)

    async def metrics(self, request: Request) -> Response:
        return as_json(self.meter.read(), ("Cache-Control", "no-store"))

    async def envs(self, request: Request) -> Response:
        known = {**environment.marks(self.config), **self.config.env_vars}
        return as_json(known, ("Cache-Control", "no-store"))

    async def download(self, request: Request) -> Response:
        return await files.download(request, self.requests)

    async def upload(self, request: Request) -> Response:
        return await files.upload(request, self.requests)

    async def compose(self, request: Request) -> Response:
        return await compose.compose(request, self.requests)

    async def init(self, request: Request) -> Response:
        """Take on what the control plane says. The token, once set, is needed to change anything."""
        raw = await request.read(limit=MAX_INIT_BYTES)
        try:
            message = msgspec.json.decode(raw or b"{}", type=InitRequest)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise InvalidArgument(f"the body does not fit: {exc}") from exc
        current = self.config.access_token
        if current is not None:
            given = request.headers.get("x-access-token") or message.access_token or ""
            if not auth.same(given, current):
                raise Unauthenticated(auth.REFUSAL)
        if message.access_token:
            self.config.access_token = message.access_token
        if message.env_vars is not None:
            self.config.env_vars = message.env_vars
        if message.default_user:
            self.config.default_user = message.default_user
        if message.default_workdir is not None:
            self.config.default_workdir = message.default_workdir or None
        return Response(204, [(VERSION_HEADER, self.version), ("Cache-Control", "no-store")])


def as_json(value: object, *headers: tuple[str, str]) -> Response:
    return Response(
        200, [("Content-Type", "application/json"), *headers], msgspec.json.encode(value)
    )


def failure(status: int, message: str) -> Response:
    return Response(
        status,
        [("Content-Type", "application/json")],
        msgspec.json.encode({"code": status, "message": message}),
    )
