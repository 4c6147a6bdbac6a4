"""`python -m opene2b.image.build_base`: builds image `base`, one JSON object per line on stdout.

`{"stage", "fraction", "message"}` while it goes on, at the end `{"manifest": {...}}` and exit code
0, or `{"error", "reason", "detail"}` and exit code 1. The request is one JSON object on stdin, so
that a registry's password is in no argument list: `{"home": "/var/lib/opene2b", "settings": {...}}`.
"""

import asyncio
import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from opene2b.core.errors import ServiceError
from opene2b.core.paths import Home
from opene2b.image import base
from opene2b.image.base import BaseSettings
from opene2b.image.progress import Progress


def emit(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


def report(step: Progress) -> None:
    emit(asdict(step))


def settings_of(raw: dict[str, Any]) -> BaseSettings:
    if "packages" in raw:
        raw = {**raw, "packages": tuple(raw["packages"])}
    return BaseSettings(**raw)


async def run(home: Home, settings: BaseSettings) -> int:
    task = asyncio.ensure_future(base.ensure(home, settings, report))
    # A polite end cleans up; after SIGKILL the next build does.
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        built = await task
    except ServiceError as exc:
        emit({"error": exc.message, "reason": exc.reason, "detail": exc.detail})
        return 1
    except asyncio.CancelledError:
        emit({"error": "building the base template was stopped", "reason": None, "detail": None})
        return 1
    emit({"manifest": asdict(built)})
    return 0


def main() -> int:
    request = json.loads(sys.stdin.read() or "{}")
    home = Home(Path(request.get("home", "/var/lib/opene2b")))
    return asyncio.run(run(home, settings_of(request.get("settings", {}))))


if __name__ == "__main__":
    sys.exit(main())
