"""The first API key: what the user set, or one generated once and kept where only root reads it."""

import os

from opene2b.cli.config import Config
from opene2b.core import keys
from opene2b.core.errors import InvalidArgument

SHORTEST = 16


def ensure(config: Config) -> str:
    """The key in clear. Raises InvalidArgument: OPENE2B_API_KEY cannot be a key."""
    if config.api_key is not None:
        if len(config.api_key) < SHORTEST or not config.api_key.isascii():
            raise InvalidArgument(
                f"OPENE2B_API_KEY must be at least {SHORTEST} ASCII characters, best"
                " `e2b_` and 40 hexadecimal digits, which every client accepts"
            )
        key = config.api_key
    elif (kept := read(config)) is not None:
        return kept
    else:
        key = keys.generate_key()
    scratch = config.home.first_key.with_suffix(".new")
    scratch.unlink(missing_ok=True)
    fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(key + "\n")
    scratch.replace(config.home.first_key)
    return key


def read(config: Config) -> str | None:
    """None: no server has run with this home yet."""
    try:
        return config.home.first_key.read_text().strip() or None
    except FileNotFoundError:
        return None
