"""Building the base template in a process of its own, and showing how far it is."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from opene2b.cli import launcher, layout
from opene2b.cli.config import Config
from opene2b.core.errors import Internal
from opene2b.core.ids import ImageId
from opene2b.core.paths import Home
from opene2b.image import manifest as manifests

BASE = ImageId("base")
LINE_EVERY_S = 5.0
"""Plain output, for logs: a line at every new stage and otherwise this often."""


class Display(Protocol):
    def show(self, step: Mapping[str, Any]) -> None: ...


class PlainDisplay:
    """For output that is not a terminal."""

    def __init__(self) -> None:
        self.stage = ""
        self.said_at = 0.0

    def show(self, step: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if step["stage"] == self.stage and now - self.said_at < LINE_EVERY_S:
            return
        self.stage, self.said_at = step["stage"], now
        percent = "" if step["fraction"] is None else f"{step['fraction']:4.0%} "
        print(f"base template: {percent}{step['message']}", flush=True)


class RichDisplay:
    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.task = bar.add_task("base template", total=1.0, message="")

    def show(self, step: Mapping[str, Any]) -> None:
        self.bar.update(
            self.task, completed=step["fraction"], message=step["message"], refresh=True
        )


@contextlib.contextmanager
def display() -> Iterator[Display]:
    console = Console()
    if not console.is_terminal:
        yield PlainDisplay()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[message]}"),
    )
    with Progress(*columns, console=console) as bar:
        yield RichDisplay(bar)


def is_built(home: Home) -> bool:
    return manifests.load(home, BASE) is not None


def request(config: Config) -> dict[str, Any]:
    """What `opene2b.image.build_base` reads from its standard input."""
    return {
        "home": str(config.home.root),
        "settings": {
            "mirror": config.base_mirror,
            "suite": config.base_suite,
            "oci_image": config.base_image,
            "registry_username": config.base_image_username,
            "registry_password": config.base_image_password,
        },
    }


async def build(config: Config) -> None:
    """Build the base template, showing progress; cancelling ends the build, which leaves nothing.

    Raises Internal with the builder's own sentence.
    """
    process = await asyncio.create_subprocess_exec(
        *launcher.command([sys.executable, "-m", "opene2b.image.build_base"]),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    started = time.monotonic()
    last: dict[str, Any] = {}
    try:
        process.stdin.write(json.dumps(request(config)).encode())
        await process.stdin.drain()
        process.stdin.close()
        with display() as shown:
            async for line in process.stdout:
                last = json.loads(line)
                if "stage" in last:
                    shown.show(last)
        code = await process.wait()
    except BaseException:
        await asyncio.shield(end(process))
        raise
    if code != 0 or "manifest" not in last:
        raise Internal(
            f"the base template was not built: {last.get('error', f'exit code {code}')}",
            detail=last.get("detail"),
        )
    size_mib = last["manifest"]["size_bytes"] >> 20
    print(
        f"base template ready: {size_mib} MiB, {time.monotonic() - started:.0f} s",
        flush=True,
    )


async def end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), 30)
        except TimeoutError:
            process.kill()
            await process.wait()


def run(config: Config) -> int:
    """`opene2b setup-base`. Exit code 0: the template is there."""
    layout.need_root("opene2b setup-base")
    layout.make(config.home)
    if is_built(config.home):
        print("base template: there already")
        return 0
    asyncio.run(build(config))
    return 0
