"""A process that `serve` keeps running."""

import asyncio
import contextlib
import os
import signal
import sys

from opene2b.cli.child import Child

HOLDER = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    open(sys.argv[1], "a").write(f"{os.getpid()}\\n")
    time.sleep(60)
print("here", flush=True)
time.sleep(60)
"""
"""Leaves a process behind that holds its output open."""


async def test_a_child_is_started_again_while_what_it_left_holds_its_output(tmp_path):
    held = tmp_path / "held"
    child = Child(
        "holder",
        [sys.executable, "-c", HOLDER, str(held)],
        env=dict(os.environ),
        log=tmp_path / "log",
        say=lambda text: None,
    )
    child.may_give_up = False
    keeping = asyncio.create_task(child.keep())
    seen: list[int] = []
    try:
        async with asyncio.timeout(20):
            while len(seen) < 2:
                process = child.process
                is_there = held.exists() and held.read_text().count("\n") > len(seen)
                if is_there and process is not None and process.pid not in seen:
                    seen.append(process.pid)
                    os.kill(process.pid, signal.SIGKILL)
                await asyncio.sleep(0.02)
    finally:
        await child.stop()
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        for line in held.read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(line), signal.SIGKILL)

    assert len(set(seen)) == 2
    assert "here" in (tmp_path / "log").read_text()
