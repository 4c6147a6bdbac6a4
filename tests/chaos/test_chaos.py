"""A short run of the faults that `make chaos` makes at length."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(os.geteuid() != 0 and not os.environ.get("CI"), reason="needs root")
def test_nothing_is_lost_when_processes_are_killed_under_load():
    chaos = Path(__file__).with_name("chaos.py")
    done = subprocess.run(
        [sys.executable, str(chaos), "--kills", "10", "--workers", "3"],
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )

    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
