"""What kind of file system a path is on. Source: man 2 statfs; numbers from linux/magic.h."""

import ctypes
import os

from opene2b.linux.syscalls import LIBC

NETWORK = frozenset(
    {
        0x6969,  # NFS
        0x517B,  # SMB
        0xFF534D42,  # CIFS
        0xFE534D42,  # SMB2
        0x01021997,  # 9P
        0x65735546,  # FUSE: as often as not somebody else's disk
        0x00C36400,  # Ceph
        0x5346414F,  # AFS
        0x6B414653,  # AFS of the kernel
        0x7461636F,  # OCFS2
    }
)
BUFFER_BYTES = 256


def kind(path: str) -> int:
    """The magic number of the path's file system. Raises OSError."""
    buffer = ctypes.create_string_buffer(BUFFER_BYTES)
    if LIBC.statfs(os.fsencode(path), buffer) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return int.from_bytes(buffer.raw[:4], "little")


def is_network(path: str) -> bool:
    """Whether others may change what is there without this kernel noticing."""
    return kind(path) in NETWORK
