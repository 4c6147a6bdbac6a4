"""What a failed system call means to a caller."""

import errno

from opene2b.core.errors import (
    AlreadyExists,
    Internal,
    InvalidArgument,
    OutOfSpace,
    PathNotFound,
    PermissionDenied,
    ServiceError,
    Unsupported,
)

_CLASSES: dict[int, type[ServiceError]] = {
    errno.ENOENT: PathNotFound,
    errno.ENOTDIR: InvalidArgument,
    errno.EISDIR: InvalidArgument,
    errno.ELOOP: InvalidArgument,
    errno.EINVAL: InvalidArgument,
    errno.ENAMETOOLONG: InvalidArgument,
    errno.ENXIO: InvalidArgument,
    errno.EBUSY: InvalidArgument,
    errno.EEXIST: AlreadyExists,
    errno.ENOTEMPTY: AlreadyExists,
    errno.EACCES: PermissionDenied,
    errno.EPERM: PermissionDenied,
    errno.EROFS: PermissionDenied,
    errno.ENOSPC: OutOfSpace,
    errno.EDQUOT: OutOfSpace,
    errno.EFBIG: OutOfSpace,
    errno.ENOTSUP: Unsupported,
}


def printable(text: str) -> str:
    """`text` with every byte that is not UTF-8 replaced, fit for JSON and for messages."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def translate(exc: OSError, action: str, path: str) -> ServiceError:
    """The error to raise for `exc`, met while doing `action` (e.g. `list`) to `path`."""
    kind = _CLASSES.get(exc.errno or 0, Internal)
    reason = (exc.strerror or "unknown failure").lower()
    return kind(f"cannot {action} '{printable(path)}': {reason}", detail=repr(exc))


def checked(path: str) -> str:
    """`path`, if the kernel can be asked about it at all.

    Raises:
        InvalidArgument: it contains a NUL, or a surrogate that stands for no byte.
    """
    if "\0" in path:
        raise InvalidArgument("path contains a NUL byte")
    try:
        path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as exc:
        raise InvalidArgument("path is not valid Unicode") from exc
    return path
