"""What crosses the wire: schemas of requests and answers, by their names in the E2B REST contract.

Unknown properties of a request are passed over: newer clients send more than we know.
"""

from datetime import datetime
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType, field

SECONDS_LIMIT = 2**31 - 1

Seconds = Annotated[int, Meta(le=SECONDS_LIMIT)]
Port = Annotated[int, Meta(ge=1, le=65535)]


class Error(Struct, omit_defaults=True):
    """Every error. Clients branch on `code`, so it always equals the HTTP status."""

    code: int
    message: str
    error_code: str | None = None


# requests


class AutoResume(Struct):
    enabled: bool = False


class Network(Struct, rename="camel", omit_defaults=True):
    """SandboxNetworkConfig. `api/networks.py` has its rules."""

    allow_public_traffic: bool | None = None
    allow_out: list[str] | None = None
    deny_out: list[str] | None = None
    dns_servers: list[str] | None = None
    egress_proxy: dict[str, Any] | None = None
    mask_request_host: str | None = None
    https_ports: list[Port] | None = None
    rules: dict[str, Any] | None = None


class NewSandbox(Struct):
    """Body of both creates. `secure` of the older form is passed over: every sandbox is secured."""

    template_id: str = field(name="templateID")
    timeout: Seconds | None = None
    """Seconds; default 300, or 15 in the older form."""
    auto_pause: bool | None = field(name="autoPause", default=None)
    auto_pause_memory: bool | None = field(name="autoPauseMemory", default=None)
    auto_resume: AutoResume | None = field(name="autoResume", default=None)
    allow_internet_access: bool | None = None
    network: Network | None = None
    metadata: dict[str, str] | None = None
    env_vars: dict[str, str] | None = field(name="envVars", default=None)
    mcp: dict[str, Any] | None = None
    iam: dict[str, Any] | None = None
    volume_mounts: list[dict[str, Any]] | None = field(name="volumeMounts", default=None)


class ConnectSandbox(Struct):
    timeout: Seconds | None = None
    """Seconds from now; default 300. Never shortens."""
    memory: bool | None = None


class ResumeSandbox(Struct):
    timeout: Seconds | None = None
    """Seconds from now; default 15."""


class PauseSandbox(Struct):
    memory: bool | None = None
    """Whether processes go on afterwards; default true."""


class SandboxTimeout(Struct):
    timeout: Annotated[int, Meta(ge=0, le=SECONDS_LIMIT)]
    """Seconds from now."""


class SandboxRefresh(Struct):
    duration: Annotated[int, Meta(ge=0, le=3600)] | None = None


# answers


class Sandbox(Struct, omit_defaults=True):
    template_id: str = field(name="templateID")
    sandbox_id: str = field(name="sandboxID")
    client_id: str = field(name="clientID")
    """Deprecated in the contract, and required there: a constant."""
    envd_version: str = field(name="envdVersion")
    envd_access_token: str = field(name="envdAccessToken")
    alias: str | None = None
    traffic_access_token: str | None = field(name="trafficAccessToken", default=None)
    domain: str | None = None


class ListedSandbox(Struct, omit_defaults=True):
    template_id: str = field(name="templateID")
    sandbox_id: str = field(name="sandboxID")
    client_id: str = field(name="clientID")
    started_at: datetime = field(name="startedAt")
    end_at: datetime = field(name="endAt")
    cpu_count: int = field(name="cpuCount")
    memory_mib: int = field(name="memoryMB")
    disk_mib: int = field(name="diskSizeMB")
    state: str
    """`running` or `paused`."""
    envd_version: str = field(name="envdVersion")
    alias: str | None = None
    metadata: dict[str, str] | UnsetType = UNSET


class Lifecycle(Struct, rename="camel"):
    auto_resume: bool
    on_timeout: str
    """`kill` or `pause`."""


class SandboxDetail(ListedSandbox, omit_defaults=True):
    envd_access_token: str | None = field(name="envdAccessToken", default=None)
    domain: str | None = None
    allow_internet_access: bool | UnsetType | None = field(
        name="allowInternetAccess", default=UNSET
    )
    """As the create request said; null where it said nothing."""
    network: Network | None = None
    lifecycle: Lifecycle | None = None
    pause_mode: str | None = field(name="pauseMode", default=None)
    """While it is paused: `full`, its processes go on when it is resumed; `filesystem`, its disk is all that is kept."""


class Template(Struct, omit_defaults=True):
    template_id: str = field(name="templateID")
    build_id: str = field(name="buildID")
    cpu_count: int = field(name="cpuCount")
    memory_mib: int = field(name="memoryMB")
    disk_mib: int = field(name="diskSizeMB")
    public: bool
    aliases: list[str]
    names: list[str]
    """`namespace/alias`."""
    created_at: datetime = field(name="createdAt")
    updated_at: datetime = field(name="updatedAt")
    created_by: dict[str, str] | None = field(name="createdBy")
    last_spawned_at: datetime | None = field(name="lastSpawnedAt")
    spawn_count: int = field(name="spawnCount")
    build_count: int = field(name="buildCount")
    envd_version: str = field(name="envdVersion")
    build_status: str = field(name="buildStatus")
    is_default: bool = field(name="isDefault", default=False)


class TemplateBuild(Struct, omit_defaults=True):
    build_id: str = field(name="buildID")
    status: str
    created_at: datetime = field(name="createdAt")
    updated_at: datetime = field(name="updatedAt")
    cpu_count: int = field(name="cpuCount")
    memory_mib: int = field(name="memoryMB")
    disk_mib: int = field(name="diskSizeMB")
    envd_version: str = field(name="envdVersion")


class TemplateWithBuilds(Template, omit_defaults=True):
    builds: list[TemplateBuild] = field(default_factory=list)


class TemplateAlias(Struct):
    template_id: str = field(name="templateID")
    public: bool
