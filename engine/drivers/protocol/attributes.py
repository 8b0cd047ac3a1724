"""Attributes of files that some file systems have: how their space is laid out. Elsewhere setting them does nothing."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import struct
from typing import Final

log = logging.getLogger(__name__)

# linux/fs.h: _IOR('f', 1, long), _IOW('f', 2, long), _IOR('X', 31, struct fsxattr), _IOW('X', 32, struct fsxattr)
_GET_FLAGS: Final = 0x80086601
_SET_FLAGS: Final = 0x40086602
_GET_XATTR: Final = 0x801C581F
_SET_XATTR: Final = 0x401C5820
_NO_COW: Final = 0x00800000
_EXTENT_SIZE: Final = 0x00000800
_XATTR: Final = struct.Struct("=IIIII8x")
"""struct fsxattr: flags, extent size, number of extents, project, copy-on-write extent size, padding."""


def set_no_copy_on_write(fd: int) -> None:
    """Have an empty file written in place on btrfs."""
    with contextlib.suppress(OSError):
        flags = bytearray(8)
        fcntl.ioctl(fd, _GET_FLAGS, flags)
        value = int.from_bytes(flags, "little") | _NO_COW
        fcntl.ioctl(fd, _SET_FLAGS, value.to_bytes(8, "little"))


def set_extent_size_hint(fd: int, size: int) -> None:
    """Have the space of a file allocated in pieces of *size* bytes on XFS. A hint only: a failure is logged."""
    try:
        data = bytearray(_XATTR.size)
        fcntl.ioctl(fd, _GET_XATTR, data)
        flags, _, extents, project, cow = _XATTR.unpack(data)
        if size >= 1 << 32:
            log.warning("an extent size hint of %d bytes is too large", size)
            return
        fcntl.ioctl(fd, _SET_XATTR, _XATTR.pack(flags | _EXTENT_SIZE, size, extents, project, cow))
    except OSError as exc:
        log.debug("no extent size hint: %s", exc)
