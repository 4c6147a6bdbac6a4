"""The images of this node, as they lie on its disk."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from opene2b.core.errors import Internal, InvalidArgument, NoCapacity, NotFound
from opene2b.core.ids import ImageId
from opene2b.core.paths import Home
from opene2b.image import manifest as manifests
from opene2b.image.manifest import Manifest

IMAGE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
"""A name in a directory, and nothing that leads out of it."""
SENTENCE_LIMIT = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    manifest: Manifest
    layers: tuple[Path, ...]
    """Lowest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageStatus:
    image_id: ImageId
    is_ready: bool
    progress: str = ""
    """One sentence while it is being built."""


def require(home: Home, image_id: ImageId) -> Image:
    """An image to boot from.

    Raises:
        NotFound: `image_not_found`.
        NoCapacity: `image_not_ready`, with how far its build is.
    """
    if not IMAGE_ID.match(image_id):
        raise InvalidArgument(f"image id {image_id!r} must match {IMAGE_ID.pattern}")
    manifest = load(home, image_id)
    if manifest is None:
        sentence = progress(home, image_id)
        if sentence is None:
            raise NotFound(
                f"image '{image_id}' is not on this node: run `opene2b setup-base`"
                if image_id == "base"
                else f"image '{image_id}' is not on this node",
                reason="image_not_found",
            )
        raise NoCapacity(
            f"image '{image_id}' is being built: {sentence}",
            reason="image_not_ready",
        )
    return Image(manifest=manifest, layers=tuple(home.layers / name for name in manifest.layers))


def load(home: Home, image_id: ImageId) -> Manifest | None:
    try:
        return manifests.load(home, image_id)
    except (json.JSONDecodeError, TypeError) as exc:
        raise Internal(f"the manifest of image '{image_id}' is damaged", detail=str(exc)) from exc


def progress(home: Home, image_id: ImageId) -> str | None:
    try:
        text = manifests.progress_path(home, image_id).read_text(errors="replace")
    except FileNotFoundError:
        return None
    return text.strip()[:SENTENCE_LIMIT] or "it has just begun"


def on_disk(home: Home) -> list[ImageStatus]:
    """Every image that is there or is being built."""
    found: list[ImageStatus] = []
    if not home.images.is_dir():
        return found
    for path in sorted(home.images.iterdir()):
        if not IMAGE_ID.match(path.name):
            continue
        image_id = ImageId(path.name)
        if manifests.path(home, image_id).exists():
            found.append(ImageStatus(image_id=image_id, is_ready=True))
        elif (sentence := progress(home, image_id)) is not None:
            found.append(ImageStatus(image_id=image_id, is_ready=False, progress=sentence))
    return found
