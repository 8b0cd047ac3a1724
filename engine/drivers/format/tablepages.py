"""Lookup tables of 64-bit entries, read page by page: however long a header says they are, memory stays bounded."""

from __future__ import annotations

import errno
import os
import sys
import threading
from array import array
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from engine.drivers.format.qcow2.storage import Child

PAGE: Final = 65536
"""Bytes read at a time; pages begin at multiples of it in the file."""
MAX_PAGES: Final = 256
ENTRY: Final = 8


class TablePages:
    """Entries of tables in *file* by their offset there, in bytes. Changes reach the file at once.

    All changes of tables have to go through put(), for a page may hold several tables. Any thread.
    """

    def __init__(self, file: Child, byteorder: Literal["little", "big"]) -> None:
        self._file = file
        self._swap = byteorder != sys.byteorder
        self._pages: OrderedDict[int, array[int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, offset: int) -> int:
        """The entry at *offset*. Errors: OSError; EINVAL if it is not aligned."""
        return self.entries(offset, 1)[0]

    def entries(self, offset: int, count: int) -> array[int]:
        """The entry at *offset*, and as many of the *count* from there on as lie in the same page. Errors: OSError."""
        if offset % ENTRY:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        start = offset & -PAGE
        first = (offset - start) // ENTRY
        with self._lock:
            page = self._pages.get(start)
            if page is None:
                page = self._load(start)
            else:
                self._pages.move_to_end(start)
            return page[first : first + count]

    def _load(self, start: int) -> array[int]:
        buffer = bytearray(PAGE)
        self._file.read(start, memoryview(buffer))
        page = array("Q", bytes(buffer))
        if self._swap:
            page.byteswap()
        while len(self._pages) >= MAX_PAGES:
            self._pages.popitem(last=False)
        self._pages[start] = page
        return page

    def put(self, offset: int, entries: array[int]) -> None:
        """Write *entries* at *offset*, a multiple of 8. Errors: OSError; then the old ones count, here."""
        raw = entries
        if self._swap:
            raw = entries[:]
            raw.byteswap()
        with self._lock:
            self._file.write(offset, memoryview(raw.tobytes()))
            done = 0
            while done < len(entries):
                at = offset + done * ENTRY
                start = at & -PAGE
                first = (at - start) // ENTRY
                run = min(len(entries) - done, PAGE // ENTRY - first)
                page = self._pages.get(start)
                if page is not None:
                    page[first : first + run] = entries[done : done + run]
                done += run

    def forget(self) -> None:
        """Drop all pages: the file was changed by others."""
        with self._lock:
            self._pages.clear()
