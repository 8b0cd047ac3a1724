"""quorum: several children that should hold the same data; what enough of them agree on is what is read.

Rules as in QEMU's block/quorum.c. Two differences keep data safe where QEMU has races: overlapping writes reach all
children in one order, and a disagreement is looked at again while nobody writes there before it counts.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from engine.drivers.filter.votes import Votes
from engine.errors import GenericError, os_error_text
from engine.graph.change import Transaction, attach, detach
from engine.graph.driver import Driver, Extent, Opening, Status, WriteFlag, register
from engine.graph.edge import Edge
from engine.graph.node import Node
from engine.graph.options import BlockdevRef
from engine.graph.permissions import Perm, Role
from engine.graph.ranges import RangeLock
from engine.graph.status import status_above
from engine.qapi import Enum, Int, Struct, event

log = logging.getLogger("engine")

SECTOR = 512
PARALLEL_SIZE = 512 << 10
"""From this size (bytes) on requests go to the children side by side."""
SLOW = 300e-6
"""A child that takes this many seconds for a request is worth the price of threads whatever the size."""
_SPARE_BYTES = 16 << 20
_DATA, _ZERO = int(Status.DATA), int(Status.ZERO)
_NO_FALLBACK, _COMPRESSED = int(WriteFlag.NO_FALLBACK), int(WriteFlag.COMPRESSED)


class QuorumReadPattern(Enum):
    """Read all children and vote, or read one after another until one can.

    quorum: read from all children and vote
    fifo: read from the first child that answers
    """

    QUORUM = "quorum"
    FIFO = "fifo"


class QuorumOpType(Enum):
    """The kind of request a child failed at."""

    READ = "read"
    WRITE = "write"
    FLUSH = "flush"


class BlockdevOptionsQuorum(Struct):
    """Options of quorum.

    blkverify: compare two children, and fail where they differ
    children: the nodes with the data
    vote_threshold: how many must agree
    rewrite_corrupted: overwrite what is outvoted
    read_pattern: how reads are done
    """

    blkverify: bool | None = None
    children: list[BlockdevRef]
    vote_threshold: Int
    rewrite_corrupted: bool | None = None
    read_pattern: QuorumReadPattern | None = None


@event
class QuorumFailure(Struct, name="QUORUM_FAILURE"):
    """There was no quorum.

    reference: device or node name of the quorum
    sector_num: first sector of the request
    sectors_count: its sectors
    """

    reference: str
    sector_num: Int
    sectors_count: Int


@event
class QuorumReportBad(Struct, name="QUORUM_REPORT_BAD"):
    """A child failed or was outvoted.

    type: the kind of request
    error: the system's text, if the child failed
    node_name: the child
    sector_num: first sector of the request
    sectors_count: its sectors
    """

    type: QuorumOpType
    error: str | None = None
    node_name: str
    sector_num: Int
    sectors_count: Int


def _sectors(offset: int, size: int) -> tuple[int, int]:
    """(first sector, number of sectors) that a range of bytes touches."""
    start = offset // SECTOR
    return start, -(-(offset + size) // SECTOR) - start


Outcome = list[OSError | None]
"""For each child how its request went."""


class _Contents:
    """What each child has in one range. The first reader's goes straight into the caller's *buffer*."""

    def __init__(self, spare: list[bytearray], buffer: memoryview) -> None:
        self.buffer = buffer
        self._spare = spare
        self._in_buffer = -1
        self._copies: dict[int, bytearray] = {}

    def prepare(self, readers: list[int]) -> None:
        """Have room for what *readers* will read."""
        size = len(self.buffer)
        self._in_buffer = readers[0]
        for number in readers[1:]:
            if number not in self._copies:
                try:
                    copy = self._spare.pop()
                except IndexError:
                    copy = bytearray()
                # Fresh memory costs page faults, hence buffers are used again.
                self._copies[number] = copy if len(copy) == size else bytearray(size)

    def target(self, number: int) -> memoryview:
        """Where to put what *number* reads."""
        return self.buffer if number == self._in_buffer else memoryview(self._copies[number])

    def of(self, number: int) -> memoryview | bytearray:
        return self.buffer if number == self._in_buffer else self._copies[number]

    def agree(self, readers: list[int]) -> bool:
        # A bytearray compares with memcmp, a memoryview byte by byte.
        return all(number == self._in_buffer or self._copies[number] == self.buffer for number in readers)

    def mismatch(self, readers: list[int]) -> int:
        """The first place where two of *readers* differ."""
        a, b = self.of(readers[0]), self.of(readers[1])
        return next(place for place in range(len(a)) if a[place] != b[place])

    def choose(self, number: int) -> None:
        """Put what *number* has into the buffer."""
        if number != self._in_buffer:
            self.buffer[:] = self._copies[number]
            self._in_buffer = number

    def give_back(self) -> None:
        """Let others use the room; nothing is read any more."""
        kept = sum(map(len, self._spare))
        for copy in self._copies.values():
            kept += len(copy)
            if kept <= _SPARE_BYTES:
                self._spare.append(copy)


@register
class QuorumDriver(Driver):
    """The quorum driver."""

    name = "quorum"
    Options = BlockdevOptionsQuorum
    shows_plain_name = False
    strong_options = ("vote-threshold", "blkverify", "rewrite-corrupted", "read-pattern")
    child_options = frozenset({"children"})
    changes_children = True

    def open(self, opening: Opening) -> None:
        options: BlockdevOptionsQuorum = opening.options
        self._pool: ThreadPoolExecutor | None = None
        self._pool_lock = threading.Lock()
        self._news: dict[tuple[object, ...], QuorumReportBad | QuorumFailure] = {}
        self._news_lock = threading.Lock()
        self._ranges = RangeLock()
        self._spare: list[bytearray] = []
        self._delay = 0.0
        self.children: tuple[Edge, ...] = ()
        count = opening.child_count("children")
        if count < 1:
            raise GenericError("Number of provided children must be 1 or more")
        self.threshold = options.vote_threshold
        if self.threshold < 1:
            raise GenericError("Parameter 'vote-threshold' expects a value >= 1")
        if self.threshold > count:
            raise GenericError("threshold may not exceed children count")
        self.fifo = options.read_pattern == QuorumReadPattern.FIFO
        self.blkverify = bool(options.blkverify) and not self.fifo
        self.rewrite = bool(options.rewrite_corrupted) and not self.fifo
        if self.blkverify and (count != 2 or self.threshold != 2):
            raise GenericError("blkverify=on can only be set if there are exactly two files and vote-threshold is 2")
        if self.blkverify and self.rewrite:
            raise GenericError("rewrite-corrupted=on cannot be used with blkverify=on")
        for number in range(count):
            edge = opening.open_child(f"children.{number}", Role.DATA, probe=True)
            assert edge is not None
            self.children += (edge,)
        self._next_index = count
        self.length = self.children[0].length
        if any(edge.length != self.length for edge in self.children):
            raise GenericError(f"Could not refresh total sector count: {os.strerror(errno.EIO)}")

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def child_permissions(self, edge: Edge, perm: Perm, shared: Perm, *, writable: bool) -> tuple[Perm, Perm]:
        # Whoever else writes to or resizes one child makes it differ from the others.
        taken = perm | Perm.WRITE if self.rewrite else perm
        return taken, shared & (Perm.CONSISTENT_READ | Perm.WRITE_UNCHANGED)

    def children_options(self) -> dict[str, object]:
        # The names of the edges may have gaps; a list has none.
        return {"children": [edge.child.full_options for edge in self.children]}

    # -- children come and go --------------------------------------------------------------------------------

    def add_child(self, txn: Transaction, child: Node) -> Edge:
        if self.blkverify:
            raise GenericError("Cannot add a child to a quorum in blkverify mode")
        before, index = self.children, self._next_index

        def undo() -> None:
            self.children, self._next_index = before, index

        edge = attach(txn, self.node, child, f"children.{index}", Role.DATA)
        self.children += (edge,)
        self._next_index += 1
        txn.add(undo=undo)
        return edge

    def remove_child(self, txn: Transaction, edge: Edge) -> None:
        before, index = self.children, self._next_index
        if len(before) <= self.threshold:
            raise GenericError(f"The number of children cannot be lower than the vote threshold {self.threshold}")

        def undo() -> None:
            self.children, self._next_index = before, index

        detach(txn, edge)
        self.children = tuple(other for other in before if other is not edge)
        if edge.name == f"children.{index - 1}":
            # So names stay the same as long as only the newest child comes and goes.
            self._next_index -= 1
        txn.add(undo=undo)

    # -- one request to all children -------------------------------------------------------------------------

    def _each(self, request: Callable[[int], None], members: list[int], size: int) -> Outcome:
        """Make a request to each of *members* and wait for all; *size* in bytes tells whether threads pay."""
        first, rest = members[0], members[1:]
        outcome: Outcome = [None] * len(self.children)

        def attempt(number: int) -> None:
            try:
                request(number)
            except OSError as exc:
                outcome[number] = exc

        if rest and (size >= PARALLEL_SIZE or self._delay > SLOW):
            pool = self._threads()
            others: list[Future[None]] = [pool.submit(attempt, number) for number in rest]
            started = time.monotonic()
            attempt(first)
            took = time.monotonic() - started
            for other in others:
                other.result()
        else:
            started = time.monotonic()
            for number in members:
                attempt(number)
            took = (time.monotonic() - started) / len(members)
        if size < PARALLEL_SIZE:
            self._delay += (took - self._delay) / 8
        return outcome

    def _threads(self) -> ThreadPoolExecutor:
        pool = self._pool
        if pool is None:
            with self._pool_lock:
                pool = self._pool
                if pool is None:
                    # Its threads never wait for one another, only for nodes below.
                    pool = self._pool = ThreadPoolExecutor(16, thread_name_prefix=f"quorum-{self.node.name}")
        return pool

    # -- what went wrong -------------------------------------------------------------------------------------

    def _tell(self, news: QuorumReportBad | QuorumFailure, *about: object) -> None:
        """Have the control plane send an event. It sends only the newest of those *about* one thing when it is late."""
        key = (news.EVENT, *about)
        with self._news_lock:
            waits = key in self._news
            self._news[key] = news
        if not waits:
            self.node.graph.control.post(lambda: self._send(key))

    def _send(self, key: tuple[object, ...]) -> None:
        with self._news_lock:
            news = self._news.pop(key)
        self.node.graph.emit(news)

    def _report_bad(self, kind: QuorumOpType, number: int, offset: int, size: int, error: OSError | None) -> None:
        name = self.children[number].child.name
        text = os_error_text(error) if error is not None else None
        start, count = _sectors(offset, size)
        news = QuorumReportBad(type=kind, error=text, node_name=name, sector_num=start, sectors_count=count)
        self._tell(news, name, kind)

    def _report_failure(self, offset: int, size: int) -> None:
        start, count = _sectors(offset, size)
        self._tell(QuorumFailure(reference=self.node.device_or_node_name, sector_num=start, sectors_count=count))

    def _report_errors(self, kind: QuorumOpType, outcome: Outcome, offset: int, size: int) -> int:
        """Report the failed requests; how many there are."""
        failed = 0
        for number, error in enumerate(outcome):
            if error is not None:
                failed += 1
                self._report_bad(kind, number, offset, size, error)
        return failed

    @staticmethod
    def _voted_error(outcome: Outcome) -> OSError:
        votes: Votes[int] = Votes()
        for number, error in enumerate(outcome):
            if error is not None:
                votes.add(error.errno or errno.EIO, number)
        code, _ = votes.winner()
        return OSError(code, os.strerror(code))

    # -- reading ---------------------------------------------------------------------------------------------

    def read(self, offset: int, buffer: memoryview) -> None:
        if self.fifo:
            self._read_first(offset, buffer)
            return
        contents = _Contents(self._spare, buffer)
        try:
            readers = self._read_children(list(range(len(self.children))), contents, offset)
            if contents.agree(readers):
                return
            with self._ranges.hold(offset, len(buffer)):
                # Perhaps a write was under way; now there is none.
                readers = self._read_children(readers, contents, offset)
                if not contents.agree(readers):
                    self._vote(readers, contents, offset)
        finally:
            contents.give_back()

    def _read_first(self, offset: int, buffer: memoryview) -> None:
        last: OSError | None = None
        for number, edge in enumerate(self.children):
            try:
                edge.read(offset, buffer)
                return
            except OSError as exc:
                last = exc
                self._report_bad(QuorumOpType.READ, number, offset, len(buffer), exc)
        assert last is not None
        raise last

    def _read_children(self, readers: list[int], contents: _Contents, offset: int) -> list[int]:
        """Read each of *readers*; those that could. Errors: OSError when they are too few."""
        children, size = self.children, len(contents.buffer)
        contents.prepare(readers)
        outcome = self._each(lambda number: children[number].read(offset, contents.target(number)), readers, size)
        failed = self._report_errors(QuorumOpType.READ, outcome, offset, size)
        if len(readers) - failed < self.threshold:
            self._report_failure(offset, size)
            raise self._voted_error(outcome)
        good = [number for number in readers if outcome[number] is None]
        contents.choose(good[0])
        return good

    def _vote(self, readers: list[int], contents: _Contents, offset: int) -> None:
        buffer = contents.buffer
        size = len(buffer)
        if self.blkverify:
            # QEMU prints this and ends the whole process.
            log.error("quorum %s: contents mismatch at offset %d", self.node.name, offset + contents.mismatch(readers))
            self._report_failure(offset, size)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        votes: Votes[bytes] = Votes()
        for number in readers:
            votes.add(hashlib.sha256(contents.of(number)).digest(), number)
        opinion, voters = votes.winner()
        if len(voters) < self.threshold:
            self._report_failure(offset, size)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        losers = list(votes.losers(opinion))
        contents.choose(voters[0])
        for number in losers:
            self._report_bad(QuorumOpType.READ, number, offset, size, None)
        if self.rewrite:
            # An attempt: that it fails makes nothing worse.
            self._each(lambda number: self._write_child(number, offset, buffer, 0), losers, size)

    # -- writing ---------------------------------------------------------------------------------------------

    def write(self, offset: int, data: memoryview, flags: int = 0) -> None:
        self._write_all(lambda number: self._write_child(number, offset, data, flags), offset, len(data))

    def write_zeroes(self, offset: int, length: int, flags: int = 0) -> None:
        if flags & _NO_FALLBACK:
            # A child that can't would differ from those that can.
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

        def request(number: int) -> None:
            self._check_range(number, offset, length)
            self.children[number].write_zeroes(offset, length, flags)

        self._write_all(request, offset, length)

    def _write_child(self, number: int, offset: int, data: memoryview, flags: int) -> None:
        self._check_range(number, offset, len(data))
        self.children[number].write(offset, data, flags)

    def _check_range(self, number: int, offset: int, length: int) -> None:
        # A child added later may be shorter, and must not grow by a write.
        if offset + length > self.children[number].length:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _write_all(self, request: Callable[[int], None], offset: int, size: int) -> None:
        with self._ranges.hold(offset, size):
            outcome = self._each(request, list(range(len(self.children))), size)
        if len(outcome) - self._report_errors(QuorumOpType.WRITE, outcome, offset, size) < self.threshold:
            self._report_failure(offset, size)
            raise self._voted_error(outcome)

    def flush(self) -> None:
        # Going to stable storage is slow everywhere.
        everybody = list(range(len(self.children)))
        outcome = self._each(lambda number: self.children[number].flush(), everybody, PARALLEL_SIZE)
        if len(outcome) - self._report_errors(QuorumOpType.FLUSH, outcome, 0, 0) < self.threshold:
            raise self._voted_error(outcome)

    def can_replace(self, node: Node) -> bool:
        # A child that differs may well be replaced, as long as nobody else sees it. Its own chain may not change.
        return any(edge.child is node and node.parents == [edge] for edge in self.children)

    # -- what is there ---------------------------------------------------------------------------------------

    def block_status(self, offset: int, length: int, want_zero: bool = True) -> Extent:
        zero, data = length, 0
        for number, edge in enumerate(self.children):
            try:
                extent, _ = status_above(edge.child, None, offset, length, want_zero)
            except OSError as exc:
                self._report_bad(QuorumOpType.READ, number, offset, length, exc)
                return Extent(length, _DATA)
            # The children's runs may end at different places: what one has data in is data.
            if extent.flags & _ZERO:
                zero = min(zero, extent.length)
            else:
                data = max(data, extent.length)
        return Extent(min(data, length), _DATA) if data else Extent(zero, _ZERO)
