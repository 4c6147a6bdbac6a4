from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PHASE_UNSPECIFIED: _ClassVar[Phase]
    PHASE_STARTING: _ClassVar[Phase]
    PHASE_RUNNING: _ClassVar[Phase]
    PHASE_ENDED: _ClassVar[Phase]
    PHASE_STOPPING: _ClassVar[Phase]
    PHASE_PAUSED: _ClassVar[Phase]
    PHASE_STORED: _ClassVar[Phase]
PHASE_UNSPECIFIED: Phase
PHASE_STARTING: Phase
PHASE_RUNNING: Phase
PHASE_ENDED: Phase
PHASE_STOPPING: Phase
PHASE_PAUSED: Phase
PHASE_STORED: Phase

class Resources(_message.Message):
    __slots__ = ("cpu_count", "memory_mib", "disk_mib", "pids")
    CPU_COUNT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_MIB_FIELD_NUMBER: _ClassVar[int]
    DISK_MIB_FIELD_NUMBER: _ClassVar[int]
    PIDS_FIELD_NUMBER: _ClassVar[int]
    cpu_count: int
    memory_mib: int
    disk_mib: int
    pids: int
    def __init__(self, cpu_count: _Optional[int] = ..., memory_mib: _Optional[int] = ..., disk_mib: _Optional[int] = ..., pids: _Optional[int] = ...) -> None: ...

class SandboxSpec(_message.Message):
    __slots__ = ("sandbox_id", "execution_id", "template_id", "image_id", "resources", "env_vars", "envd_access_token", "traffic_access_token", "mask_request_host", "allow_internet_access", "auto_resume")
    class EnvVarsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SANDBOX_ID_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_ID_FIELD_NUMBER: _ClassVar[int]
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    ENV_VARS_FIELD_NUMBER: _ClassVar[int]
    ENVD_ACCESS_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_ACCESS_TOKEN_FIELD_NUMBER: _ClassVar[int]
    MASK_REQUEST_HOST_FIELD_NUMBER: _ClassVar[int]
    ALLOW_INTERNET_ACCESS_FIELD_NUMBER: _ClassVar[int]
    AUTO_RESUME_FIELD_NUMBER: _ClassVar[int]
    sandbox_id: str
    execution_id: str
    template_id: str
    image_id: str
    resources: Resources
    env_vars: _containers.ScalarMap[str, str]
    envd_access_token: str
    traffic_access_token: str
    mask_request_host: str
    allow_internet_access: bool
    auto_resume: bool
    def __init__(self, sandbox_id: _Optional[str] = ..., execution_id: _Optional[str] = ..., template_id: _Optional[str] = ..., image_id: _Optional[str] = ..., resources: _Optional[_Union[Resources, _Mapping]] = ..., env_vars: _Optional[_Mapping[str, str]] = ..., envd_access_token: _Optional[str] = ..., traffic_access_token: _Optional[str] = ..., mask_request_host: _Optional[str] = ..., allow_internet_access: _Optional[bool] = ..., auto_resume: _Optional[bool] = ...) -> None: ...

class CreateRequest(_message.Message):
    __slots__ = ("spec",)
    SPEC_FIELD_NUMBER: _ClassVar[int]
    spec: SandboxSpec
    def __init__(self, spec: _Optional[_Union[SandboxSpec, _Mapping]] = ...) -> None: ...

class CreateResponse(_message.Message):
    __slots__ = ("start_seconds",)
    START_SECONDS_FIELD_NUMBER: _ClassVar[int]
    start_seconds: float
    def __init__(self, start_seconds: _Optional[float] = ...) -> None: ...

class KillRequest(_message.Message):
    __slots__ = ("sandbox_id",)
    SANDBOX_ID_FIELD_NUMBER: _ClassVar[int]
    sandbox_id: str
    def __init__(self, sandbox_id: _Optional[str] = ...) -> None: ...

class KillResponse(_message.Message):
    __slots__ = ("found",)
    FOUND_FIELD_NUMBER: _ClassVar[int]
    found: bool
    def __init__(self, found: _Optional[bool] = ...) -> None: ...

class PauseRequest(_message.Message):
    __slots__ = ("sandbox_id", "execution_id", "disk_only")
    SANDBOX_ID_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    DISK_ONLY_FIELD_NUMBER: _ClassVar[int]
    sandbox_id: str
    execution_id: str
    disk_only: bool
    def __init__(self, sandbox_id: _Optional[str] = ..., execution_id: _Optional[str] = ..., disk_only: _Optional[bool] = ...) -> None: ...

class PauseResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ResumeRequest(_message.Message):
    __slots__ = ("sandbox_id", "execution_id")
    SANDBOX_ID_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    sandbox_id: str
    execution_id: str
    def __init__(self, sandbox_id: _Optional[str] = ..., execution_id: _Optional[str] = ...) -> None: ...

class ResumeResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DeclineRequest(_message.Message):
    __slots__ = ("sandbox_id", "execution_id")
    SANDBOX_ID_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    sandbox_id: str
    execution_id: str
    def __init__(self, sandbox_id: _Optional[str] = ..., execution_id: _Optional[str] = ...) -> None: ...

class DeclineResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("sandboxes",)
    SANDBOXES_FIELD_NUMBER: _ClassVar[int]
    sandboxes: _containers.RepeatedCompositeFieldContainer[SandboxStatus]
    def __init__(self, sandboxes: _Optional[_Iterable[_Union[SandboxStatus, _Mapping]]] = ...) -> None: ...

class SandboxStatus(_message.Message):
    __slots__ = ("sandbox_id", "execution_id", "phase", "wanted")
    SANDBOX_ID_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    sandbox_id: str
    execution_id: str
    phase: Phase
    wanted: bool
    def __init__(self, sandbox_id: _Optional[str] = ..., execution_id: _Optional[str] = ..., phase: _Optional[_Union[Phase, str]] = ..., wanted: _Optional[bool] = ...) -> None: ...

class InfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InfoResponse(_message.Message):
    __slots__ = ("node_id", "version", "runtime", "isolation", "max_sandboxes", "images")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    ISOLATION_FIELD_NUMBER: _ClassVar[int]
    MAX_SANDBOXES_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    version: str
    runtime: str
    isolation: str
    max_sandboxes: int
    images: _containers.RepeatedCompositeFieldContainer[Image]
    def __init__(self, node_id: _Optional[str] = ..., version: _Optional[str] = ..., runtime: _Optional[str] = ..., isolation: _Optional[str] = ..., max_sandboxes: _Optional[int] = ..., images: _Optional[_Iterable[_Union[Image, _Mapping]]] = ...) -> None: ...

class Image(_message.Message):
    __slots__ = ("image_id", "status", "progress")
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    status: str
    progress: str
    def __init__(self, image_id: _Optional[str] = ..., status: _Optional[str] = ..., progress: _Optional[str] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class NodeEvent(_message.Message):
    __slots__ = ("changed",)
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    changed: SandboxStatus
    def __init__(self, changed: _Optional[_Union[SandboxStatus, _Mapping]] = ...) -> None: ...
