"""Connect's error codes, the HTTP status of each, and our errors as Connect errors. Pure.

Source: Connect protocol specification, error codes.
"""

import msgspec

from opene2b.core.errors import ServiceError

HTTP_STATUS = {
    "canceled": 499,
    "unknown": 500,
    "invalid_argument": 400,
    "deadline_exceeded": 504,
    "not_found": 404,
    "already_exists": 409,
    "permission_denied": 403,
    "resource_exhausted": 429,
    "failed_precondition": 400,
    "aborted": 409,
    "out_of_range": 400,
    "unimplemented": 501,
    "internal": 500,
    "unavailable": 503,
    "data_loss": 500,
    "unauthenticated": 401,
}


class ConnectError(msgspec.Struct, frozen=True):
    code: str
    message: str


class EndStream(msgspec.Struct, frozen=True, omit_defaults=True):
    error: ConnectError | None = None


def of(error: ServiceError) -> ConnectError:
    return ConnectError(code=error.rpc_code, message=error.message)


def http_status(error: ConnectError) -> int:
    return HTTP_STATUS[error.code]
