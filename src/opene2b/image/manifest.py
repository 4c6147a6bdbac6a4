"""The manifest of an image on a node: `images/<image id>/manifest.json`.

It is written last and atomically, so an image that has a manifest is complete.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from opene2b.core.ids import ImageId
from opene2b.core.paths import Home


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    image_id: ImageId
    layers: Sequence[str]
    """Names below `layers/`, lowest first."""
    env_vars: Mapping[str, str] = field(default_factory=dict)
    user: str = "user"
    """Default user of commands and files."""
    workdir: str | None = None
    """Default directory of commands; None: the user's home."""
    size_bytes: int = 0
    created_at: str = ""
    """RFC 3339."""


def path(home: Home, image_id: ImageId) -> Path:
    return home.images / image_id / "manifest.json"


def load(home: Home, image_id: ImageId) -> Manifest | None:
    """None: no such image, or one that is still being built."""
    try:
        raw = json.loads(path(home, image_id).read_bytes())
    except FileNotFoundError:
        return None
    return Manifest(**raw)


def save(home: Home, manifest: Manifest) -> None:
    target = path(home, manifest.image_id)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_suffix(".new")
    with scratch.open("w") as file:
        json.dump(asdict(manifest), file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(target)


def progress_path(home: Home, image_id: ImageId) -> Path:
    """One sentence about a build that is under way; absent otherwise."""
    return home.images / image_id / "progress"
