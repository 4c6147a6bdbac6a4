"""Who may ask envd: the access token, and signatures of file URLs.

Source: E2B envd contract, authentication and signed file URLs.
"""

import hashlib
import hmac
import time
from base64 import b64encode

from opene2b.connect.http import Request
from opene2b.core.errors import Unauthenticated

# wire: the original's sentence
REFUSAL = "unauthorized access, please provide a valid access token or method signing if supported"
OPEN_PATHS = {("GET", "/health"), ("HEAD", "/health")}


def same(given: str, wanted: str) -> bool:
    """Compare secrets in a time that tells nothing but their length."""
    return hmac.compare_digest(
        given.encode("utf-8", "surrogateescape"), wanted.encode("utf-8", "surrogateescape")
    )


def check(request: Request, token: str | None) -> None:
    """Raises Unauthenticated unless the request may do what it asks."""
    if token is None or (request.method, request.path) in OPEN_PATHS:
        return
    given = request.headers.get("x-access-token")
    if given is not None:
        if same(given, token):
            return
    elif request.path == "/files" and request.method in {"GET", "HEAD", "POST"}:
        check_signature(request, token)
        return
    raise Unauthenticated(REFUSAL)


def check_signature(request: Request, token: str) -> None:
    query = request.query
    given = first(query.get("signature"))
    if not given:
        raise Unauthenticated(REFUSAL)
    expiration = first(query.get("signature_expiration"))
    operation = "write" if request.method == "POST" else "read"
    wanted = signature(
        path=first(query.get("path")) or "",
        operation=operation,
        username=first(query.get("username")) or "",
        token=token,
        expiration=expiration,
    )
    if not same(given, wanted):
        raise Unauthenticated("invalid signature")
    if expiration is not None and not (
        expiration.isascii() and expiration.isdigit() and int(expiration) >= time.time()
    ):
        raise Unauthenticated("signature is already expired")


def signature(
    *, path: str, operation: str, username: str, token: str, expiration: str | None
) -> str:
    """`v1_` and the unpadded base64 of SHA-256 of `path:operation:username:token[:expiration]`."""
    text = f"{path}:{operation}:{username}:{token}"
    if expiration is not None:
        text += f":{expiration}"
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
    return "v1_" + b64encode(digest).decode().rstrip("=")


def first(values: object) -> str | None:
    if isinstance(values, list) and values and isinstance(values[0], str):
        return values[0]
    return None
