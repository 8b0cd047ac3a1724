"""Entries of the L1, L2 and refcount tables: masks, kinds of clusters, and fast scans over runs of entries.

Tables in memory are ``array('Q')`` in the machine's byte order; on disk they are big-endian.
"""

from __future__ import annotations

import sys
from array import array
from typing import Final

COPIED: Final = 1 << 63
"""L1 and L2: the refcount is exactly one, so the cluster may be written in place."""
COMPRESSED: Final = 1 << 62
ZERO: Final = 1
"""L2, version 3, standard entries: the cluster reads as zeros; an offset may still be owned."""
L1_OFFSET: Final = 0x00FFFFFFFFFFFE00
L2_OFFSET: Final = 0x00FFFFFFFFFFFE00
REFTABLE_OFFSET: Final = 0xFFFFFFFFFFFFFE00
L1_RESERVED: Final = 0x7F000000000001FF
L2_RESERVED: Final = 0x3F000000000001FE
REFTABLE_RESERVED: Final = 0x1FF

MAX_HOST_OFFSET: Final = (1 << 56) - 1
ALL_ALLOCATED: Final = 0xFFFFFFFF
"""Extended L2 bitmap: every subcluster is allocated."""
ALL_ZERO: Final = 0xFFFFFFFF << 32
"""Extended L2 bitmap: every subcluster reads as zeros."""

# Kinds of runs. The order is chosen so that kinds whose bytes lie at a host offset are the first ones.
NORMAL: Final = 0
ZERO_ALLOCATED: Final = 1
"""Reads as zeros and owns host space."""
UNALLOCATED_OWNED: Final = 2
"""Subcluster that shows the backing file, in a cluster that has host space (extended L2 only)."""
ZERO_PLAIN: Final = 3
UNALLOCATED: Final = 4
COMPRESSED_DATA: Final = 5

HAS_HOST: Final = (NORMAL, ZERO_ALLOCATED, UNALLOCATED_OWNED)

_CHUNK: Final = 512
_LITTLE: Final = sys.byteorder == "little"
_ONES: Final = sum(1 << (64 * i) for i in range(_CHUNK))
_RAMP: Final = sum(i << (64 * i) for i in range(_CHUNK))
_ramps: dict[int, int] = {}


def _ramp(step: int) -> int:
    found = _ramps.get(step)
    if found is None:
        if len(_ramps) >= 64:
            _ramps.clear()
        found = _ramps[step] = _RAMP * step
    return found


def progression(words: array[int], start: int, count: int, step: int) -> int:
    """How many of words[start:start + count] go on from words[start] in steps of *step*; at least 1.

    Long runs are compared as one large integer, 512 entries at a time. Entries are below 2^56 but for the two flag
    bits on top, and steps at most 2 MiB, so no sum runs over into its neighbour.
    """
    first = words[start]
    done = 1
    limit = min(count, 9)
    while done < limit:
        if words[start + done] != first + done * step:
            return done
        done += 1
    if done == count:
        return count
    if not _LITTLE:
        while done < count and words[start + done] == first + done * step:
            done += 1
        return done
    ramp = _ramp(step) if step else 0
    while done < count:
        size = min(_CHUNK, count - done)
        have = int.from_bytes(words[start + done : start + done + size].tobytes(), "little")
        want = (first + done * step) * _ONES + ramp
        if size < _CHUNK:
            want &= (1 << (64 * size)) - 1
        difference = have ^ want
        if difference:
            return done + ((difference & -difference).bit_length() - 1) // 64
        done += size
    return count


def without_copied(words: array[int], width: int) -> array[int]:
    """A copy of L2 *words* with all COPIED flags off; *width* words an entry, of which the first has the flag."""
    rest = array("Q", ((1 << 64) - 1,)) * (width - 1)
    mask = (array("Q", (COPIED - 1,)) + rest) * (len(words) // width)
    order = sys.byteorder
    kept = int.from_bytes(words.tobytes(), order) & int.from_bytes(mask.tobytes(), order)
    return array("Q", kept.to_bytes(len(words) * 8, order))


def to_disk(words: array[int]) -> bytes:
    """*words* as the big-endian bytes on disk."""
    if sys.byteorder == "little":
        words = words[:]
        words.byteswap()
    return words.tobytes()


def from_disk(data: bytes | bytearray | memoryview) -> array[int]:
    """Big-endian 64-bit words as an array in the machine's byte order."""
    words = array("Q", bytes(data))
    if sys.byteorder == "little":
        words.byteswap()
    return words


def compressed_location(entry: int, cluster_bits: int) -> tuple[int, int]:
    """(host offset, largest size in bytes) of the data a compressed L2 entry points to."""
    shift = 62 - (cluster_bits - 8)
    offset = entry & ((1 << shift) - 1)
    sectors = ((entry >> shift) & ((1 << (cluster_bits - 8)) - 1)) + 1
    return offset, sectors * 512 - (offset & 511)


def compressed_clusters(entry: int, cluster_bits: int) -> tuple[int, int]:
    """(offset of the first host cluster, number of host clusters) that a compressed L2 entry holds references on."""
    offset, size = compressed_location(entry, cluster_bits)
    first = offset >> cluster_bits
    last = (offset + size - 1) >> cluster_bits
    return first << cluster_bits, last - first + 1


def bit_run(bits: int, start: int, limit: int) -> int:
    """How many bits of *bits* from *start* up to *limit* equal bit *start*; at least 1."""
    value = bits >> start
    if value & 1:
        value = ~value
    end = start + (value & -value).bit_length() - 1 if value else limit
    return min(end, limit) - start
