"""Errors as clients expect them: always JSON, `code` always the status. Source: E2B REST contract, Error."""

import logging

from starlette.responses import Response

from opene2b.api.call import Json
from opene2b.api.wire import Error
from opene2b.core.errors import Internal, ServiceError

log = logging.getLogger(__name__)

GENERIC = "an internal error occurred: the server's log says more"


def response(error: ServiceError) -> Response:
    headers = {}
    if error.retryable is not None:
        # Clients resend on 429, 502, 503 and 504 unless they are told.
        headers["Should-Retry"] = "true" if error.retryable else "false"
    message = error.message
    reason = error.reason
    if isinstance(error, Internal):
        log.error("internal", extra={"detail": f"{error.message} ({error.detail})"})
        message, reason = GENERIC, reason or "internal_server_error"
    status = error.http_status
    return Json(Error(status, message, reason), status_code=status, headers=headers)


def crashed() -> Response:
    """For an exception that nobody expected."""
    return Json(Error(500, GENERIC, "internal_server_error"), status_code=500)
