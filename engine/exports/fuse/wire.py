"""Numbers and layouts of the FUSE kernel protocol (Linux's include/uapi/linux/fuse.h), in the machine's byte order.

Only what a file system that is one file gets to see. Spoken directly, as the C library takes the process's signals and
standard streams for its own, which a program with a screen can't give away.
"""

from __future__ import annotations

import struct
from typing import Final

VERSION: Final = (7, 31)
"""What is spoken here. Newer kernels speak it too."""

LOOKUP: Final = 1
FORGET: Final = 2
GETATTR: Final = 3
SETATTR: Final = 4
OPEN: Final = 14
READ: Final = 15
WRITE: Final = 16
STATFS: Final = 17
RELEASE: Final = 18
FSYNC: Final = 20
FLUSH: Final = 25
INIT: Final = 26
INTERRUPT: Final = 36
DESTROY: Final = 38
BATCH_FORGET: Final = 42
FALLOCATE: Final = 43
LSEEK: Final = 46

ASYNC_READ: Final = 1 << 0
ATOMIC_O_TRUNC: Final = 1 << 3
BIG_WRITES: Final = 1 << 5
ASYNC_DIO: Final = 1 << 15
MAX_PAGES: Final = 1 << 22
INIT_EXT: Final = 1 << 30
"""There is a second word of flags; those of Linux 6.6 and newer:"""
DIRECT_IO_ALLOW_MMAP: Final = 1 << 4

OPEN_DIRECT_IO: Final = 1 << 0
OPEN_PARALLEL_DIRECT_WRITES: Final = 1 << 6

SET_MODE: Final = 1 << 0
SET_UID: Final = 1 << 1
SET_GID: Final = 1 << 2
SET_SIZE: Final = 1 << 3
SET_TIMES: Final = 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 10

IN: Final = struct.Struct("=IIQQIIIHH")
"""Length, opcode, unique, node, uid, gid, pid, length of extensions in eights, padding."""
OUT: Final = struct.Struct("=IiQ")
"""Length, negative errno or 0, unique."""
INIT_IN: Final = struct.Struct("=IIII")
"""Major, minor, max_readahead, flags; newer kernels send more: INIT_MORE, and what nobody uses."""
INIT_MORE: Final = struct.Struct("=I")
"""The second word of flags, where INIT_EXT is set."""
INIT_OUT: Final = struct.Struct("=IIIIHHIIHHI28x")
"""Major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran, max_pages,
map_alignment, flags2."""
ATTR_OUT: Final = struct.Struct("=QIIQQQQQQIIIIIIIIII")
"""Seconds and nanoseconds that this stays valid, padding; inode, size, blocks, atime, mtime, ctime, their nanoseconds,
mode, links, uid, gid, device, block size, flags."""
SETATTR_IN: Final = struct.Struct("=IIQQQQQQIIIIIIII")
"""Which, padding, handle, size, lock owner, atime, mtime, ctime, their nanoseconds, mode, unused, uid, gid, unused."""
OPEN_IN: Final = struct.Struct("=II")
"""Flags of open(2), of the protocol."""
OPEN_OUT: Final = struct.Struct("=QII")
"""Handle, flags, padding."""
READ_IN: Final = struct.Struct("=QQIIQII")
"""Handle, offset, size, flags, lock owner, flags of open(2), padding; the same for writes."""
WRITE_OUT: Final = struct.Struct("=II")
"""Size, padding."""
STATFS_OUT: Final = struct.Struct("=QQQQQIIII24x")
"""Blocks, free, available, files, files free, block size, longest name, fragment size, padding."""
FALLOCATE_IN: Final = struct.Struct("=QQQII")
"""Handle, offset, length, mode, padding."""
LSEEK_IN: Final = struct.Struct("=QQII")
"""Handle, offset, whence, padding."""
LSEEK_OUT: Final = struct.Struct("=Q")
