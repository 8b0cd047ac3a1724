"""qemu-img check for vmdk: every grain that has a place must have it inside its file."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from engine.drivers.format.qcow2.findings import CheckResult
from engine.drivers.format.qcow2.storage import error
from engine.drivers.format.vmdk.extents import FlatExtent, SparseExtent
from engine.drivers.format.vmdk.header import SECTOR
from engine.drivers.format.vmdk.tables import DATA

if TYPE_CHECKING:
    from engine.drivers.format.vmdk.driver import VmdkDriver


def check(image: VmdkDriver, fix: frozenset[str]) -> CheckResult:
    """Stops at the first finding, as QEMU does. Errors: OSError; ENOTSUP when something is to be repaired."""
    if fix:
        raise error(errno.ENOTSUP)
    result = CheckResult()
    for extent in image.extents:
        found = _check_sparse(extent) if isinstance(extent, SparseExtent) else _check_flat(extent)
        if found:
            result.say("ERROR: " + found)
            result.corruptions = 1
            break
    return result


def _check_flat(extent: FlatExtent) -> str:
    if extent.offset >= extent.file.length:
        return f"cluster offset for sector {extent.start // SECTOR} points after EOF"
    return ""


def _check_sparse(extent: SparseExtent) -> str:
    offset, end = 0, extent.file.length
    while offset < extent.length:
        try:
            state, host, run = extent.tables.lookup(offset, extent.length - offset)
        except OSError:
            return f"could not get cluster_offset for sector {(extent.start + offset) // SECTOR}"
        if state == DATA and host + run > end:
            # The first grain of the run that begins past the end.
            first = max(-(-(end - host) // extent.grain), 0) * extent.grain
            if first < run:
                return f"cluster offset for sector {(extent.start + offset + first) // SECTOR} points after EOF"
        offset += run
    return ""
