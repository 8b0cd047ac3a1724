"""Write-blocking mirrors: a guest's write goes to the source and to the target before it is answered.

The job's filter hands every write to ActiveWrites. Ranges, whole granules, are held while they are written and while
the job copies them, so that neither undoes the other. A write that can't go to the target now only marks its granules
dirty: the copy in the background brings it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

from engine.bitmaps.dirty import DirtyBitmap
from engine.graph.backend import BlockBackend
from engine.graph.driver import WriteFlag
from engine.graph.node import Node
from engine.graph.ranges import RangeLock

_FUA, _MAY_UNMAP = int(WriteFlag.FUA), int(WriteFlag.MAY_UNMAP)


class _Gate:
    """Lets writes to the target through, except while it is closed; nobody ever waits to get in."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._closed = 1
        self._inside = 0

    def enter(self) -> bool:
        """Whether the caller is inside now; then leave() follows."""
        with self._changed:
            if self._closed:
                return False
            self._inside += 1
            return True

    def leave(self) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed += 1

    def open(self) -> None:
        with self._changed:
            self._closed -= 1

    def wait_empty(self) -> None:
        with self._changed:
            while self._inside:
                self._changed.wait()


class ActiveWrites:
    """The write path of one write-blocking mirror. Methods run in any thread.

    whole_clusters: bytes that the target must get at once (its cluster size where it will have a backing image that it
    has not yet: a smaller write would fill the rest of the cluster with zeros); 1 when any write may go there. Smaller
    writes take the rest of their clusters along.
    moved: told of the bytes that reached the target. failed: told of an error of the target; the granules are dirty.
    """

    def __init__(
        self,
        source: Node,
        target: BlockBackend,
        bitmap: DirtyBitmap,
        whole_clusters: int,
        moved: Callable[[int], None],
        failed: Callable[[OSError], None],
    ) -> None:
        self._source = source
        self._target = target
        self._bitmap = bitmap
        self._whole = whole_clusters
        self._span = max(bitmap.granularity, whole_clusters)
        self._moved = moved
        self._failed = failed
        self._ranges = RangeLock()
        self._local = threading.local()
        self._gate = _Gate()

    # -- control plane and job ------------------------------------------------------------------------------

    def attach(self) -> None:
        """See the source's writes. Those that do not come through the filter are marked dirty."""
        self._source.trackers = (self, *self._source.trackers)

    def detach(self) -> None:
        """See them no more, and send nothing to the target again. Control plane; the source is drained."""
        self._gate.close()
        self._source.trackers = tuple(tracker for tracker in self._source.trackers if tracker is not self)

    def begin(self) -> None:
        """From now on writes go to the target; before they only marked their granules."""
        self._gate.open()

    def drained_begin(self) -> None:
        self._gate.close()

    def drained_wait(self) -> None:
        """Wait until no write to the target is in flight. What is inside does not need the control plane."""
        self._gate.wait_empty()

    def drained_end(self) -> None:
        self._gate.open()

    def holding(self, offset: int, length: int) -> AbstractContextManager[None]:
        """Keeps guests from writing to the range while the job copies it."""
        start, stop = self._outwards(offset, offset + length)
        return self._ranges.hold(start, stop - start)

    def _outwards(self, start: int, stop: int) -> tuple[int, int]:
        span = self._span
        return start // span * span, -(-stop // span) * span

    def __call__(self, offset: int, length: int, /) -> None:
        """The source was written to. In a write through the filter the thread takes care of the bits itself."""
        if not getattr(self._local, "inside", False):
            self._bitmap.set(offset, length)

    # -- requests -------------------------------------------------------------------------------------------

    def write(self, to_source: Callable[[], None], offset: int, data: memoryview, flags: int) -> None:
        """A write of the guest; *to_source* does the source's part. Errors: OSError of the source only."""

        def to_target(start: int, stop: int) -> None:
            # The other flags are about the source: what changes nothing there may change the target.
            self._target.write(start, data[start - offset : stop - offset], flags & _FUA)

        self._both(to_source, to_target, offset, len(data))

    def write_zeroes(self, to_source: Callable[[], None], offset: int, length: int, flags: int) -> None:
        """A zero write of the guest."""

        def to_target(start: int, stop: int) -> None:
            self._target.write_zeroes(start, stop - start, flags & (_FUA | _MAY_UNMAP))

        self._both(to_source, to_target, offset, length)

    def _both(
        self, to_source: Callable[[], None], to_target: Callable[[int, int], None], offset: int, length: int
    ) -> None:
        end = offset + length
        first, last = self._outwards(offset, end)
        with self._ranges.hold(first, last - first):
            open_now = self._gate.enter()
            try:
                start, stop = self._claim(offset, end) if open_now else (end, end)
                self._local.inside = True
                try:
                    to_source()
                except BaseException:
                    # What is in the source now nobody knows; the copy will bring it.
                    self._bitmap.set(start, stop - start)
                    self._bitmap.set(offset, length)
                    raise
                finally:
                    self._local.inside = False
                if start < offset or stop > end:
                    self._send(self._copy_clusters, start, stop)
                elif start < stop:
                    self._send(to_target, start, stop)
                self._bitmap.set(offset, start - offset)
                self._bitmap.set(stop, end - stop)
            finally:
                if open_now:
                    self._gate.leave()

    def _claim(self, start: int, stop: int) -> tuple[int, int]:
        """The part to write to the target, whole granules of which are marked clean. The rest stays or gets dirty.

        They are so before the source is written: a write that does not come through the filter marks its granules
        after it, so whichever of the two the source got last, it is not lost.
        """
        bitmap, granule = self._bitmap, self._bitmap.granularity
        end, length = stop, self._source.length
        if self._whole > 1:
            start = start // self._whole * self._whole
            stop = min(-(-stop // self._whole) * self._whole, length)
        else:
            # A granule that is dirty has other bytes to be copied; it will be copied whole, this write with it.
            if start % granule and bitmap.get(start):
                start = -(-start // granule) * granule
            if start < stop and stop % granule and stop != length and bitmap.get(stop):
                stop = stop // granule * granule
            if start >= stop:
                return end, end
        inner = -(-start // granule) * granule
        inner_stop = stop if stop == length else stop // granule * granule
        bitmap.reset(inner, inner_stop - inner)
        return start, stop

    def _copy_clusters(self, start: int, stop: int) -> None:
        """Bring whole clusters of the source, in which the write is, to the target."""
        buffer = memoryview(bytearray(stop - start))
        self._source.read(start, buffer)
        self._target.write(start, buffer)

    def _send(self, to_target: Callable[[int, int], None], start: int, stop: int) -> None:
        try:
            to_target(start, stop)
        except OSError as exc:
            self._bitmap.set(start, stop - start)
            self._failed(exc)
        else:
            self._moved(stop - start)
