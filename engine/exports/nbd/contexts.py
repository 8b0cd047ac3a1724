"""Metadata contexts: what BLOCK_STATUS tells of a range, as extents (length, flags). Any thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.graph.driver import Status
from engine.graph.status import allocated_above, status_above
from engine.nbd.protocol import MAX_EXTENTS, STATE_DIRTY, STATE_HOLE, STATE_ZERO

if TYPE_CHECKING:
    from engine.bitmaps.dirty import DirtyBitmap
    from engine.graph.backend import BlockBackend

BASE_ALLOCATION = "base:allocation"
ALLOCATION_DEPTH = "qemu:allocation-depth"
DIRTY_BITMAP = "qemu:dirty-bitmap:"
_DATA, _ZERO = int(Status.DATA), int(Status.ZERO)

Runs = Iterator[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Context:
    """A metadata context of an export. runs: (offset, length) -> what is there, piece by piece; inside the door."""

    id: int
    name: str
    runs: Callable[[int, int], Runs]

    def extents(self, offset: int, length: int, one: bool) -> list[int]:
        """Length, flags, length, flags, ... of the range from *offset* on; only the first extent if *one*.

        Neighbours of the same flags are one extent. It ends early when there are too many. Errors: OSError.
        """
        most = 2 if one else 2 * MAX_EXTENTS
        found: list[int] = []
        for run, flags in self.runs(offset, length):
            if found and found[-1] == flags:
                found[-2] += run
            elif len(found) == most:
                break
            else:
                found += (run, flags)
        return found


def base_allocation(backend: BlockBackend) -> Callable[[int, int], Runs]:
    """Where there are holes and zeros."""

    def runs(offset: int, length: int) -> Runs:
        node = backend.node
        while length:
            extent, _ = status_above(node, None, offset, length)
            run, flags = min(extent.length, length), extent.flags
            yield run, (0 if flags & _DATA else STATE_HOLE) | (STATE_ZERO if flags & _ZERO else 0)
            offset += run
            length -= run

    return runs


def allocation_depth(backend: BlockBackend) -> Callable[[int, int], Runs]:
    """Which layer of the chain decides the content: 1 is the top, 0 none."""

    def runs(offset: int, length: int) -> Runs:
        node = backend.node
        while length:
            depth, run = allocated_above(node, None, False, offset, length)
            run = min(run, length)
            yield run, depth
            offset += run
            length -= run

    return runs


def dirty_bitmap(bitmap: DirtyBitmap) -> Callable[[int, int], Runs]:
    """Where a bitmap is dirty."""

    def runs(offset: int, length: int) -> Runs:
        end = offset + length
        while offset < end:
            area = bitmap.next_area(offset, end)
            start, dirty = area if area is not None else (end, 0)
            if start > offset:
                yield start - offset, 0
            if dirty:
                yield dirty, STATE_DIRTY
            offset = start + dirty

    return runs


def matching(contexts: list[Context], query: str, *, listing: bool) -> list[Context]:
    """The contexts that a client's query means; what is unknown means none. Wildcards count when *listing*."""
    if listing and query in ("base:", "qemu:"):
        return [context for context in contexts if context.name.startswith(query)]
    if listing and query == DIRTY_BITMAP:
        return [context for context in contexts if context.name.startswith(DIRTY_BITMAP)]
    return [context for context in contexts if context.name == query]
