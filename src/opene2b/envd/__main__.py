"""`python -m opene2b.envd`: envd on an ordinary machine, without any isolation; for tests and for the fake runtime."""

import argparse
import json
import os
import socket
import sys

from opene2b.envd.config import Config
from opene2b.envd.main import serve
from opene2b.envd.users import Users


def main() -> None:
    parser = argparse.ArgumentParser(prog="opene2b.envd", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 chooses a free one")
    parser.add_argument("--user", help="default user; default: the one who runs this")
    parser.add_argument("--workdir")
    parser.add_argument(
        "--config-fd",
        type=int,
        help="read sandbox_id, template_id, access_token and env_vars as JSON from here: "
        "secrets do not belong on a command line",
    )
    arguments = parser.parse_args()
    told: dict[str, object] = {}
    if arguments.config_fd is not None:
        with os.fdopen(arguments.config_fd) as file:
            told = json.load(file)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((arguments.host, arguments.port))
    listener.listen(1024)
    listener.setblocking(False)
    config = Config(**told)  # type: ignore[arg-type]
    config.default_user = arguments.user or current_user()
    config.default_workdir = arguments.workdir

    def ready() -> None:
        json.dump({"port": listener.getsockname()[1]}, sys.stdout)
        sys.stdout.write("\n")
        sys.stdout.flush()

    serve(listener, config, ready=ready)


def current_user() -> str:
    for user in Users().all():
        if user.uid == os.geteuid():
            return user.name
    sys.exit(f"user {os.geteuid()} is not in /etc/passwd: name one with --user")


if __name__ == "__main__":
    main()
