"""Who asks: `X-API-Key` to a team. Source: E2B REST contract, authentication."""

import logging
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any

from opene2b.core import keys
from opene2b.core.errors import Internal, Unauthenticated
from opene2b.core.ids import KeyId
from opene2b.core.records import Team
from opene2b.store.protocol import Store

log = logging.getLogger(__name__)

KEPT_S = 1.0
"""A revoked key is refused after at most this long."""
TOUCH_EVERY_S = 60.0
MOST_KEPT = 1024
KEY_LIMIT = 512


class Authenticator:
    """Answers from memory for a second, so that a busy client does not read the store at each request."""

    def __init__(
        self,
        store: Store,
        *,
        run: Callable[[Coroutine[Any, Any, Any], str], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`run` takes work that nobody waits for."""
        self.store = store
        self.run = run
        self.clock = clock
        self.known: dict[str, tuple[float, Team, KeyId]] = {}
        """Digest -> (when it was read, its team, its id)."""
        self.touched: dict[KeyId, float] = {}

    async def team(self, key: str | None) -> Team:
        """Raises Unauthenticated. Neither the key nor a part of it is in the message."""
        if not key:
            raise Unauthenticated("no API key: send it in the header X-API-Key", retryable=False)
        if len(key) > KEY_LIMIT:
            raise unknown()
        digest = keys.digest(key)
        now = self.clock()
        kept = self.known.get(digest)
        if kept is not None and now - kept[0] < KEPT_S:
            return kept[1]
        self.known.pop(digest, None)
        record = await self.store.key_by_digest(digest)
        if record is None or record.revoked_at is not None:
            raise unknown()
        team = await self.store.team(record.team_id)
        if team is None:
            raise Internal(f"key '{record.id}' belongs to no team")
        if len(self.known) >= MOST_KEPT:
            self.known.clear()
        self.known[digest] = (now, team, record.id)
        if now - self.touched.get(record.id, -TOUCH_EVERY_S) >= TOUCH_EVERY_S:
            self.touched[record.id] = now
            self.run(self.store.touch_key(record.id, at=datetime.now(UTC)), "touch key")
        return team


def unknown() -> Unauthenticated:
    return Unauthenticated("the API key is unknown or revoked", retryable=False)
