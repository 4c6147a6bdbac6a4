"""An image of a registry as a tree for sandboxes: download, verify, unpack, add what E2B expects."""

import asyncio
import contextlib
import hashlib
import io
import os
import subprocess
import threading
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from opene2b.core.errors import InvalidArgument, OutOfSpace, Unsupported
from opene2b.image import provision, reference, site
from opene2b.image.disk import need_space, size_of
from opene2b.image.layers import Unpacker
from opene2b.image.manifest import Manifest
from opene2b.image.progress import Progress
from opene2b.image.registry import Descriptor, Image, Registry
from opene2b.image.site import Site
from opene2b.linux.rooted import Root

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
READ_BYTES = 1 << 20


async def pull(
    place: Site,
    name: str,
    *,
    username: str | None,
    password: str | None,
    insecure: bool,
    progress: Callable[[Progress], None],
) -> Manifest:
    """Bring an image to this node as one flat layer.

    Raises:
        InvalidArgument: the name or the image cannot be used.
        NotFound, PermissionDenied, Internal: see `Registry`.
        OutOfSpace: the disk is full.
    """
    wanted = reference.parse(name)
    progress(Progress(stage="pull", fraction=0.0, message=f"asking {wanted.registry} for {wanted}"))
    async with Registry(
        reference=wanted, username=username, password=password, insecure=insecure
    ) as registry:
        image = await registry.resolve()
        tree = place.layer()
        total = sum(layer.size_bytes for layer in image.layers)
        need_space(tree, 2 * total)
        scratch = place.directory(tree.parent)
        files = await download(registry, image, scratch, total, progress)
    account = await unpack_all(image, files, tree, progress)
    progress(Progress(stage="finish", fraction=0.95, message="measuring the tree"))
    made = datetime.now(UTC)
    layer = f"oci-{image.digest.partition(':')[2][:12]}-{made:%Y%m%dT%H%M%S}"
    built = Manifest(
        image_id=place.image_id,
        layers=[layer],
        env_vars=dict(image.env_vars),
        user=account,
        workdir=image.workdir,
        size_bytes=await site.in_thread(lambda: size_of(tree)),
        created_at=made.isoformat(),
    )
    await place.finish(built, {tree: layer})
    return built


async def download(
    registry: Registry,
    image: Image,
    scratch: Path,
    total: int,
    progress: Callable[[Progress], None],
) -> list[Path]:
    """Fetch every layer into a file, in order; each is verified before it is used."""
    files: list[Path] = []
    done = 0
    for number, layer in enumerate(image.layers):
        path = scratch / f"{number}.blob"
        with path.open("wb") as file:
            async with contextlib.aclosing(registry.blob(layer)) as chunks:
                async for chunk in chunks:
                    write(file, chunk)
                    done += len(chunk)
                    progress(
                        Progress(
                            stage="pull",
                            fraction=0.6 * done / max(total, 1),
                            message=f"downloading {done >> 20} of {total >> 20} MiB",
                        )
                    )
        files.append(path)
    return files


def write(file: IO[bytes], chunk: bytes) -> None:
    try:
        file.write(chunk)
    except OSError as exc:
        raise OutOfSpace("no space left while downloading the image", detail=str(exc)) from exc


async def unpack_all(
    image: Image, files: list[Path], tree: Path, progress: Callable[[Progress], None]
) -> str:
    """Unpack in a thread, so that the loop stays free; a cancelled caller waits for its end."""
    stop = threading.Event()
    loop = asyncio.get_running_loop()

    def work() -> str:
        with Root(tree) as root:
            unpacker = Unpacker(root=root, is_cancelled=stop.is_set)
            for number, (path, layer, diff_id) in enumerate(
                zip(files, image.layers, image.diff_ids, strict=True)
            ):
                step = Progress(
                    stage="unpack",
                    fraction=0.6 + 0.35 * number / len(files),
                    message=f"unpacking layer {number + 1} of {len(files)}",
                )
                loop.call_soon_threadsafe(progress, step)
                unpack_one(unpacker, path, layer, diff_id)
                path.unlink()
            provision.provision(root)
            return user_of(root, image.user)

    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.gather(task, return_exceptions=True)
        raise


def unpack_one(unpacker: Unpacker, path: Path, layer: Descriptor, diff_id: str) -> None:
    with path.open("rb") as file, decompressed(file, layer) as plain:
        stream = Summing(plain, diff_id)
        buffered = io.BufferedReader(stream, READ_BYTES)
        unpacker.apply(buffered)
        # Tar ends before the file does: padding counts for the digest.
        while buffered.read(READ_BYTES):
            pass
    if stream.digest() != diff_id:
        raise InvalidArgument(
            f"layer {layer.digest} unpacks to something else than the image's configuration says"
        )


class Summing(io.RawIOBase):
    """Passes bytes on and sums them up."""

    def __init__(self, source: IO[bytes], diff_id: str) -> None:
        self.source = source
        self.algorithm = diff_id.partition(":")[0]
        if self.algorithm not in {"sha256", "sha512"}:
            raise InvalidArgument(f"the image's configuration has an unknown digest: {diff_id!r}")
        self.sum = hashlib.new(self.algorithm)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        data = self.source.read(len(buffer))
        self.sum.update(data)
        buffer[: len(data)] = data
        return len(data)

    def digest(self) -> str:
        return f"{self.algorithm}:{self.sum.hexdigest()}"


class Gunzip(io.RawIOBase):
    """gzip by zlib alone: `gzip.GzipFile` adds a quarter of the time and bounds nothing."""

    def __init__(self, source: IO[bytes]) -> None:
        self.source = source
        self.inflater = zlib.decompressobj(31)
        self.pending = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while True:
            if self.inflater.eof:
                self.pending = self.inflater.unused_data.lstrip(b"\0")
                self.pending = self.pending or self.source.read(READ_BYTES).lstrip(b"\0")
                if not self.pending:
                    return 0
                # Parallel compressors write several members one after the other.
                self.inflater = zlib.decompressobj(31)
            data = self.pending or self.inflater.unconsumed_tail or self.source.read(READ_BYTES)
            self.pending = b""
            try:
                plain = self.inflater.decompress(data, len(buffer))
            except zlib.error as exc:
                raise InvalidArgument(f"a layer is not valid gzip: {exc}") from exc
            if plain:
                buffer[: len(plain)] = plain
                return len(plain)
            if not data and not self.inflater.eof:
                raise InvalidArgument("a layer ends in the middle of its gzip data")


@contextlib.contextmanager
def decompressed(file: IO[bytes], layer: Descriptor) -> Iterator[IO[bytes]]:
    """The tar inside, by what the bytes are: media types are wrong often enough."""
    start = file.read(4)
    file.seek(0)
    if start.startswith(GZIP):
        yield io.BufferedReader(Gunzip(file), READ_BYTES)
    elif start == ZSTD:
        yield from zstd(file)
    elif layer.media_type.endswith(("+gzip", "+zstd")) or ".gzip" in layer.media_type:
        raise InvalidArgument(f"layer {layer.digest} is not {layer.media_type}, as it claims")
    else:
        yield file


def zstd(file: IO[bytes]) -> Iterator[IO[bytes]]:
    # The child reads from the descriptor, whose position is not that of our buffered file.
    os.lseek(file.fileno(), 0, os.SEEK_SET)
    try:
        process = subprocess.Popen(
            ["zstd", "-dc", "-q"], stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except FileNotFoundError as exc:
        raise Unsupported(
            "the image has layers compressed with zstd: apt-get install zstd"
        ) from exc
    assert process.stdout is not None
    try:
        yield process.stdout
        if process.wait() != 0:
            raise InvalidArgument("a layer is not valid zstd")
    finally:
        process.stdout.close()
        if process.poll() is None:
            process.kill()
            process.wait()


def user_of(root: Root, text: str) -> str:
    """The name of the image's user; `user` where it names none.

    Raises InvalidArgument for a user that the image does not have.
    """
    wanted = text.partition(":")[0]
    if not wanted:
        return provision.USER
    for line in provision.lines_of(root, "/etc/passwd"):
        if wanted in {provision.field(line, 0), provision.field(line, 2)}:
            return provision.field(line, 0)
    raise InvalidArgument(f"the image runs as user {wanted!r}, which its /etc/passwd does not have")
