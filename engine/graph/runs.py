"""Everything that is in a range at once: what block_status tells run by run, for whoever goes through all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine.graph.driver import Extent, Status
from engine.graph.status import resolve_host

if TYPE_CHECKING:
    from engine.graph.node import Node

HOLE: Final = 0
"""No layer that was looked at decides the content."""
PAST: Final = 1
"""Zeros behind the end of a layer that is shorter than the one above it."""
ZERO: Final = 2
DATA: Final = 3

Run = tuple[int, int, "Node | None", int]
"""(bytes, HOLE, PAST, ZERO or DATA, the protocol node of the host file that has the data, offset there).

No node: the data have to be read from the top.
"""

_DATA, _ZERO, _VALID = int(Status.DATA), int(Status.ZERO), int(Status.OFFSET_VALID)
_RAW, _RECURSE, _COMPRESSED = int(Status.RAW), int(Status.RECURSE), int(Status.COMPRESSED)


def runs_of(top: Node, bottom: Node | None, offset: int, length: int) -> list[Run] | None:
    """The runs of [offset, offset + length), within *top*, in order; layers below *bottom* are not looked at.

    None where a layer can only be asked for whole blocks. Errors: OSError.
    """
    found: list[Run] = []
    return found if _collect(top, bottom, offset, offset + length, found) else None


def _collect(node: Node, bottom: Node | None, offset: int, end: int, found: list[Run]) -> bool:
    driver = node.driver
    stop = min(end, driver.length)
    at = offset
    if at < stop:
        align = driver.limits.request_alignment
        if align > 1 and (at | stop) & (align - 1):
            return False
        for run, flags, below, host in driver.block_map(at, stop - at):
            if flags & _RAW:
                assert below is not None
                if not _collect(below, bottom, host, host + run, found):
                    return False
            elif flags & _ZERO:
                found.append((run, ZERO, None, 0))
            elif flags & _DATA:
                if flags & _COMPRESSED or not flags & _VALID or below is None:
                    found.append((run, DATA, None, 0))
                elif not _host(below, host, run, bool(flags & _RECURSE), found):
                    return False
            elif not _beneath(node, bottom, at, run, found):
                return False
            at += run
    if at < end:
        found.append((end - max(at, offset), ZERO, None, 0))
    return True


def _host(below: Node, host: int, run: int, recurse: bool, found: list[Run]) -> bool:
    """A run of data that lies at *host* of *below*. recurse: it may have holes there, which count as zeros."""
    if recurse:
        parts: list[Run] = []
        if not _collect(below, None, host, host + run, parts):
            return False
        found += [part if part[1] == DATA else (part[0], ZERO, None, 0) for part in parts]
        return True
    while run:
        extent = Extent(run, _DATA | _VALID, below, host)
        if not below.driver.is_protocol:
            extent = resolve_host(extent)
        node = extent.node if extent.flags & _VALID else None
        if node is not None and node.driver.host_fd() is None:
            node = None
        found.append((extent.length, DATA, node, extent.offset if node is not None else 0))
        run -= extent.length
        host += extent.length
    return True


def _beneath(node: Node, bottom: Node | None, offset: int, run: int, found: list[Run]) -> bool:
    """A run that *node* does not decide."""
    edge = node.filter_or_cow if node is not bottom else None
    if edge is None:
        found.append((run, HOLE, None, 0))
        return True
    inside = min(max(edge.child.length - offset, 0), run)
    if inside and not _collect(edge.child, bottom, offset, offset + inside, found):
        return False
    if inside < run:
        found.append((run - inside, PAST, None, 0))
    return True
