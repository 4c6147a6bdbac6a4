"""What of envd may be asked from outside: everything that clients use, and nothing else by default.

`/init` and its kind belong to the control plane: whoever could call them could take a sandbox over.
"""

from urllib.parse import unquote

PATHS = frozenset({"/health", "/metrics", "/envs", "/files", "/files/compose"})
SERVICES = ("/process.Process/", "/filesystem.Filesystem/")


def is_public(target: str) -> bool:
    """Of a request target in origin form. The path is read as envd reads it: cut at `?` and `#`, decoded once."""
    path = unquote(target.partition("?")[0].partition("#")[0])
    if path in PATHS:
        return True
    return path.startswith(SERVICES) and path.count("/") == 2
