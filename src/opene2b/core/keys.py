"""API keys: what they look like, what is stored of them, what may be shown."""

import hashlib
import secrets

PREFIX = "e2b_"
HEX_DIGITS = 40


def generate_key() -> str:
    """`e2b_` and 40 hex digits: older clients refuse any other form. Source: E2B clients, validate_api_key."""
    return PREFIX + secrets.token_hex(HEX_DIGITS // 2)


def digest(key: str) -> str:
    """Hex SHA-256 of the whole key: all that is stored of it. Keys are random, so no salt is needed."""
    return hashlib.sha256(key.encode()).hexdigest()


def mask(key: str) -> str:
    """What may be shown of it, e.g. `e2b_ab...cdef`; nothing of a short one."""
    if len(key) < 16:
        return "..."
    head = len(PREFIX) + 2 if key.startswith(PREFIX) else 2
    return f"{key[:head]}...{key[-4:]}"
