"""The flat table of simple growing formats (vdi, vpc, parallels): one 32-bit entry tells where a block of the disk is.

New entries reach the file only after the data they point to are stable, so that a cut leaves at worst leaked space.
"""

from __future__ import annotations

import sys
import threading
from array import array
from collections.abc import Callable
from typing import Protocol

from engine.graph.driver import Prealloc

PAGE = 4096
"""Bytes of the table that are written back together."""
_ENTRY = 4
_RUN_STEP = 4096
READ_STEP = 16 << 20
"""Bytes of a table read or made at a time."""


class File(Protocol):
    """What holds the image: an edge, or the back end of an image that is being made."""

    @property
    def length(self) -> int: ...

    def read(self, offset: int, buffer: memoryview) -> None: ...

    def write(self, offset: int, data: memoryview, flags: int = 0) -> None: ...

    def write_zeroes(self, offset: int, length: int, flags: int = 0) -> None: ...

    def flush(self) -> None: ...

    def truncate(self, length: int, *, exact: bool = True, prealloc: Prealloc = Prealloc.OFF) -> None: ...


class BlockTable:
    """A table of 32-bit entries at *offset* (bytes) of *file*, *byteorder* "little" or "big".

    entries may be read at any time by any thread; set() is called by one thread at a time, that which holds ``lock``.
    """

    def __init__(self, file: File, offset: int, count: int, byteorder: str) -> None:
        """Read *count* entries; the caller has checked that the file is long enough for them. Errors: OSError."""
        self._file = file
        self._offset = offset
        self._swap = byteorder != sys.byteorder
        self.entries = array("I")
        size = count * _ENTRY
        for start in range(0, size, READ_STEP):
            part = bytearray(min(size - start, READ_STEP))
            file.read(offset + start, memoryview(part))
            self.entries.frombytes(part)
        if self._swap:
            self.entries.byteswap()
        self.lock = threading.Lock()
        """Held while blocks are allocated and their first data written."""
        self._dirty: set[int] = set()
        self._write_back_lock = threading.Lock()

    def set(self, index: int, values: array[int]) -> None:
        """Change entries from *index* on. Their data must have been written, if not flushed. Under ``lock``."""
        self.entries[index : index + len(values)] = values
        first, last = index * _ENTRY // PAGE, ((index + len(values)) * _ENTRY - 1) // PAGE
        self._dirty.update(range(first, last + 1))

    def equal_run(self, index: int, limit: int) -> int:
        """How many entries from *index* on, at most *limit*, have the value of that one."""
        entries = self.entries
        value = entries[index]
        count = 1
        while count < limit:
            step = min(limit - count, _RUN_STEP)
            at = index + count
            if entries[at : at + step] == array("I", [value]) * step:
                count += step
                continue
            while entries[at] == value:
                at += 1
            return at - index
        return count

    def rising_run(self, index: int, limit: int, step: int) -> int:
        """How many entries from *index* on, at most *limit*, are each greater by *step* than the one before."""
        entries = self.entries
        count, value = 1, entries[index]
        while count < limit and entries[index + count] == value + step:
            value += step
            count += 1
        return count

    def write_back(self, before: Callable[[], None] | None = None) -> None:
        """Flush the data, write the entries that were set since, and flush again. Errors: OSError.

        before: writes what must be stable before the entries are, besides the data; called under ``lock``.
        """
        with self._write_back_lock:
            with self.lock:
                pages = {page: self._page(page) for page in sorted(self._dirty)}
                if pages and before is not None:
                    before()
                self._dirty.clear()
            try:
                self._file.flush()
                for page, data in pages.items():
                    self._file.write(self._offset + page * PAGE, memoryview(data))
                if pages:
                    self._file.flush()
            except BaseException:
                with self.lock:
                    self._dirty.update(pages)
                raise

    def _page(self, page: int) -> bytes:
        per_page = PAGE // _ENTRY
        part = self.entries[page * per_page : (page + 1) * per_page]
        if self._swap:
            part.byteswap()
        return part.tobytes()
