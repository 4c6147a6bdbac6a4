"""Directories of sandboxes that are no more: moved aside at once, removed in the background.

A guest may leave a million files; its kill is answered without waiting for them. What an agent that died
had not removed yet is removed by the next.
"""

import asyncio
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from opene2b.core import ids
from opene2b.runtime import trees

log = logging.getLogger(__name__)


class Trash:
    def __init__(self, directory: Path) -> None:
        """Args: directory: On the same file system as what is thrown away, for a move is a rename."""
        self.root = directory
        self.executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trash")
        self.pending: set[asyncio.Future[None]] = set()

    def open(self) -> None:
        """Take up what the last agent left. Needs the running event loop."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in self.root.iterdir():
            self.begin(path)

    def discard(self, directory: Path) -> None:
        """Move a directory out of the way, in one step; a no-op when it is not there."""
        target = self.root / f"{directory.name}.{ids.random_label(8)}"
        try:
            directory.rename(target)
        except FileNotFoundError:
            return
        self.begin(target)

    def begin(self, path: Path) -> None:
        future = asyncio.get_running_loop().run_in_executor(self.executor, destroy, path)
        self.pending.add(future)
        future.add_done_callback(self.pending.discard)

    async def close(self, *, limit_s: float) -> None:
        """Give the removal this long; the next agent does the rest."""
        if self.pending:
            await asyncio.wait(set(self.pending), timeout=limit_s)
        self.executor.shutdown(wait=False, cancel_futures=True)


def destroy(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            trees.remove(path)
        else:
            os.unlink(path)
    except OSError as exc:
        log.error("trash_left", extra={"path": str(path), "detail": str(exc)})
