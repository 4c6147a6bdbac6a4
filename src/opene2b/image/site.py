"""The building site of one image: its lock, its temporary places, its progress file.

    async with site.opened(home, image_id) as place:     # waits for another builder
        scratch = place.directory(Path("/dev/shm"))      # removed at the end, or by the next builder
        layer = place.layer()                            # layers/.new-...; kept only by `finish`
        await place.finish(manifest, {layer: name})

Every temporary path is written to `images/<id>/building` before it is made, so a builder that is
killed at any moment leaves nothing that the next one does not find.
"""

import asyncio
import contextlib
import ctypes
import fcntl
import json
import os
import secrets
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

from opene2b.core.errors import Internal
from opene2b.core.ids import ImageId
from opene2b.core.paths import Home
from opene2b.image import manifest as manifests
from opene2b.image.manifest import Manifest

T = TypeVar("T")
PREFIX = "opene2b-build-"
LOCK_POLL_S = 0.2
REMOVE_TRIES = 5
"""What a killed builder started may still be writing while it dies."""


class Site:
    """Owned by the one who holds the image's lock."""

    def __init__(self, home: Home, image_id: ImageId) -> None:
        self.home = home
        self.image_id = image_id
        self.record = home.images / image_id / "building"
        self.paths: list[str] = []

    def directory(self, parent: Path) -> Path:
        """A new directory that only root can enter, gone when the site is closed."""
        path = parent / f"{PREFIX}{secrets.token_hex(8)}"
        self._note(path)
        path.mkdir(mode=0o700)
        return path

    def layer(self) -> Path:
        """An empty directory on the disk of the layers, for a tree that `finish` puts in place."""
        make_layers(self.home)
        path = self.directory(self.home.layers)
        path.chmod(0o755)
        return path

    async def finish(self, manifest: Manifest, layers: Mapping[Path, str]) -> None:
        """Give the layers their names, then write the manifest: from then on the image exists."""
        for path in layers:
            # A manifest that survives a power cut must not name a tree whose files did not.
            await in_thread(partial(sync_disk_of, path))
        for path, name in layers.items():
            final = self.home.layers / name
            self._note(final)
            path.rename(final)
        await in_thread(partial(sync_disk_of, self.home.layers))
        await in_thread(partial(manifests.save, self.home, manifest))

    def say(self, sentence: str) -> None:
        """What `progress_path` tells others."""
        path = manifests.progress_path(self.home, self.image_id)
        scratch = path.with_suffix(".new")
        scratch.write_text(sentence + "\n")
        scratch.replace(path)

    def clear(self) -> None:
        """Remove what is on record, unless the image was finished with it. Blocking."""
        kept: set[Path] = set()
        if (done := manifests.load(self.home, self.image_id)) is not None:
            kept = {self.home.layers / name for name in done.layers}
        with contextlib.suppress(FileNotFoundError, ValueError):
            self.paths = json.loads(self.record.read_bytes())
        for path in map(Path, self.paths):
            if path not in kept:
                remove(path)
        manifests.progress_path(self.home, self.image_id).unlink(missing_ok=True)
        self.record.unlink(missing_ok=True)
        self.paths = []

    def _note(self, path: Path) -> None:
        self.paths.append(str(path))
        scratch = self.record.with_suffix(".new")
        scratch.write_text(json.dumps(self.paths))
        scratch.replace(self.record)


async def in_thread(work: Callable[[], T]) -> T:
    """Run blocking work; a caller who is cancelled waits for its end, so that nothing is written
    into a tree that is being removed."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise


def remove(path: Path) -> None:
    """Remove a tree; by rm, because an image may nest deeper than Python's own removal can follow."""
    command = ["rm", "-rf", "--one-file-system", "--", str(path)]
    for _ in range(REMOVE_TRIES):
        done = subprocess.run(command, stderr=subprocess.PIPE, check=False)
        if done.returncode == 0:
            return
    raise Internal(
        f"{path}, left by a build, cannot be removed: remove it by hand",
        detail=done.stderr.decode(errors="replace")[-2000:],
    )


def make_layers(home: Home) -> None:
    # Layers hold programs that run as root whoever starts them (setuid): an old sudo in one must be
    # out of reach of the host's ordinary users.
    home.layers.mkdir(mode=0o700, parents=True, exist_ok=True)


def sync_disk_of(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        syncfs(fd)
    finally:
        os.close(fd)


def syncfs(fd: int) -> None:
    if ctypes.CDLL(None, use_errno=True).syncfs(fd) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "syncfs")


@contextlib.asynccontextmanager
async def opened(home: Home, image_id: ImageId) -> AsyncIterator[Site]:
    """The site, once no other builder is on it; cleared before and after."""
    folder = home.images / image_id
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(LOCK_POLL_S)
        place = Site(home, image_id)
        await asyncio.to_thread(place.clear)
        try:
            yield place
        finally:
            await asyncio.shield(asyncio.to_thread(place.clear))
