"""The rehearsal before envds are forked: it plays every scene, and leaves nothing behind."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import logging, os, signal, threading
from opene2b.envd import rehearsal

def state():
    return (
        sorted(os.listdir("/proc/self/fd")),
        threading.active_count(),
        logging.root.manager.disable,
        [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGCHLD, signal.SIGPIPE)],
    )

before = state()
rehearsal.rehearse()
assert state() == before, (before, state())
try:
    os.waitpid(-1, os.WNOHANG)
    raise SystemExit("a child is left")
except ChildProcessError:
    pass
"""


def test_it_runs_and_leaves_nothing_behind(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", SCRIPT],
        check=True,
        timeout=30,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )

    assert list(tmp_path.iterdir()) == []
