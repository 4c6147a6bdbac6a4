"""What can go wrong, once for all protocols.

    ServiceError
    |- InvalidArgument      400  invalid_argument
    |- Unauthenticated      401  unauthenticated
    |- PermissionDenied     403  permission_denied
    |- NotFound             404  not_found
    |  |- SandboxNotFound, TemplateNotFound, PathNotFound
    |- AlreadyExists        409  already_exists
    |- WrongState           409  failed_precondition
    |- LimitExceeded        429  resource_exhausted
    |- Internal             500  internal
    |- Unsupported          501  unimplemented
    |- SandboxGone          502  unavailable           (proxy only)
    |- NoCapacity           503  unavailable
    |- DeadlineExceeded     504  deadline_exceeded
    |- OutOfSpace           507  failed_precondition

The exit code of somebody's program is a result, never an exception: an exception means that the
platform could not do its part. `message` is for the caller; `detail` only for the log; `reason` is
an open string that REST sends as `error_code`.
"""

from typing import ClassVar


class ServiceError(Exception):
    """A failure with a place in every protocol.

    Args:
        message: For the caller: lower case, names the thing, says the remedy where there is one.
        reason: Stable word for programs (`error_code` in REST), e.g. `sandbox_capacity_unavailable`.
        detail: For our own log only.
        retryable: Whether sending the same request again may help and can do no harm. None leaves
            it to the client; False becomes the header `Should-Retry: false`.
    """

    http_status: ClassVar[int] = 500
    rpc_code: ClassVar[str] = "internal"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        detail: str | None = None,
        retryable: bool | None = None,
    ) -> None:
        # Names of files and users may have any bytes, which come here as lone surrogates: no protocol can send those.
        message = message.encode(errors="backslashreplace").decode()
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.detail = detail
        self.retryable = retryable


class InvalidArgument(ServiceError):
    http_status = 400
    rpc_code = "invalid_argument"


class Unauthenticated(ServiceError):
    http_status = 401
    rpc_code = "unauthenticated"


class PermissionDenied(ServiceError):
    http_status = 403
    rpc_code = "permission_denied"


class NotFound(ServiceError):
    http_status = 404
    rpc_code = "not_found"


class SandboxNotFound(NotFound):
    def __init__(self, sandbox_id: str) -> None:
        # wire: the official server's sentence
        super().__init__(f"Sandbox \"{sandbox_id}\" doesn't exist or you don't have access to it")


class TemplateNotFound(NotFound):
    def __init__(self, name: str) -> None:
        super().__init__(f"template '{name}' not found")  # wire: the official server's sentence


class PathNotFound(NotFound):
    pass


class AlreadyExists(ServiceError):
    http_status = 409
    rpc_code = "already_exists"


class WrongState(ServiceError):
    http_status = 409
    rpc_code = "failed_precondition"


class LimitExceeded(ServiceError):
    http_status = 429
    rpc_code = "resource_exhausted"


class Internal(ServiceError):
    http_status = 500
    rpc_code = "internal"


class Unsupported(ServiceError):
    http_status = 501
    rpc_code = "unimplemented"


class SandboxGone(ServiceError):
    http_status = 502
    rpc_code = "unavailable"


class NoCapacity(ServiceError):
    http_status = 503
    rpc_code = "unavailable"


class DeadlineExceeded(ServiceError):
    http_status = 504
    rpc_code = "deadline_exceeded"


class OutOfSpace(ServiceError):
    http_status = 507
    rpc_code = "failed_precondition"
