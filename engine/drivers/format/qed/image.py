"""Reading and writing what is in a QED image."""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import threading
import time
from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from engine.drivers.format.qed.header import SIZE, Feature, Header
from engine.drivers.format.tablepages import ENTRY, TablePages

if TYPE_CHECKING:
    from engine.drivers.format.qcow2.storage import Child

_ZERO_CLUSTER: Final = 1
_BOUNCE: Final = 1 << 20
"""Up to this many bytes, a write that covers clusters in part is put together in memory."""
CHECK_DELAY: Final = 5.0
"""Seconds after the last allocating write until the image is marked clean again."""


class Kind(enum.IntEnum):
    """What a run of clusters is."""

    FOUND = 0
    ZERO = 1
    NO_CLUSTER = 2
    NO_TABLE = 3


def _invalid() -> OSError:
    return OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def write_empty_table(file: Child, offset: int, size: int) -> None:
    """Write a table of *size* bytes without entries. Errors: OSError."""
    zeros = memoryview(bytes(min(size, _BOUNCE)))
    for at in range(0, size, _BOUNCE):
        file.write(offset + at, zeros[: size - at])


class QedImage:
    """An open QED image. backing: gives the backing file as it is now, or None. All offsets in bytes; any thread.

    Clusters are only ever taken from the end of the file. Data reach the disk before what points to them: with a
    backing file by a flush, else the image is marked as to be checked.
    """

    def __init__(self, file: Child, header: Header, backing: Callable[[], Child | None], *, writable: bool) -> None:
        self.file = file
        self.header = header
        self.backing = backing
        self.writable = writable
        self.pages = TablePages(file, "little")
        self.cluster_size = header.cluster_size
        self.table_entries = header.table_bytes // ENTRY
        self.span = self.table_entries * self.cluster_size
        """Bytes of the disk that one L2 table maps."""
        self.file_size = file.length & -self.cluster_size
        self.allocating = threading.RLock()
        """Held while clusters are taken, and while the header changes."""
        self._timer = threading.Condition()
        self._due = 0.0
        self._timing = False
        self._closed = False

    # -- lookup ----------------------------------------------------------------------------------------------

    def l2_table(self, offset: int) -> int:
        """Where the L2 table for *offset* is, 0 if there is none. Errors: OSError, EINVAL for a broken entry."""
        table = self.pages.get(self.header.l1_offset + offset // self.span * ENTRY)
        if table and not self.header.table_valid(table, self.file_size):
            raise _invalid()
        return table

    def find(self, offset: int, length: int) -> tuple[Kind, int, int]:
        """(kind, host offset, bytes) of the run at *offset*, at most *length* bytes. Errors: OSError."""
        length = min(length, self.span - offset % self.span)
        table = self.l2_table(offset)
        if not table:
            return Kind.NO_TABLE, 0, length
        size = self.cluster_size
        inside = offset % size
        index = offset % self.span // size
        entries = self.pages.entries(table + index * ENTRY, -(-(inside + length) // size))
        first = entries[0]
        step = size if first > _ZERO_CLUSTER else 0
        if step and not self.header.cluster_valid(first, self.file_size):
            raise _invalid()
        count, expected = 1, first + step
        for entry in entries[1:]:
            if entry != expected or (step and entry >= self.file_size):
                break
            count += 1
            expected += step
        run = min(count * size - inside, length)
        if step:
            return Kind.FOUND, first + inside, run
        return (Kind.ZERO if first else Kind.NO_CLUSTER), 0, run

    # -- reading ---------------------------------------------------------------------------------------------

    def read(self, offset: int, buffer: memoryview) -> None:
        """Fill *buffer*. Errors: OSError."""
        at = 0
        while at < len(buffer):
            kind, host, run = self.find(offset + at, len(buffer) - at)
            part = buffer[at : at + run]
            if kind is Kind.FOUND:
                self.file.read(host, part)
            elif kind is Kind.ZERO:
                part[:] = bytes(run)
            else:
                self._read_backing(offset + at, part)
            at += run

    def _read_backing(self, offset: int, buffer: memoryview) -> None:
        backing = self.backing()
        if backing is None:
            buffer[:] = bytes(len(buffer))
        else:
            backing.read(offset, buffer)

    # -- writing ---------------------------------------------------------------------------------------------

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of *data*. Errors: OSError."""
        at = 0
        while at < len(data):
            kind, host, run = self.find(offset + at, len(data) - at)
            if kind is Kind.FOUND:
                self.file.write(host, data[at : at + run])
            else:
                with self.allocating:
                    # Somebody else may have been here in the meantime.
                    kind, host, run = self.find(offset + at, run)
                    if kind is Kind.FOUND:
                        continue
                    self._write_new(kind, offset + at, data[at : at + run])
            at += run

    def _write_new(self, kind: Kind, offset: int, data: memoryview) -> None:
        self._before_allocation()
        size = self.cluster_size
        start = offset & -size
        end = -(-(offset + len(data)) // size) * size
        host = self.allocate((end - start) // size)
        head, tail = offset - start, end - offset - len(data)
        # In clusters that are zero the backing file must not show up again.
        fill = self._fill_zero if kind is Kind.ZERO else self._read_backing
        if not (head or tail):
            self.file.write(host, data)
        elif end - start <= _BOUNCE:
            bounce = memoryview(bytearray(end - start))
            if head:
                fill(start, bounce[:head])
            bounce[head : head + len(data)] = data
            if tail:
                fill(end - tail, bounce[len(bounce) - tail :])
            self.file.write(host, bounce)
        else:
            for at, count in ((start, head), (end - tail, tail)):
                if count:
                    part = memoryview(bytearray(count))
                    fill(at, part)
                    self.file.write(host + at - start, part)
            self.file.write(host + head, data)
        if self.backing() is not None:
            self.file.flush()
        self._link(start, array("Q", range(host, host + end - start, size)))

    def _fill_zero(self, offset: int, buffer: memoryview) -> None:
        """New memory is zero already."""

    def write_zeroes(self, offset: int, length: int) -> None:
        """Make whole clusters read as zeros. Errors: OSError, ENOTSUP when the range is not made of whole ones."""
        size = self.cluster_size
        if offset % size or length % size:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        end = offset + length
        while offset < end:
            kind, host, run = self.find(offset, end - offset)
            if kind is Kind.FOUND:
                self.file.write_zeroes(host, run)
            elif kind is not Kind.ZERO:
                with self.allocating:
                    kind, _, run = self.find(offset, run)
                    if kind is Kind.FOUND:
                        continue
                    if kind is not Kind.ZERO:
                        self._before_allocation()
                        self._link(offset, array("Q", [_ZERO_CLUSTER]) * (run // size))
            offset += run

    def allocate(self, clusters: int) -> int:
        """Take *clusters* at the end of the file; returns where they begin."""
        offset = self.file_size
        self.file_size += clusters * self.cluster_size
        return offset

    def _link(self, offset: int, entries: array[int]) -> None:
        """Put *entries* for the clusters from *offset* on into the L2 table, which is made if there is none."""
        index = offset % self.span // self.cluster_size
        table = self.l2_table(offset)
        if table:
            self.pages.put(table + index * ENTRY, entries)
            return
        new = self.allocate(self.header.table_size)
        write_empty_table(self.file, new, self.header.table_bytes)
        # Pages read before the table was there must not be taken for it.
        self.pages.forget()
        self.pages.put(new + index * ENTRY, entries)
        self.file.flush()
        self.pages.put(self.header.l1_offset + offset // self.span * ENTRY, array("Q", [new]))

    # -- the header ------------------------------------------------------------------------------------------

    def write_header(self) -> None:
        """Write the fields at offset 0. Errors: OSError."""
        self.file.write(0, memoryview(self.header.encode()))

    def _before_allocation(self) -> None:
        """Mark the image as to be checked, unless flushes keep the order of writes, and have the mark go in time."""
        header = self.header
        if self.backing() is None and not header.features & Feature.NEED_CHECK:
            header.features |= Feature.NEED_CHECK
            try:
                self.write_header()
                self.file.flush()
            except BaseException:
                header.features &= ~Feature.NEED_CHECK
                raise
        if header.features & Feature.NEED_CHECK:
            self._start_timer()

    def mark_clean(self) -> None:
        """Flush, and take the mark away if there is one. Errors: OSError."""
        with self.allocating:
            if not self.writable or not self.header.features & Feature.NEED_CHECK:
                return
            self.file.flush()
            self.header.features &= ~Feature.NEED_CHECK
            try:
                self.write_header()
            except BaseException:
                self.header.features |= Feature.NEED_CHECK
                raise
            self.file.flush()

    def change_backing(self, name: bytes, raw: bool) -> None:
        """Write the backing file's name, none if it is empty. Errors: OSError."""
        old = self.header
        if name and old.compat_features:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        if len(name) > old.cluster_size * old.header_size - SIZE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with self.allocating:
            old_values = old.features, old.backing_offset, old.backing_size, old.backing_file
            features = old.features & ~int(Feature.BACKING_FILE | Feature.BACKING_RAW)
            if name:
                features |= Feature.BACKING_FILE | (Feature.BACKING_RAW if raw else 0)
            old.features, old.backing_file = int(features), name
            old.backing_offset, old.backing_size = (SIZE, len(name)) if name else (0, 0)
            try:
                self.file.write(0, memoryview(old.encode() + name))
            except BaseException:
                old.features, old.backing_offset, old.backing_size, old.backing_file = old_values
                raise

    # -- the timer -------------------------------------------------------------------------------------------

    def _start_timer(self) -> None:
        with self._timer:
            self._due = time.monotonic() + CHECK_DELAY
            if not self._timing and not self._closed:
                self._timing = True
                threading.Thread(target=self._wait_and_clean, name="qed-need-check", daemon=True).start()

    def _wait_and_clean(self) -> None:
        with self._timer:
            while not self._closed:
                left = self._due - time.monotonic()
                if left <= 0:
                    break
                self._timer.wait(left)
            self._timing = False
            if self._closed:
                return
        # What can't be written now stays marked, and is checked when the image is opened next.
        with contextlib.suppress(OSError):
            self.mark_clean()

    def close(self) -> None:
        """Stop the timer. No request is in flight."""
        with self._timer:
            self._closed = True
            self._timer.notify_all()
