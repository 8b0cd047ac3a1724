"""Checking the tables of a QED image, and dropping entries that can't be right."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final

from engine.drivers.format.qcow2.findings import CheckResult
from engine.drivers.format.qed.header import Feature
from engine.drivers.format.tablepages import ENTRY, PAGE

if TYPE_CHECKING:
    from engine.drivers.format.qed.image import QedImage

_CHUNK: Final = 1 << 15
"""Clusters whose marks are kept together; one is in memory when one of its clusters is in use."""


class _Check:
    def __init__(self, image: QedImage, fix: bool) -> None:
        self.image = image
        self.fix = fix
        self.result = CheckResult()
        self.used: dict[int, bytearray] = {}
        self.used_count = 0

    def use(self, offset: int, clusters: int) -> bool:
        """Mark clusters as used; False, and a corruption each, for those that were before."""
        first = offset // self.image.cluster_size
        fresh = True
        for cluster in range(first, first + clusters):
            chunk = self.used.setdefault(cluster // _CHUNK, bytearray(_CHUNK // 8))
            at, bit = cluster % _CHUNK // 8, 1 << cluster % 8
            if chunk[at] & bit:
                self.result.corruptions += 1
                self.result.say(f"cluster {cluster} is in use more than once")
                fresh = False
            else:
                chunk[at] |= bit
                self.used_count += 1
        return fresh

    def drop(self, what: str, offset: int) -> None:
        """Count an entry that can't be right."""
        if self.fix:
            self.result.corruptions_fixed += 1
        else:
            self.result.corruptions += 1
        self.result.say(f"{what} offset {offset:#x} is invalid")

    def table(self, offset: int, count: int, visit: Visitor) -> None:
        """Call *visit* with runs of the *count* entries at *offset*; runs it changed are written, if it is to fix."""
        done = 0
        while done < count:
            at = offset + done * ENTRY
            entries = self.image.pages.entries(at, min(count - done, PAGE // ENTRY))
            if any(entries) and visit(entries) and self.fix:
                self.image.pages.put(at, entries)
            done += len(entries)

    def l1(self, entries: array[int]) -> bool:
        image, header = self.image, self.image.header
        changed = False
        for i, table in enumerate(entries):
            if not table:
                continue
            if not header.table_valid(table, image.file_size):
                self.drop("L2 table", table)
                entries[i] = 0
                changed = True
            elif self.use(table, header.table_size):
                self.last = 0
                self.table(table, image.table_entries, self.l2)
        return changed

    last = 0

    def l2(self, entries: array[int]) -> bool:
        image, header, result = self.image, self.image.header, self.result
        size = image.cluster_size
        changed = False
        for i, cluster in enumerate(entries):
            if cluster <= 1:
                continue
            result.allocated_clusters += 1
            if self.last and self.last + size != cluster:
                result.fragmented_clusters += 1
            self.last = cluster
            if header.cluster_valid(cluster, image.file_size):
                self.use(cluster, 1)
            else:
                self.drop("data cluster", cluster)
                entries[i] = 0
                changed = True
        return changed

    def run(self) -> CheckResult:
        image, header, result = self.image, self.image.header, self.result
        result.total_clusters = -(-header.length // image.cluster_size)
        self.use(header.l1_offset, header.table_size)
        try:
            self.table(header.l1_offset, image.table_entries, self.l1)
        except OSError:
            result.check_errors += 1
            raise
        clusters = image.file_size // image.cluster_size
        result.leaks = max(clusters - header.header_size - self.used_count, 0)
        if self.fix and not result.corruptions and header.features & Feature.NEED_CHECK:
            image.mark_clean()
        return result


if TYPE_CHECKING:
    from collections.abc import Callable

    Visitor = Callable[[array[int]], bool]


def check(image: QedImage, fix: bool) -> CheckResult:
    """Check all tables; *fix*: drop broken entries, and the mark that asks for a check. No writes meanwhile.

    A table that is in use twice is looked at once. Errors: OSError.
    """
    with image.allocating:
        return _Check(image, fix).run()
