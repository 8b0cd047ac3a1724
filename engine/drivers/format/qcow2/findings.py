"""What a check finds, and how often each host cluster is referred to."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Final

MAX_MESSAGES: Final = 1000
CHUNK_BITS: Final = 12
CHUNK: Final = 1 << CHUNK_BITS
"""Clusters counted together."""


@dataclass
class CheckResult:
    """Findings, in the fields of ImageCheck. messages: the first of them in words."""

    check_errors: int = 0
    image_end_offset: int = 0
    corruptions: int = 0
    leaks: int = 0
    corruptions_fixed: int = 0
    leaks_fixed: int = 0
    total_clusters: int = 0
    allocated_clusters: int = 0
    fragmented_clusters: int = 0
    compressed_clusters: int = 0
    messages: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Keep a message; beyond MAX_MESSAGES only the counters grow."""
        if len(self.messages) < MAX_MESSAGES:
            self.messages.append(text)


class Counts:
    """How many references there are to each host cluster; only chunks that are referred to take memory."""

    def __init__(self) -> None:
        self.chunks: dict[int, array[int]] = {}

    def add(self, cluster: int, count: int, weight: int) -> None:
        """*weight* more references to each of *count* clusters."""
        while count:
            number, at = cluster >> CHUNK_BITS, cluster & (CHUNK - 1)
            run = min(count, CHUNK - at)
            chunk = self.chunks.get(number)
            if chunk is None:
                chunk = self.chunks[number] = array("Q", bytes(8 * CHUNK))
            old = chunk[at]
            if run == 1:
                chunk[at] = old + weight
            elif chunk[at : at + run] == array("Q", [old]) * run:
                chunk[at : at + run] = array("Q", [old + weight]) * run
            else:
                for i in range(at, at + run):
                    chunk[i] += weight
            cluster += run
            count -= run

    def get(self, cluster: int) -> int:
        """References to *cluster*."""
        chunk = self.chunks.get(cluster >> CHUNK_BITS)
        return chunk[cluster & (CHUNK - 1)] if chunk is not None else 0

    def part(self, cluster: int, count: int) -> array[int]:
        """References to *count* clusters from *cluster* on, all within one chunk."""
        chunk = self.chunks.get(cluster >> CHUNK_BITS)
        at = cluster & (CHUNK - 1)
        return chunk[at : at + count] if chunk is not None else array("Q", bytes(8 * count))

    def highest(self) -> int:
        """The last cluster referred to, or -1."""
        for number in sorted(self.chunks, reverse=True):
            chunk = self.chunks[number]
            for at in range(CHUNK - 1, -1, -1):
                if chunk[at]:
                    return (number << CHUNK_BITS) + at
        return -1
