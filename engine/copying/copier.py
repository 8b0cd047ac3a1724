"""The copy path: guest-visible bytes of one node into another.

Every job moves its data through a Copier. It asks block_status for runs as long as it can get, joins neighbours, goes
from host file to host file (HostCopy) where both ends are bytes of such and nothing that sees or changes requests lies
between, moves the rest by large reads and writes, and makes zeros by write_zeroes: holes are neither read nor written.

    source  a node; what a read of it would return is copied, whatever layer it comes from
    target  a Target: BackendTarget writes as any user does; PopulateTarget fills what a read returns already (stream)
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from engine.copying import helpers
from engine.copying.helpers import BUFFER
from engine.copying.host_copy import HostCopy
from engine.copying.targets import BackendTarget as BackendTarget
from engine.copying.targets import PopulateTarget as PopulateTarget
from engine.copying.targets import Target
from engine.copying.writeback import Writeback
from engine.graph.driver import FilterDriver, Status, WritePlan
from engine.graph.node import Node
from engine.graph.permissions import Perm
from engine.graph.requests import is_zero
from engine.graph.runs import DATA, HOLE, PAST, ZERO, runs_of
from engine.graph.status import resolve_host, status_above

ZERO_SPAN = 512 << 10
"""Data is looked at for zeros in pieces of this many bytes, as QEMU's stream does."""
SMALLEST_HOST_COPY = 64 << 10
"""Below this many bytes a copy by a read and a write of the nodes is as fast."""
_PEEK = 64

_DATA, _ZERO, _VALID = int(Status.DATA), int(Status.ZERO), int(Status.OFFSET_VALID)
_COMPRESSED = int(Status.COMPRESSED)
_WRITES = int(Perm.WRITE | Perm.WRITE_UNCHANGED)


class CopyError(Exception):
    """A copy failed: *error* is what the system said, *reading* which side said it."""

    def __init__(self, error: OSError, reading: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.reading = reading


@dataclass(slots=True)
class Piece:
    """*length* guest bytes at *offset*, found at *host_offset* of *host*; host None: to be read from the source."""

    offset: int
    length: int
    host: Node | None
    host_offset: int


class Copier:
    """Copies ranges from *source* to *target*; any thread, one range at a time.

    look_for_zeros: whether data that is all zero becomes a zero write (stream), in pieces of ZERO_SPAN.
    """

    def __init__(self, source: Node, target: Target, *, look_for_zeros: bool = False) -> None:
        self._source = source
        self._target = target
        self._look_for_zeros = look_for_zeros
        self._mover = HostCopy()
        self._through = False, False
        """Whether a copy may bypass what lies above source and target, while copy() runs."""
        self.host_bytes = 0
        """Bytes copied from host file to host file."""
        self._writeback = Writeback(target.node)
        self._remote = not (lies_in_host_files(source) and lies_in_host_files(target.node))

    def copy(self, offset: int, length: int) -> int:
        """Make [offset, offset + length) of the target read as the source does; returns how many bytes were no zeros.

        Nothing may drain the two meanwhile. Others may write to the source: what is copied then is a mixture, even of
        other ranges where a host cluster is used anew, so the caller has to notice and copy again (mirror), or to keep
        them out.
        """
        self._through = transparent(self._source), transparent(self._target.node)
        if all(self._through):
            pieces = self._map(offset, length)
            if len(pieces) > 1 and self._at_once(pieces, offset, length):
                return sum(piece.length for piece, kind in pieces if kind == DATA)
        data = 0
        waiting: list[Piece] = []
        for piece, zero in self._pieces(offset, length):
            if zero:
                self._flush_pieces(waiting)
                try:
                    self._target.write_zeroes(piece.offset, piece.length)
                except OSError as exc:
                    raise CopyError(exc, False) from exc
            else:
                data += piece.length
                waiting.append(piece)
        self._flush_pieces(waiting)
        return data

    # -- what is there? --------------------------------------------------------------------------------------

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[Piece, bool]]:
        """(piece, whether it is zero) in order; neighbouring zeros come as one."""
        zero_start, end = offset, offset + length
        at = offset
        zeros = False
        for piece, zero in self._split(offset, length):
            if zero:
                if not zeros:
                    zeros, zero_start = True, piece.offset
            else:
                if zeros:
                    yield Piece(zero_start, piece.offset - zero_start, None, 0), True
                    zeros = False
                yield piece, False
            at = piece.offset + piece.length
        if zeros:
            yield Piece(zero_start, at - zero_start, None, 0), True
        assert at == end

    def _split(self, offset: int, length: int) -> Iterator[tuple[Piece, bool]]:
        source = self._source
        direct = self._through[0]
        end = offset + length
        while offset < end:
            try:
                extent, _ = status_above(source, None, offset, end - offset)
            except OSError as exc:
                raise CopyError(exc, True) from exc
            if extent.flags & _ZERO:
                yield Piece(offset, extent.length, None, 0), True
                offset += extent.length
                continue
            host: Node | None = None
            host_offset, run = 0, extent.length
            if direct and extent.flags & _VALID and not extent.flags & _COMPRESSED:
                found = resolve_host(extent)
                run = found.length
                if found.flags & _VALID and found.node is not None and found.node.driver.host_fd() is not None:
                    host, host_offset = found.node, found.offset
            yield from self._data(Piece(offset, run, host, host_offset))
            offset += run

    def _data(self, piece: Piece) -> Iterator[tuple[Piece, bool]]:
        if not self._look_for_zeros or piece.host is None:
            yield piece, False
            return
        at, end = piece.offset, piece.offset + piece.length
        start = at
        while at < end:
            step = min(ZERO_SPAN - at % ZERO_SPAN, end - at)
            if self._reads_zero(piece.host, piece.host_offset + at - piece.offset, step):
                if start < at:
                    yield Piece(start, at - start, piece.host, piece.host_offset + start - piece.offset), False
                yield Piece(at, step, None, 0), True
                start = at + step
            at += step
        if start < end:
            yield Piece(start, end - start, piece.host, piece.host_offset + start - piece.offset), False

    @staticmethod
    def _reads_zero(host: Node, offset: int, length: int) -> bool:
        # Most data shows at its first bytes that it isn't zero; only what might be is read whole.
        with helpers.scratch() as buffer:
            try:
                head = buffer[: min(_PEEK, length)]
                host.driver.read(offset, head)
                if not is_zero(head):
                    return False
                whole = buffer[:length]
                host.driver.read(offset, whole)
            except OSError as exc:
                raise CopyError(exc, True) from exc
            return is_zero(whole)

    # -- many pieces at once ---------------------------------------------------------------------------------

    def copy_decided(self, offset: int, length: int, bottom: Node, *, keep_past: bool = False) -> int | None:
        """Copy what the layers from the source down to *bottom* decide in the range, and leave the rest alone.

        keep_past: so too what is zero for being past the end of a short layer. Returns how many bytes there were to
        copy. None where that can't be done in one go, or where there is but one run: nothing has changed then. Errors:
        CopyError, as for copy().
        """
        self._through = transparent(self._source), transparent(self._target.node)
        if not all(self._through):
            return None
        pieces = self._map(offset, length, bottom, keep_past)
        if len(pieces) < 2 or not self._at_once(pieces, offset, length):
            return None
        return sum(piece.length for piece, kind in pieces if kind != HOLE)

    def copy_areas(self, areas: Sequence[tuple[int, int]]) -> int | None:
        """As copy() for several ranges, in order: (offset, bytes). Returns how many bytes were no zeros.

        None where that can't be done in one go: nothing has changed then. Errors: CopyError.
        """
        self._through = transparent(self._source), transparent(self._target.node)
        if not all(self._through):
            return None
        pieces: list[tuple[Piece, int]] = []
        at = start = areas[0][0]
        for offset, length in areas:
            if offset > at:
                pieces.append((Piece(at, offset - at, None, 0), HOLE))
            found = self._map(offset, length)
            if not found:
                return None
            pieces += found
            at = offset + length
        if not self._at_once(pieces, start, at - start):
            return None
        return sum(piece.length for piece, kind in pieces if kind == DATA)

    def _map(
        self, offset: int, length: int, bottom: Node | None = None, keep_past: bool = False
    ) -> list[tuple[Piece, int]]:
        """(piece, HOLE, ZERO or DATA) in order, found in one go; neighbours alike that are no data come as one.

        HOLE: no layer down to *bottom* decides; without a *bottom* that is ZERO. Nothing where it does not work, or
        some data are in no host file.
        """
        try:
            runs = runs_of(self._source, bottom, offset, length)
        except OSError as exc:
            raise CopyError(exc, True) from exc
        pieces: list[tuple[Piece, int]] = []
        at, last = offset, DATA
        for size, kind, host, place in runs or ():
            if kind == DATA:
                if host is None:
                    return []
                parts = [(piece, ZERO if zero else DATA) for piece, zero in self._data(Piece(at, size, host, place))]
            elif kind == PAST:
                parts = [(Piece(at, size, None, 0), HOLE if keep_past else ZERO)]
            else:
                parts = [(Piece(at, size, None, 0), ZERO if bottom is None else kind)]
            for part in parts:
                if part[1] == last != DATA:
                    pieces[-1][0].length += part[0].length
                else:
                    pieces.append(part)
                    last = part[1]
            at += size
        return pieces

    def _at_once(self, pieces: list[tuple[Piece, int]], offset: int, length: int) -> bool:
        """Copy data and zeros that take turns by one plan; False: nothing visible has changed."""
        data = [piece for piece, kind in pieces if kind == DATA]
        if not data or len(data) == len(pieces):
            return False
        target = self._target
        runs = [(piece.length, kind) for piece, kind in pieces]
        if not self._by_plan(lambda: target.plan_runs(offset, runs), data, offset, length):
            return False
        for piece, kind in pieces:
            if kind != HOLE:
                target.placed(piece.offset, piece.length)
        self._moved(sum(piece.length for piece in data))
        return True

    def _by_plan(self, make: Callable[[], WritePlan | None], pieces: list[Piece], offset: int, length: int) -> bool:
        """Have a plan made for the range and copy *pieces* by it; False: nothing visible has changed."""
        with self._target.holding(offset, length):
            try:
                plan = make()
            except OSError as exc:
                raise CopyError(exc, False) from exc
            if plan is None or not self._carry_out(plan, pieces, offset, offset + length):
                return False
        for host, host_offset, size in plan.extents:
            host.after_host_write(host_offset, size)
        return True

    def _moved(self, length: int) -> None:
        self.host_bytes += length
        self._writeback.wrote(length)

    def _carry_out(self, plan: WritePlan, pieces: list[Piece], start: int, stop: int) -> bool:
        """Copy into the plan's extents and commit it; False where that can't be: the plan is aborted."""
        try:
            # The host's own plan takes a grown file's new length over; what was just written would read as zeros.
            ends: dict[int, tuple[Node, int, int]] = {}
            for extent in plan.extents:
                if id(extent[0]) not in ends or extent[1] > ends[id(extent[0])][1]:
                    ends[id(extent[0])] = extent
            inner = [part for host, at, size in ends.values() if (part := host.driver.begin_write(at, size))]
            if len(inner) != len(ends):
                raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
            self._copy_extents(pieces, plan, start, stop)
            for part in inner:
                part.commit()
        except OSError:
            # It can't be done or it failed: the way through the nodes works, or tells which side is at fault.
            plan.abort()
            return False
        except BaseException:
            plan.abort()
            raise
        finally:
            self._mover.forget()
        for host, _, _ in ends.values():
            mark_unflushed_between(self._target.node, host)
        try:
            plan.commit()
        except OSError as exc:
            raise CopyError(exc, False) from exc
        return True

    # -- moving it -------------------------------------------------------------------------------------------

    def _flush_pieces(self, pieces: list[Piece]) -> None:
        """Copy neighbouring pieces, as many at once as go the same way."""
        at = 0
        while at < len(pieces):
            upto = at + 1
            in_files = pieces[at].host is not None
            while upto < len(pieces) and (pieces[upto].host is not None) == in_files:
                upto += 1
            self._move(pieces[at:upto], in_files)
            at = upto
        pieces.clear()

    def _move(self, group: list[Piece], in_files: bool) -> None:
        start, end = group[0].offset, group[-1].offset + group[-1].length
        # The target takes whole clusters placed in its file; what is left at either end goes through the buffer.
        cluster = extent_cluster(self._target.node) if in_files else 1
        first = -(-start // cluster) * cluster
        last = end if end == self._target.node.length else end - end % cluster
        if in_files and last - first >= SMALLEST_HOST_COPY and self._in_files(group, first, last - first):
            if start < first:
                self._by_buffer(start, first - start)
            if last < end:
                self._by_buffer(last, end - last)
        else:
            self._by_buffer(start, end - start)

    def _in_files(self, pieces: list[Piece], offset: int, length: int) -> bool:
        """Copy from host file to host file; False when that does not work here, nothing visible has changed then."""
        target = self._target
        if not self._through[1] or not self._by_plan(lambda: target.plan(offset, length), pieces, offset, length):
            return False
        target.placed(offset, length)
        self._moved(length)
        return True

    def _copy_extents(self, pieces: list[Piece], plan: WritePlan, start: int, end: int) -> None:
        extents = iter(plan.extents)
        to_node, to_offset, room = next(extents)
        for piece in pieces:
            at, stop = max(piece.offset, start), min(piece.offset + piece.length, end)
            while at < stop:
                if not room:
                    to_node, to_offset, room = next(extents)
                    continue
                size = min(room, stop - at)
                assert piece.host is not None
                self._mover.move(piece.host, piece.host_offset + at - piece.offset, to_node, to_offset, size)
                at += size
                to_offset += size
                room -= size
        self._mover.finish()

    def _by_buffer(self, offset: int, length: int) -> None:
        end = offset + length
        span = ZERO_SPAN if self._look_for_zeros else BUFFER
        # Steps end at multiples of the span, whatever the range begins with: whole clusters are written at once.
        steps: deque[tuple[int, int]] = deque()
        while offset < end:
            size = min(span - offset % span, end - offset)
            steps.append((offset, size))
            offset += size
        if self._remote:
            helpers.remote.share(steps, self._by_requests)
        else:
            for step in steps:
                self._by_requests(step)
        self._writeback.wrote(length)

    def _by_requests(self, step: tuple[int, int]) -> None:
        """Read and write (offset, bytes)."""
        offset, size = step
        with helpers.scratch() as buffer:
            part = buffer[:size]
            try:
                self._source.read(offset, part)
            except OSError as exc:
                raise CopyError(exc, True) from exc
            try:
                if self._look_for_zeros and is_zero(part):
                    self._target.write_zeroes(offset, size)
                else:
                    self._target.write(offset, part)
            except OSError as exc:
                raise CopyError(exc, False) from exc


def transparent(node: Node) -> bool:
    """Whether no filter at or below *node* has to see each request (throttling, fault injection, quorum …).

    Filters that only hold permissions or fill layers say so by ``sees_no_data``.
    """
    return not any(
        isinstance(each.driver, FilterDriver) and not getattr(each.driver, "sees_no_data", False)
        for each in _subtree(node)
    )


def lies_in_host_files(node: Node) -> bool:
    """Whether all that is below *node* are files of the host, so that more threads than processors gain nothing."""
    return all(each.children or each.driver.host_fd() is not None for each in _subtree(node))


def _subtree(node: Node) -> Iterator[Node]:
    seen: set[int] = set()
    stack = [node]
    while stack:
        current = stack.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        stack.extend(edge.child for edge in list(current.children.values()))


def mark_unflushed_between(node: Node, host: Node) -> None:
    """Data was placed in *host*, below *node*: a flush of *node* has to reach it through every node between."""
    node.mark_unflushed()
    if node is host:
        return
    for edge in list(node.children.values()):
        if edge.perm.value & _WRITES:
            mark_unflushed_between(edge.child, host)


def extent_cluster(node: Node) -> int:
    """Bytes to which copies into *node* are best aligned: its cluster size, 1 when it has none."""
    info = node.driver.info()
    return info.cluster_size if info is not None and info.cluster_size else 1
