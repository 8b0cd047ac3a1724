"""Bytes from one host file to another, by whatever is fastest where the two files lie.

Where the filesystem can share blocks or has its server copy (btrfs, XFS, NFS, CIFS and so on), copy_file_range does
that. On the others, and from one to another, that call goes from page to page of the host's cache, if it works at all:
one large read and one large write are up to half as fast again, the more so on two processors, and one write serves
data that many reads brought.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from collections import deque
from collections.abc import Callable
from typing import Final

from engine.copying import helpers
from engine.copying.helpers import BUFFER
from engine.graph.node import Node

_EXT4_MAGIC, _TMPFS_MAGIC = 0xEF53, 0x01021994
_BY_PAGES: Final = frozenset({_EXT4_MAGIC, _TMPFS_MAGIC})
"""Filesystems (f_type of statfs(2)) whose copy_file_range was measured to go from page to page."""
_NOT_IN_KERNEL: Final = frozenset(
    {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.ETXTBSY, errno.EPERM}
)

Read = tuple[int, int, int]
"""(descriptor, offset, bytes)"""
Unit = tuple[int, int, list[Read]]
"""(descriptor, offset, what is to be written there: at most BUFFER bytes)"""


class HostCopy:
    """Moves runs of bytes between the host files of protocol nodes; one thread at a time.

    move() may only note what is to be copied: finish() copies it, with a helper's thread where there is much, forget()
    drops it after an error.
    """

    def __init__(self) -> None:
        self._in_kernel: dict[tuple[int, int], bool] = {}
        self._units: list[Unit] = []
        self._end = -1, -1, 0
        """Where the last unit ends: descriptor, offset, bytes that it still takes."""

    def move(self, source: Node, offset: int, to: Node, to_offset: int, length: int) -> None:
        """Copy *length* bytes. Errors: OSError (either file's; ENODATA when the source ends inside the run)."""
        from_fd, to_fd = _descriptor(source), _descriptor(to)
        pair = id(source), id(to)
        in_kernel = self._in_kernel.get(pair)
        if in_kernel is None:
            in_kernel = self._in_kernel[pair] = not copies_by_pages(to_fd)
        if in_kernel:
            try:
                _in_kernel(from_fd, offset, to_fd, to_offset, length)
            except OSError as exc:
                if exc.errno not in _NOT_IN_KERNEL:
                    raise
                self._in_kernel[pair] = False
            else:
                return
        last_fd, last, room = self._end
        if last_fd != to_fd or last != to_offset:
            room = 0
        while length:
            if not room:
                # Full units end where the target's offset is a multiple of their size.
                room = BUFFER - to_offset % BUFFER
                self._units.append((to_fd, to_offset, []))
            size = min(room, length)
            self._units[-1][2].append((from_fd, offset, size))
            offset += size
            to_offset += size
            room -= size
            length -= size
        self._end = to_fd, to_offset, room

    def finish(self) -> None:
        """Copy what is noted. Errors: OSError, as of move()."""
        todo = deque(self._units)
        self.forget()
        helpers.host.share(todo, _copy_unit)

    def forget(self) -> None:
        """Drop what is noted."""
        self._units = []
        self._end = -1, -1, 0


write_at = os.pwrite
"""Every write of a copy that the kernel does not do by itself."""


def _copy_unit(unit: Unit) -> None:
    fd, offset, reads = unit
    with helpers.scratch() as buffer:
        filled = 0
        for from_fd, at, size in reads:
            end = filled + size
            while filled < end:
                got = os.preadv(from_fd, [buffer[filled:end]], at)
                if not got:
                    # What follows reads as zeros, which a read of the node will bring.
                    raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
                filled += got
                at += got
        written = 0
        while written < filled:
            written += write_at(fd, buffer[written:filled], offset + written)


def _descriptor(node: Node) -> int:
    fd = node.driver.host_fd()
    if fd is None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    return fd


def _in_kernel(from_fd: int, offset: int, to_fd: int, to_offset: int, length: int) -> None:
    while length:
        done = os.copy_file_range(from_fd, to_fd, length, offset, to_offset)
        if not done:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        offset += done
        to_offset += done
        length -= done


@functools.cache
def _libc_fstatfs() -> Callable[[int, ctypes.Array[ctypes.c_long]], int]:
    function: Callable[[int, ctypes.Array[ctypes.c_long]], int] = ctypes.CDLL(None).fstatfs
    return function


def copies_by_pages(descriptor: int) -> bool:
    """Whether copy_file_range has no better way to copy into that file than from page to page."""
    # f_type is the first member of struct statfs, a long; the whole takes 120 bytes, or less.
    place = (ctypes.c_long * 32)()
    return _libc_fstatfs()(descriptor, place) == 0 and place[0] in _BY_PAGES
