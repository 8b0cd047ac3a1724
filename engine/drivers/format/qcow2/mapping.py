"""From guest offsets to what is there: runs of one kind, found in the L1 and L2 tables. Called with the lock held.

A run is (kind, length, host): kinds are those of tables.py; host is the host offset for kinds that have one, the L2
entry for compressed data (whose runs end at the cluster), else 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine.drivers.format.qcow2.storage import c_hex
from engine.drivers.format.qcow2.tables import (
    ALL_ALLOCATED,
    ALL_ZERO,
    COMPRESSED,
    COMPRESSED_DATA,
    COPIED,
    L2_OFFSET,
    NORMAL,
    UNALLOCATED,
    UNALLOCATED_OWNED,
    ZERO,
    ZERO_ALLOCATED,
    ZERO_PLAIN,
    bit_run,
    progression,
)

if TYPE_CHECKING:
    from array import array

    from engine.drivers.format.qcow2.image import Image

Run = tuple[int, int, int]
MAX_SLICES_PER_CALL: Final = 1024
"""L2 slices that one block_status() may look at: bounds the time the lock is held."""


def run_at(image: Image, offset: int, length: int) -> Run:
    """The run at guest *offset*, cut to *length* bytes and to one L2 slice. Errors: OSError."""
    l1_index = offset >> image.l1_shift
    table = image.l2_table(l1_index)
    if not table:
        tables = 1
        if l1_index < len(image.l1) and not image.l1[l1_index]:
            wanted = ((offset + length - 1) >> image.l1_shift) + 1 - l1_index
            tables = progression(image.l1, l1_index, min(wanted, len(image.l1) - l1_index), 0)
        return UNALLOCATED, min(length, ((l1_index + tables) << image.l1_shift) - offset), 0
    entry = (offset >> image.cluster_bits) & ((1 << image.l2_bits) - 1)
    words = image.l2_slice(table, entry).words
    at = entry & (image.slice_entries - 1)
    inside = offset & image.cluster_mask
    count = min((inside + length + image.cluster_mask) >> image.cluster_bits, image.slice_entries - at)
    if image.extended:
        kind, run, host = _extended(image, words, at, count, inside, table, entry, offset)
        return kind, min(run, length), host
    kind, clusters, host = _standard(image, words, at, count, table, entry, offset)
    run = min((clusters << image.cluster_bits) - inside, length)
    return kind, run, host + inside if kind <= UNALLOCATED_OWNED else host


def _standard(
    image: Image, words: array[int], at: int, count: int, table: int, entry: int, offset: int
) -> tuple[int, int, int]:
    """(kind, clusters, host offset of the first cluster)"""
    word = words[at]
    if word & COMPRESSED:
        _refuse_compressed(image, table, entry)
        return COMPRESSED_DATA, 1, word
    host = word & L2_OFFSET
    if word & ZERO:
        if not image.zero_flag:
            text = f"Zero cluster entry found in pre-v3 image (L2 offset: {table:#x}, L2 index: {c_hex(entry)})"
            raise image.corrupt(text, fatal=True)
        kind = ZERO_ALLOCATED if host else ZERO_PLAIN
    elif host or (image.data_file is not None and word & COPIED):
        kind = NORMAL
    else:
        kind = UNALLOCATED
    if kind in (ZERO_PLAIN, UNALLOCATED):
        return kind, progression(words, at, count, 0), 0
    check_host(image, host, table, entry, offset)
    return kind, progression(words, at, count, image.cluster_size), host


def _refuse_compressed(image: Image, table: int, entry: int) -> None:
    if image.data_file is not None:
        text = (
            "Compressed cluster entry found in image with external data file "
            f"(L2 offset: {table:#x}, L2 index: {c_hex(entry)})"
        )
        raise image.corrupt(text, fatal=True)


def check_host(image: Image, host: int, table: int, entry: int, offset: int) -> None:
    """Refuse a cluster's host offset that can't be right. Errors: OSError EIO."""
    if host & image.cluster_mask:
        text = f"Cluster allocation offset {host:#x} unaligned (L2 offset: {table:#x}, L2 index: {c_hex(entry)})"
        raise image.corrupt(text, fatal=True)
    if image.data_file is not None and host != offset & ~image.cluster_mask:
        text = (
            f"External data file host cluster offset {host:#x} does not match guest cluster offset: "
            f"{c_hex(offset & ~image.cluster_mask)}, L2 index: {c_hex(entry)})"
        )
        raise image.corrupt(text, fatal=True)


def subcluster_kind(image: Image, word: int, bitmap: int, subcluster: int) -> int:
    """Kind of subcluster number *subcluster* of a cluster with a valid extended L2 entry."""
    if word & COMPRESSED:
        return COMPRESSED_DATA
    owned = bool(word & L2_OFFSET) or (image.data_file is not None and bool(word & COPIED))
    if bitmap >> (32 + subcluster) & 1:
        return ZERO_ALLOCATED if owned else ZERO_PLAIN
    if owned:
        return NORMAL if bitmap >> subcluster & 1 else UNALLOCATED_OWNED
    return UNALLOCATED


def check_extended(image: Image, word: int, bitmap: int, table: int, entry: int, offset: int) -> None:
    """Refuse an extended L2 entry that contradicts itself. Errors: OSError EIO."""
    if word & COMPRESSED:
        _refuse_compressed(image, table, entry)
        return
    host = word & L2_OFFSET
    owned = bool(host) or (image.data_file is not None and bool(word & COPIED))
    if bitmap & (bitmap >> 32) & ALL_ALLOCATED or (not owned and bitmap & ALL_ALLOCATED):
        text = f"Invalid cluster entry found  (L2 offset: {table:#x}, L2 index: {c_hex(entry)})"
        raise image.corrupt(text, fatal=True)
    if owned:
        check_host(image, host, table, entry, offset)


def _extended(
    image: Image, words: array[int], at: int, count: int, inside: int, table: int, entry: int, offset: int
) -> Run:
    """The run from byte *inside* of cluster *at* on, uncut. Whole clusters alike are taken together."""
    word, bitmap = words[2 * at], words[2 * at + 1]
    check_extended(image, word, bitmap, table, entry, offset)
    if word & COMPRESSED:
        return COMPRESSED_DATA, image.cluster_size - inside, word
    sub_size = image.subcluster_size
    first = inside // sub_size
    kind = subcluster_kind(image, word, bitmap, first)
    host = (word & L2_OFFSET) + inside if kind <= UNALLOCATED_OWNED else 0
    zeros, allocated = bitmap >> 32, bitmap & ALL_ALLOCATED
    if zeros >> first & 1:
        run = bit_run(zeros, first, 32)
    else:
        # Neither flag may change inside the run.
        run = min(bit_run(zeros, first, 32), bit_run(allocated, first, 32))
    end = (first + run) * sub_size
    if first + run == 32 and count > 1 and bitmap in (ALL_ALLOCATED, ALL_ZERO, 0):
        step = image.cluster_size if kind <= UNALLOCATED_OWNED else 0
        entries = words[2 * at : 2 * (at + count) : 2]
        bitmaps = words[2 * at + 1 : 2 * (at + count) : 2]
        whole = min(progression(entries, 0, count, step), progression(bitmaps, 0, count, 0))
        end = whole << image.cluster_bits
    return kind, end - inside, host


def joins(kind: int, host: int, length: int, next_kind: int, next_host: int) -> bool:
    """Whether a run that ends after *length* bytes goes on in the next one."""
    if kind != next_kind or kind == COMPRESSED_DATA:
        return False
    return kind > UNALLOCATED_OWNED or host + length == next_host


def map_range(image: Image, offset: int, length: int) -> list[Run]:
    """All of [offset, offset + length) as runs; neighbours that go on alike are one. Errors: OSError."""
    kind, run, host = run_at(image, offset, length)
    if run == length:
        return [(kind, run, host)]
    runs: list[Run] = []
    done = run
    while done < length:
        next_kind, next_run, next_host = run_at(image, offset + done, length - done)
        if joins(kind, host, run, next_kind, next_host):
            run += next_run
        else:
            runs.append((kind, run, host))
            kind, run, host = next_kind, next_run, next_host
        done += next_run
    runs.append((kind, run, host))
    return runs


def long_run(image: Image, offset: int, length: int) -> Run:
    """The run at *offset*, as long as it is, at most *length* bytes. Errors: OSError."""
    kind, run, host = run_at(image, offset, length)
    for _ in range(MAX_SLICES_PER_CALL):
        if run >= length or kind == COMPRESSED_DATA:
            break
        next_kind, next_run, next_host = run_at(image, offset + run, length - run)
        if not joins(kind, host, run, next_kind, next_host):
            break
        run += next_run
    return kind, run, host
