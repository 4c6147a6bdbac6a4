"""Access tokens of sandboxes: derived from a seed, so they are the same for the life of a sandbox id.

Source: E2B REST contract, envdAccessToken and trafficAccessToken.
"""

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from opene2b.core.ids import SandboxId

SEED_BYTES = 32


class Tokens:
    def __init__(self, seed: bytes) -> None:
        self.seed = seed

    def envd(self, sandbox_id: SandboxId) -> str:
        return self.derive(sandbox_id)

    def traffic(self, sandbox_id: SandboxId) -> str:
        return self.derive(f"sandbox-traffic-{sandbox_id}")

    def derive(self, what: str) -> str:
        return hmac.new(self.seed, what.encode(), hashlib.sha256).hexdigest()


def random_tokens() -> Tokens:
    """For a store that forgets: nothing outlives the process anyway."""
    return Tokens(secrets.token_bytes(SEED_BYTES))


def load(path: Path) -> Tokens:
    """The seed kept beside the database, made at the first start (mode 0600)."""
    try:
        return Tokens(path.read_bytes())
    except FileNotFoundError:
        pass
    seed = secrets.token_bytes(SEED_BYTES)
    scratch = path.with_suffix(f".{os.getpid()}")
    fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(seed)
        file.flush()
        os.fsync(file.fileno())
    try:
        # Not rename: if another process was quicker, its seed is the one that counts.
        os.link(scratch, path)
    except FileExistsError:
        return Tokens(path.read_bytes())
    finally:
        scratch.unlink()
    return Tokens(seed)
