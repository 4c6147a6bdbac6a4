"""`python -m opene2b.cli.launcher [--as control-plane|proxy] [--writable DIR]... -- COMMAND...`

What every process that `serve` starts goes through: it is told to end when its parent does (also by SIGKILL), gives
up root where it is asked to, and becomes the command.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from opene2b.cli import unprivileged
from opene2b.core.errors import ServiceError
from opene2b.linux import syscalls

IDENTITIES = {"control-plane": unprivileged.CONTROL_PLANE, "proxy": unprivileged.PROXY}


def command(
    arguments: Sequence[str], *, identity: str | None = None, writable: Sequence[Path] = ()
) -> list[str]:
    """The argument list that starts `arguments` through this module, as a child of the caller."""
    return [
        *(sys.executable, "-m", "opene2b.cli.launcher", "--parent", str(os.getpid())),
        *(["--as", identity] if identity else []),
        *(part for path in writable for part in ("--writable", str(path))),
        "--",
        *arguments,
    ]


def opene2b(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "opene2b", *arguments]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--as", dest="identity", choices=IDENTITIES)
    parser.add_argument("--writable", type=Path, action="append", default=[])
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    if options.identity:
        identity = IDENTITIES[options.identity]
        try:
            unprivileged.uncover(
                identity, read_only=unprivileged.interpreter(), writable=options.writable
            )
        except ServiceError as exc:
            sys.exit(f"opene2b: {exc.message}")
        unprivileged.become(identity)
        os.chdir("/")
    # After the change of user, which clears it.
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != options.parent:
        sys.exit("opene2b: the process that started this one has ended")
    os.execvp(options.command[0], options.command)  # noqa: S606 - an argument list, no shell


if __name__ == "__main__":
    main()
