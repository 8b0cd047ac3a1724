"""Writeback that begins while data is still being copied.

A job ends with a flush, or whoever started it flushes what it made. The host would keep most of what was written in its
cache until then: the disk idles while the job copies, and the job while the disk writes. So the host is asked to begin
as soon as there is enough to write; that alone makes copies of full images half as fast again.
"""

from __future__ import annotations

from typing import Final

from engine.graph.node import Node

STEP: Final = 16 << 20
"""Bytes written until the host is asked (again) to begin."""


class Writeback:
    """Counts what one copier writes to *node*."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._written = 0

    def wrote(self, length: int) -> None:
        """*length* bytes of data have been written."""
        self._written += length
        if self._written >= STEP:
            self._written = 0
            self._node.driver.start_writeback()
