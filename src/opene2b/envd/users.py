"""Users of the guest, read from its own /etc/passwd and /etc/group.

Never through the C library: its name service would load the guest's modules into envd. The files are the guest's:
bounded, and lines that make no sense are passed over.
"""

import base64
import binascii
import os
from collections.abc import Iterable
from dataclasses import dataclass

from opene2b.core.errors import Unauthenticated

MAX_FILE_BYTES = 4 << 20
MAX_GROUPS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    """Supplementary groups, the own one included."""
    home: str
    shell: str


class Users:
    """Looks users up, reading the files again only when they have changed."""

    def __init__(self, *, user_file: str = "/etc/passwd", group_file: str = "/etc/group") -> None:
        self.user_file = user_file
        self.group_file = group_file
        self.version: tuple[object, object] | None = None
        self.users: dict[str, User] = {}

    def find(self, name: str) -> User:
        """Raises Unauthenticated: there is no such user."""
        self.refresh()
        user = self.users.get(name)
        if user is None:
            raise Unauthenticated(f"invalid username: '{name}'")  # wire: the original's words
        return user

    def all(self) -> Iterable[User]:
        self.refresh()
        return self.users.values()

    def refresh(self) -> None:
        version = (stamp(self.user_file), stamp(self.group_file))
        if version != self.version:
            self.users = parse(read(self.user_file), read(self.group_file))
            self.version = version


def stamp(path: str) -> object:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def read(path: str) -> str:
    try:
        # O_NONBLOCK: a FIFO in its place must not stop envd.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return ""
    try:
        return os.read(fd, MAX_FILE_BYTES).decode("utf-8", "surrogateescape")
    except OSError:
        return ""
    finally:
        os.close(fd)


def parse(passwd: str, group: str) -> dict[str, User]:
    memberships: dict[str, list[int]] = {}
    for line in group.split("\n"):
        fields = line.split(":")
        if len(fields) >= 4 and is_id(fields[2]):
            for member in fields[3].split(","):
                groups = memberships.setdefault(member, [])
                if len(groups) < MAX_GROUPS:
                    groups.append(int(fields[2]))
    users: dict[str, User] = {}
    for line in passwd.split("\n"):
        fields = line.split(":")
        if len(fields) < 7 or not fields[0] or not is_id(fields[2]) or not is_id(fields[3]):
            continue
        name, gid = fields[0], int(fields[3])
        users.setdefault(
            name,
            User(
                name=name,
                uid=int(fields[2]),
                gid=gid,
                groups=tuple(dict.fromkeys([gid, *memberships.get(name, ())])),
                home=fields[5] or "/",
                shell=fields[6] or "/bin/sh",
            ),
        )
    return users


def is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) < 2**32 - 1


def basic_name(authorization: str | None) -> str | None:
    """The name in `Authorization: Basic base64(name:)`; None: no such header.

    Raises Unauthenticated: it is there and cannot be read.
    """
    if authorization is None:
        return None
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name, separator, _ = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, ValueError) as exc:
        raise Unauthenticated("the Authorization header is not valid Basic credentials") from exc
    if not separator:
        raise Unauthenticated("the Authorization header is not valid Basic credentials")
    return name or None
