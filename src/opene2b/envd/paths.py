"""What a path in a request means.

Source: E2B envd contract: relative paths lie in the home of the request's user (not in the default working
directory), `~` is that home, an empty path is the default working directory or else the home.
"""

import posixpath

from opene2b.envd.users import User


def resolve(path: str, user: User, default_workdir: str | None) -> str:
    """The absolute form, without `.` and `..`; symlinks are left alone."""
    if not path:
        path = default_workdir or user.home
    if path == "~" or path.startswith("~/"):
        path = user.home + path[1:]
    absolute = posixpath.normpath(posixpath.join(user.home, path))
    # POSIX keeps two leading slashes; to every kernel here they are one.
    return "/" + absolute.lstrip("/")
