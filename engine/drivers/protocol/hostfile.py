"""Calls on host files that the os module lacks: fallocate with modes, and early writeback."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from collections.abc import Callable

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x01, 0x02, 0x10
"""FALLOC_FL_* of Linux."""


@functools.cache
def _libc_fallocate() -> Callable[[int, int, int, int], int]:
    function = ctypes.CDLL(None, use_errno=True).fallocate
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong]
    function.restype = ctypes.c_int
    return function


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) in bytes. Errors: OSError; ENOTSUP where the file system has no such mode."""
    while _libc_fallocate()(fd, mode, offset, length) != 0:
        code = ctypes.get_errno()
        if code == errno.EINTR:
            continue
        if code in (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY):
            code = errno.ENOTSUP
        raise OSError(code, os.strerror(code))


_START_WRITE = 2
"""SYNC_FILE_RANGE_WRITE of Linux."""


@functools.cache
def _libc_sync_file_range() -> Callable[[int, int, int, int], int]:
    function = ctypes.CDLL(None, use_errno=True).sync_file_range
    function.argtypes = [ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong, ctypes.c_uint]
    function.restype = ctypes.c_int
    return function


def start_writeback(fd: int) -> None:
    """Have the kernel begin to write the file's cached data to the disk. A hint: errors show at the next flush."""
    _libc_sync_file_range()(fd, 0, 0, _START_WRITE)
