"""The memory of a virtual machine, as far as its process shares it."""

from __future__ import annotations

import contextlib
import mmap
import os
from typing import NamedTuple


class BadAddress(Exception):
    """The other side named memory that it does not share."""


class _Region(NamedTuple):
    guest: int
    size: int
    user: int
    offset: int
    """Where the region begins in the mapping."""
    mapping: mmap.mmap
    view: memoryview


class GuestMemory:
    """Mapped regions. Addresses are the guest's, or (rings) those of the process that shares."""

    def __init__(self) -> None:
        self._regions: list[_Region] = []

    def add(self, guest: int, size: int, user: int, offset: int, fd: int) -> None:
        """Map a region of the file *fd*. Errors: BadAddress, OSError."""
        if not size or offset + size > os.fstat(fd).st_size or max(guest, user) + size >= 1 << 64:
            raise BadAddress("a region that its file does not hold")
        mapping = mmap.mmap(fd, offset + size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._regions.append(_Region(guest, size, user, offset, mapping, memoryview(mapping)))

    def at(self, address: int, length: int) -> memoryview:
        """*length* bytes at a guest address. Errors: BadAddress."""
        for region in self._regions:
            start = address - region.guest
            if start >= 0 and start + length <= region.size:
                start += region.offset
                return region.view[start : start + length]
        raise BadAddress(f"guest address {address:#x}, {length} bytes")

    def at_user(self, address: int, length: int) -> memoryview:
        """The same at an address of the other process."""
        for region in self._regions:
            start = address - region.user
            if start >= 0 and start + length <= region.size:
                start += region.offset
                return region.view[start : start + length]
        raise BadAddress(f"address {address:#x}, {length} bytes")

    def close(self) -> None:
        """Let go of the memory, once nobody holds a part of it."""
        for region in self._regions:
            with contextlib.suppress(BufferError):  # a part still held keeps its mapping
                region.view.release()
                region.mapping.close()
        self._regions = []
