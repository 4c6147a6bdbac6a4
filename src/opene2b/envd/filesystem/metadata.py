"""Metadata of a file: short texts kept in extended attributes `user.e2b.<key>`.

Source: E2B envd contract, `X-Metadata-*` headers of POST /files and `EntryInfo.metadata`.
"""

import errno
import os
import re
from collections.abc import Mapping

from opene2b.core.errors import InvalidArgument, OutOfSpace, Unsupported

PREFIX = "user.e2b."
HEADER_PREFIX = "x-metadata-"
_KEY = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")
_VALUE = re.compile(r"[\x20-\x7e]*")
# The kernel's bound on an attribute's name (255), less the prefix.
_MAX_KEY_BYTES = 255 - len(PREFIX)
# Small file systems keep all attributes of a file in one block.
_MAX_TOTAL_BYTES = 4096


def from_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The metadata an upload asks for.

    Raises:
        InvalidArgument: a key is no token, a value is not printable ASCII, or all together are
            too large.
    """
    metadata: dict[str, str] = {}
    for header, value in headers.items():
        name = header.lower()
        if not name.startswith(HEADER_PREFIX):
            continue
        key = name[len(HEADER_PREFIX) :]
        if not _KEY.fullmatch(key) or len(key) > _MAX_KEY_BYTES:
            raise InvalidArgument(
                f"metadata key {key!a} is not a token of 1-{_MAX_KEY_BYTES} letters"
            )
        if not _VALUE.fullmatch(value):
            raise InvalidArgument(f"metadata value of '{key}' is not printable ASCII")
        metadata[key] = value
    if sum(len(key) + len(value) for key, value in metadata.items()) > _MAX_TOTAL_BYTES:
        raise InvalidArgument(f"metadata is larger than {_MAX_TOTAL_BYTES} bytes")
    return metadata


def read(path: str) -> dict[str, str]:
    """The metadata of a path (links followed); empty where there is none or none can be."""
    try:
        names = [name for name in os.listxattr(path) if name.startswith(PREFIX)]
    except OSError:
        return {}
    metadata = {}
    for name in names:
        try:
            value = os.getxattr(path, name)
        except OSError:
            continue  # removed since it was listed
        key = name[len(PREFIX) :].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        metadata[key] = value.decode("utf-8", "replace")
    return metadata


def write(fd: int, metadata: Mapping[str, str]) -> None:
    """Set the metadata of an open file.

    Raises:
        Unsupported: the file system has no extended attributes for users.
        OutOfSpace: no room for them.
    """
    for key, value in metadata.items():
        try:
            os.setxattr(fd, PREFIX + key, value.encode())
        except OSError as exc:
            if exc.errno == errno.ENOTSUP:
                raise Unsupported("this file system cannot keep metadata") from exc
            if exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.E2BIG, errno.ERANGE):
                raise OutOfSpace(f"no room for metadata '{key}'") from exc
            raise
