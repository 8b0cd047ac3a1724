"""preallocate: makes a growing file longer than asked for, ahead of time, in few large steps.

What is ahead is cut off again when nobody writes and resizes any more. Rules as in QEMU's block/preallocate.c.
"""

from __future__ import annotations

import logging
import threading

from engine.errors import GenericError
from engine.graph.driver import FilterDriver, Opening, Prealloc, ReopenState, WriteFlag, register
from engine.graph.edge import Edge
from engine.graph.options import BlockdevOptionsGenericFormat
from engine.graph.permissions import Perm, Role, default_child_permissions
from engine.qapi import Int

log = logging.getLogger("engine")

SECTOR = 512
_NO_FALLBACK = int(WriteFlag.NO_FALLBACK)


class BlockdevOptionsPreallocate(BlockdevOptionsGenericFormat):
    """prealloc_align: the file's length is a multiple of this, bytes (1 MiB). prealloc_size: bytes ahead (128 MiB)."""

    prealloc_align: Int | None = None
    prealloc_size: Int | None = None


def _writes_and_resizes(perm: Perm) -> bool:
    return perm & Perm.WRITE != 0 and perm & Perm.RESIZE != 0


def _round_up(value: int, align: int) -> int:
    return -(-value // align) * align


@register
class PreallocateDriver(FilterDriver):
    """The preallocate filter.

    Three places are known while somebody above may write and resize (else, and before the first look, they are None):
    _data_end: where the user's data end, which is the node's length. _file_end: the child's length. What is between is
    zeros put there ahead of time; _zero_start, at or before _data_end: from here on there are only zeros.
    """

    name = "preallocate"
    Options = BlockdevOptionsPreallocate
    mutable_when_given = frozenset({"prealloc-align", "prealloc-size"})

    file: Edge
    align: int
    size: int
    _data_end: int | None = None
    _zero_start: int | None = None
    _file_end: int | None = None

    def open(self, opening: Opening) -> None:
        self._lock = threading.RLock()
        file = opening.open_child("file", Role.FILTERED | Role.PRIMARY)
        assert file is not None
        self.file = file
        self.align, self.size = self._checked(opening.options)

    def _checked(self, options: BlockdevOptionsPreallocate) -> tuple[int, int]:
        """(align, size) in bytes. Errors: GenericError."""
        align = 1 << 20 if options.prealloc_align is None else options.prealloc_align
        size = 128 << 20 if options.prealloc_size is None else options.prealloc_size
        for name, value in (("prealloc-align", align), ("prealloc-size", size)):
            if value < 0:
                raise GenericError(f"Parameter '{name}' expects a non-negative number below 2^64")
        if not align or align % SECTOR:
            raise GenericError(f"prealloc-align parameter of preallocate filter is not aligned to {SECTOR}")
        below = self.file.child.limits.request_alignment
        if align % below:
            raise GenericError(
                "prealloc-align parameter of preallocate filter is not aligned to underlying node request alignment "
                f"({below})"
            )
        return align, size

    def close(self) -> None:
        try:
            self._cut()
        except (OSError, GenericError):
            log.exception("preallocate %s: the space ahead was not given back", self.node.name)

    def reopen_prepare(self, state: ReopenState) -> None:
        if state.options is not None:
            state.prepared = self._checked(state.options)

    def reopen_commit(self, state: ReopenState) -> None:
        if state.prepared is not None:
            self.align, self.size = state.prepared

    # -- permissions -----------------------------------------------------------------------------------------

    def child_permissions(self, edge: Edge, perm: Perm, shared: Perm, *, writable: bool) -> tuple[Perm, Perm]:
        taken, given = default_child_permissions(edge.role, perm, shared, writable=writable)
        if _writes_and_resizes(perm):
            # Were anybody else to write or resize, the places known would be wrong.
            given &= ~(Perm.WRITE | Perm.RESIZE)
        return taken, Perm(given)

    def check_permissions(self, perm: Perm, shared: Perm, *, writable: bool) -> None:
        if not _writes_and_resizes(perm):
            # Now, as long as the child may still be resized.
            try:
                self._cut()
            except (OSError, GenericError) as exc:
                self._file_end = None
                raise GenericError("Failed to drop preallocation") from exc

    def set_permissions(self, perm: Perm, shared: Perm) -> None:
        with self._lock:
            if not _writes_and_resizes(perm):
                self._data_end = self._zero_start = self._file_end = None
            elif self._data_end is None:
                self._data_end = self._zero_start = self._file_end = self.file.length

    @property
    def _exclusive(self) -> bool:
        return _writes_and_resizes(self.file.perm)

    def _cut(self) -> None:
        """Cut off what lies ahead of the data. Errors: OSError, GenericError."""
        with self._lock:
            if self._data_end is None:
                return
            # Images end with a whole sector.
            end = self._data_end if self.file.child.driver.is_protocol else -(-self._data_end // SECTOR) * SECTOR
            if self._known_file_end() > end:
                self.file.truncate(end)
                self._file_end = end

    def _known_file_end(self) -> int:
        end = self._file_end
        if end is None:
            end = self._file_end = self.file.length
        return end

    # -- data plane ------------------------------------------------------------------------------------------

    @property
    def length(self) -> int:
        end = self._data_end
        return self.file.length if end is None else end

    @length.setter
    def length(self, value: int) -> None:
        """The length follows from the child's and what was written."""

    def write(self, offset: int, data: memoryview, flags: int = 0) -> None:
        self._go_ahead(offset, offset + len(data), False)
        self.file.write(offset, data, flags)

    def write_zeroes(self, offset: int, length: int, flags: int = 0) -> None:
        if not self._go_ahead(offset, offset + length, not flags & ~_NO_FALLBACK):
            self.file.write_zeroes(offset, length, flags)

    def _go_ahead(self, offset: int, end: int, zeros: bool) -> bool:
        """Before a write of [offset, end): make the file longer if needed. True: the range is *zeros* already."""
        known, zero_start = self._data_end, self._zero_start
        if known is not None and end <= known and (zeros or zero_start is None or end <= zero_start):
            return False
        with self._lock:
            if not self._exclusive:
                return False
            before = self._data_end
            if before is None:
                before = self._data_end = self._known_file_end()
            if end <= before:
                if not zeros and self._zero_start is not None:
                    # Data among zeros that were written past the end earlier.
                    self._zero_start = max(self._zero_start, end)
                return False
            zero_start = self._zero_start
            if zero_start is None or not zeros:
                zero_start = end
            try:
                return self._put_ahead(offset, before, end, zeros, zero_start)
            finally:
                # Only now: others that write below this end don't ask for the lock, and their data must not be covered
                # by zeros that come after them.
                self._zero_start = zero_start
                self._data_end = end

    def _put_ahead(self, offset: int, before: int, end: int, zeros: bool, zero_start: int) -> bool:
        """Make the file longer for data that end at *end*, *before* until now; whether [offset, end) is zeros then."""
        # Earlier writes may be on their way still, so the file counts as long as they will make it.
        file_end = max(self._known_file_end(), before)
        if end <= file_end:
            return zeros and offset >= zero_start
        start = min(offset, file_end) if zeros else file_end
        stop = _round_up(end + self.size, self.align)
        try:
            self.file.write_zeroes(start, stop - start, _NO_FALLBACK)
        except OSError:
            # What can't be had ahead does no harm.
            self._file_end = None
            return False
        self._file_end = stop
        return zeros

    def truncate(self, length: int, *, exact: bool = True, prealloc: Prealloc = Prealloc.OFF) -> None:
        with self._lock:
            data_end = self._data_end
            if data_end is not None and length > data_end:
                if prealloc is Prealloc.FALLOC:
                    if length <= self._known_file_end():
                        # Done ahead of time.
                        self._data_end = length
                        return
                else:
                    # Otherwise "full" would not be written, "off" would not save space, and the child might shrink.
                    self._cut_for_growth()
                self._data_end = length
            try:
                self.file.truncate(length, exact=exact, prealloc=prealloc)
            except (OSError, GenericError):
                self._data_end = self._zero_start = self._file_end = None
                raise
            if self._exclusive:
                self._data_end = self._zero_start = self._file_end = length

    def _cut_for_growth(self) -> None:
        text = "preallocate-filter: failed to drop write-zero preallocation: "
        try:
            self._cut()
        except GenericError as exc:
            self._file_end = None
            raise GenericError(text + exc.desc) from exc
        except OSError as exc:
            self._file_end = None
            raise OSError(exc.errno, text + (exc.strerror or "")) from exc
