"""blkverify: does everything twice, on a raw copy and on the image under test, and compares.

Where the two differ QEMU prints a line and ends its process. An engine that serves others must not: here the request
fails with EIO, the same line goes to the log, and the node shows it as its error.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from typing import Any

from engine.errors import GenericError
from engine.graph.driver import FilterDriver, Limits, Opening, register
from engine.graph.edge import Edge
from engine.graph.options import BlockdevRef
from engine.graph.permissions import Role
from engine.qapi import Struct

log = logging.getLogger("engine.blkverify")


class BlockdevOptionsBlkverify(Struct):
    """test: the image to test. raw: the copy that is known to be right."""

    test: BlockdevRef
    raw: BlockdevRef


@register
class BlkverifyDriver(FilterDriver):
    """The blkverify filter. Its length, and the data it returns, are those of the image under test."""

    name = "blkverify"
    Options = BlockdevOptionsBlkverify
    is_protocol = True
    protocol_prefixes = ("blkverify",)
    child_options = frozenset({"raw", "test"})

    raw: Edge
    test: Edge

    @classmethod
    def parse_filename(cls, filename: str) -> dict[str, Any]:
        if not filename.startswith("blkverify:"):
            return {"test": {"filename": filename}}
        raw, colon, test = filename.removeprefix("blkverify:").partition(":")
        if not colon:
            raise GenericError("blkverify requires raw copy and original image path")
        return {"raw": {"filename": raw}, "test": {"filename": test}}

    def open(self, opening: Opening) -> None:
        raw = opening.open_child("raw", Role.FILTERED | Role.PRIMARY)
        test = opening.open_child("test", Role.DATA, probe=True)
        assert raw is not None
        assert test is not None
        self.raw, self.test = raw, test

    @property
    def length(self) -> int:
        return self.test.child.length

    @length.setter
    def length(self, value: int) -> None:
        """The length is that of the image under test; setting it has no meaning here."""

    def refresh_limits(self) -> None:
        raw, test = self.raw.child.limits, self.test.child.limits
        largest = min(filter(None, (raw.max_transfer, test.max_transfer)), default=0)
        self.limits = Limits(max(raw.request_alignment, test.request_alignment), largest)

    def exact_filename(self) -> str | None:
        raw, test = self.raw.child.exact_filename, self.test.child.exact_filename
        return f"blkverify:{raw}:{test}" if raw and test else ""

    def dirname(self) -> str | None:
        raise GenericError("Cannot generate a base directory for blkverify nodes")

    def allocated_size(self) -> int | None:
        return None

    # -- data plane ------------------------------------------------------------------------------------------

    def _differ(self, kind: str, offset: int, length: int, what: str) -> OSError:
        text = f"blkverify: {kind} offset={offset} bytes={length} {what}"
        log.error("%s", text)
        self.node.error = text
        return OSError(errno.EIO, os.strerror(errno.EIO))

    def _both(
        self, kind: str, offset: int, length: int, on_test: Callable[[], None], on_raw: Callable[[], None]
    ) -> None:
        """Do both; the error of both if they have the same. Errors: OSError."""
        outcome: list[OSError | None] = []
        for act in (on_test, on_raw):
            try:
                act()
            except OSError as exc:
                outcome.append(exc)
            else:
                outcome.append(None)
        test, raw = (-(exc.errno or errno.EIO) if exc is not None else 0 for exc in outcome)
        if test != raw:
            raise self._differ(kind, offset, length, f"return value mismatch {test} != {raw}")
        if outcome[0] is not None:
            raise outcome[0]

    def read(self, offset: int, buffer: memoryview) -> None:
        other = memoryview(bytearray(len(buffer)))
        self._both(
            "read",
            offset,
            len(buffer),
            lambda: self.test.read(offset, buffer),
            lambda: self.raw.read(offset, other),
        )
        if buffer != other:
            at = _first_difference(buffer, other)
            raise self._differ("read", offset, len(buffer), f"contents mismatch at offset {offset + at}")

    def write(self, offset: int, data: memoryview, flags: int = 0) -> None:
        self._both(
            "write",
            offset,
            len(data),
            lambda: self.test.write(offset, data, flags),
            lambda: self.raw.write(offset, data, flags),
        )

    def write_zeroes(self, offset: int, length: int, flags: int = 0) -> None:
        # Written as data, so that both have something to compare.
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    def discard(self, offset: int, length: int) -> None:
        """Nothing: what is read from discarded space need not be the same."""

    def flush(self) -> None:
        # The copy is of no use after a crash.
        self.test.flush()


def _first_difference(a: memoryview, b: memoryview) -> int:
    """Where two buffers of one length, which differ, begin to differ."""
    low, high = 0, len(a)
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] != b[low:middle]:
            high = middle
        else:
            low = middle
    return low
