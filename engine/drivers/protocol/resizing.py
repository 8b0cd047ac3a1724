"""Changing the length of a host file, with the preallocation that was asked for."""

from __future__ import annotations

import os
from typing import Final

from engine.errors import GenericError
from engine.graph.driver import Prealloc

_FIRST_BLOCK: Final = 4096
"""What a file that grows from nothing holds at once, bytes."""


def resize_file(fd: int, old: int, new: int, prealloc: Prealloc) -> None:
    """Change a file's length from *old* to *new* bytes. Errors: OSError, GenericError (modes that don't fit)."""
    if prealloc is Prealloc.METADATA:
        raise GenericError("Unsupported preallocation mode 'metadata'")
    if prealloc is not Prealloc.OFF and new < old:
        raise GenericError("Preallocation can't be used for shrinking files")
    if prealloc is Prealloc.FALLOC and new > old:
        os.posix_fallocate(fd, old, new - old)
        return
    os.ftruncate(fd, new)
    if prealloc is Prealloc.OFF and new > old == 0:
        # As QEMU does: on a hole nobody can find out the alignment that direct I/O needs.
        os.pwrite(fd, bytes(min(new, _FIRST_BLOCK)), 0)
    if prealloc is Prealloc.FULL:
        zeros = memoryview(bytes(1 << 20))
        at = old
        while at < new:
            at += os.pwrite(fd, zeros[: min(len(zeros), new - at)], at)
        os.fsync(fd)
