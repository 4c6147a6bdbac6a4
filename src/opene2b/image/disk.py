"""Room on disks: how much there is, how much a tree takes."""

import os
import shutil
from pathlib import Path

from opene2b.core.errors import OutOfSpace


def need_space(directory: Path, size_bytes: int) -> None:
    """Raises OutOfSpace, with what is missing where, before anything is written."""
    free = shutil.disk_usage(directory).free
    if free < size_bytes:
        raise OutOfSpace(
            f"{directory} has {free >> 20} MiB free and the base template needs"
            f" {size_bytes >> 20} MiB: make room, or set OPENE2B_HOME to another disk"
        )


def size_of(tree: Path) -> int:
    """Bytes that the tree takes on its disk, each hard link counted once."""
    seen: set[int] = set()
    total = 0
    stack = [str(tree)]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                info = entry.stat(follow_symlinks=False)
                if info.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                    if info.st_ino in seen:
                        continue
                    seen.add(info.st_ino)
                total += info.st_blocks * 512
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
    return total
