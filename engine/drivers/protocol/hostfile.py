"""Calls on host files that the os module lacks: fallocate with modes, early writeback, runs of data and holes."""

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


def data_runs(fd: int, offset: int, length: int) -> list[tuple[bool, int, int]]:
    """All of a range as data_run() tells it: (whether there is data, bytes, offset) of every run."""
    found = []
    end = offset + length
    seek, to_data, to_hole = os.lseek, os.SEEK_DATA, os.SEEK_HOLE
    while offset < end:
        try:
            data = seek(fd, offset, to_data)
        except OSError as exc:
            found.append((exc.errno != errno.ENXIO, end - offset, offset))
            break
        if data > offset:
            data = min(data, end)
            found.append((False, data - offset, offset))
            offset = data
            continue
        try:
            hole = seek(fd, offset, to_hole)
        except OSError:
            hole = end
        hole = min(hole, end) if hole > offset else end
        found.append((True, hole - offset, offset))
        offset = hole
    return found


def data_run(fd: int, offset: int, length: int) -> tuple[bool, int]:
    """(whether there is data at *offset*, bytes of the run, at most *length*); by SEEK_DATA and SEEK_HOLE.

    File systems that can't tell count as all data. Uses the descriptor's position, which positional reads and writes
    ignore.
    """
    try:
        data = os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as exc:
        if exc.errno == errno.ENXIO:
            return False, length
        return True, length
    if data > offset:
        return False, min(data - offset, length)
    try:
        hole = os.lseek(fd, offset, os.SEEK_HOLE)
    except OSError:
        return True, length
    if hole <= offset:
        return True, length
    return True, min(hole - offset, length)
