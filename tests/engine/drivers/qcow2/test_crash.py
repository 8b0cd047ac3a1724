"""Power cuts: whatever prefix of the writes reached the disk, and whatever part of those since the last flush, the
image is sound.

A recording child logs writes, flushes and truncations. Replays apply everything up to a flush and a random selection
of the writes after it, sector by sector (a sector of 512 bytes is atomic, nothing larger is). Then ``qemu-img check``
may find leaks, but no corruption, and the guest's bytes must be those of the last flush where nothing was written
since.
"""

from __future__ import annotations

import errno
import os
import random
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engine.drivers.format.qcow2 import resize as resizing
from engine.drivers.format.qcow2.options import BlockdevOptionsQcow2
from engine.graph.driver import Prealloc, WriteFlag
from tests.engine.drivers.qcow2.support import FileChild, Opened, make, qemu_check, qemu_read, run

SECTOR = 512


@dataclass
class Event:
    """kind: write (offset, data), truncate (offset is the length), discard (offset, data's length in size) or flush."""

    kind: str
    offset: int = 0
    data: bytes = b""
    size: int = 0


class RecordingChild(FileChild):
    """A file child that keeps a log of all that changes the file."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(path)
        self.log: list[Event] = []

    def write(self, offset: int, data: memoryview, flags: int = 0) -> None:
        self.log.append(Event("write", offset, bytes(data)))
        super().write(offset, data, flags)

    def discard(self, offset: int, length: int) -> None:
        self.log.append(Event("discard", offset, size=length))
        super().write(offset, memoryview(b"\xde" * min(length, self.length - offset)))

    def flush(self) -> None:
        self.log.append(Event("flush"))
        super().flush()

    def truncate(self, length: int, *, exact: bool = True, prealloc: Prealloc = Prealloc.OFF) -> None:
        self.log.append(Event("truncate", length))
        super().truncate(length, exact=exact, prealloc=prealloc)


def apply(fd: int, event: Event, pick: random.Random | None) -> None:
    """Do what *event* says; with *pick*, only to some sectors, or not at all."""
    if event.kind == "truncate":
        # The file system keeps order here: a truncation is a change of its own metadata.
        os.ftruncate(fd, event.offset)
    elif event.kind == "write" and pick is None:
        os.pwrite(fd, event.data, event.offset)
    elif event.kind == "write" and pick is not None:
        mode = pick.random()
        if mode < 0.35:
            return
        at = event.offset
        end = event.offset + len(event.data)
        while at < end:
            stop = min(end, (at // SECTOR + 1) * SECTOR)
            if mode > 0.7 or pick.random() < 0.5:
                os.pwrite(fd, event.data[at - event.offset : stop - event.offset], at)
            at = stop
    elif event.kind == "discard" and (pick is None or pick.random() < 0.5):
        # What is punched is of no use to anybody: make that visible.
        length = min(event.size, os.fstat(fd).st_size - event.offset)
        if length > 0:
            os.pwrite(fd, b"\xde" * length, event.offset)


class History:
    """Random work on an image whose child records it, with the guest's bytes at every flush."""

    def __init__(self, path: Path, seed: int, **options: Any) -> None:
        self.path = path
        self.before = path.read_bytes()
        self.child = RecordingChild(path)
        self.opened = Opened(self.child, **options)
        self.random = random.Random(seed)
        self.cluster = self.opened.image.cluster_size
        self.model = bytearray(self.opened.get(0, self.opened.length))
        self.marks: list[tuple[int, bytes]] = [(0, bytes(self.model))]
        self.changes: list[tuple[int, int, int]] = []

    def _range(self) -> tuple[int, int]:
        size = len(self.model)
        unit = self.random.choice((1, 512, self.cluster))
        offset = self.random.randrange(size) // unit * unit
        length = self.random.randrange(1, self.random.choice((1, 1, 6)) * self.cluster + 1)
        return offset, min(-(-length // unit) * unit, size - offset)

    def step(self, resize: bool) -> None:
        offset, length = self._range()
        end = offset + length
        pick = self.random.random()
        if resize and pick < 0.06:
            self._resize() if pick < 0.04 else self._empty()
            return
        # A request counts from its first write on: what it does to the range is open until it is flushed.
        self.changes.append((len(self.child.log), offset, end))
        if pick < 0.4:
            data = self.random.randbytes(length)
            self.opened.write(offset, data)
            self.model[offset:end] = data
        elif pick < 0.5:
            self.changes.pop()
            self._compress(offset // self.cluster * self.cluster)
        elif pick < 0.62:
            self.opened.write_zeroes(offset, length, self.random.choice((0, int(WriteFlag.MAY_UNMAP))))
            self.model[offset:end] = bytes(length)
        elif pick < 0.82:
            self.opened.discard(offset, length)
            self.model = bytearray(self.opened.get(0, len(self.model)))
        else:
            self.changes.pop()
            self.opened.flush()
            self.marks.append((len(self.child.log), bytes(self.model)))

    def _compress(self, offset: int) -> None:
        length = min(self.cluster, len(self.model) - offset)
        data = bytes(self.random.choices(b"ab", k=length))
        self.changes.append((len(self.child.log), offset, offset + length))
        try:
            self.opened.write(offset, data, int(WriteFlag.COMPRESSED))
        except OSError as exc:
            # EIO: the cluster has data already.
            if exc.errno != errno.EIO:
                raise
            return
        self.model[offset : offset + length] = data

    def _resize(self) -> None:
        size = max(len(self.model) + self.random.randrange(-6, 40) * self.cluster, self.cluster)
        self.changes.append((len(self.child.log), min(size, len(self.model)), 1 << 62))
        self.opened.truncate(size)
        self.model = bytearray(self.opened.get(0, size))
        self.opened.flush()
        self.marks.append((len(self.child.log), bytes(self.model)))

    def _empty(self) -> None:
        self.changes.append((len(self.child.log), 0, 1 << 62))
        resizing.make_empty(self.opened.image)
        self.model = bytearray(len(self.model))
        self.opened.flush()
        self.marks.append((len(self.child.log), bytes(self.model)))

    def finish(self) -> None:
        self.opened.close()
        self.marks.append((len(self.child.log), bytes(self.model)))
        self.child.close()

    def crash(self, at: int, pick: random.Random | None, copy: Path) -> None:
        """Rebuild the file as a power cut after log entry *at* might leave it."""
        log = self.child.log[:at]
        durable = max((i + 1 for i, event in enumerate(log) if event.kind == "flush"), default=0)
        copy.write_bytes(self.before)
        fd = os.open(copy, os.O_RDWR)
        try:
            for event in log[:durable]:
                apply(fd, event, None)
            for event in log[durable:]:
                apply(fd, event, pick)
        finally:
            os.close(fd)

    def verify(self, at: int, copy: Path, dirty_allowed: bool) -> None:
        """The image left by a crash at *at* is sound, and what was flushed is in it."""
        if dirty_allowed and copy.read_bytes()[79] & 1:
            with_repair(copy)
        qemu_check(copy, leaks=True)
        where, wanted = max((mark for mark in self.marks if mark[0] <= at), key=lambda mark: mark[0])
        found = qemu_read(copy)
        # Requests that had not ended by the flush, or came later, may show or not.
        unsure = bytearray(max(len(found), len(wanted)))
        for begun, start, end in self.changes:
            if where <= begun < at:
                stop = min(end, len(unsure))
                unsure[start:stop] = b"\1" * max(stop - start, 0)
        for offset in range(0, min(len(found), len(wanted)), SECTOR):
            here, there = found[offset : offset + SECTOR], wanted[offset : offset + SECTOR]
            if here != there:
                differing = [i for i in range(len(here)) if here[i] != there[i] and not unsure[offset + i]]
                assert not differing, f"flushed byte {offset + differing[0]:#x} is lost by a crash at event {at}"


def with_repair(path: Path) -> None:
    """Open and close a dirty image, which repairs it."""
    child = FileChild(path)
    opened = Opened(child)
    from engine.drivers.format.qcow2 import check

    check.repair_dirty(opened.image)
    opened.close()
    child.close()


CASES: list[tuple[str, dict[str, Any], int, bool]] = [
    ("512", {"cluster_size": 512}, 64 << 10, False),
    ("512-resize-rc64", {"cluster_size": 512, "refcount_bits": 64}, 256 << 10, True),
    ("512-v2", {"cluster_size": 512, "version": "v2"}, 96 << 10, True),
    ("4k-lazy", {"cluster_size": 4096, "lazy_refcounts": True}, 512 << 10, True),
    ("16k-extended", {"cluster_size": 16384, "extended_l2": True}, 1 << 20, True),
    ("4k-zstd", {"cluster_size": 4096, "compression_type": "zstd"}, 1 << 20, True),
]
TINY_CACHE = BlockdevOptionsQcow2(file="-", l2_cache_size=1024, l2_cache_entry_size=512, overlap_check=None)


@pytest.mark.interop
@pytest.mark.parametrize(("name", "options", "size", "resize"), CASES, ids=[case[0] for case in CASES])
def test_power_cut(name: str, options: dict[str, Any], size: int, resize: bool, tmp_path: Path, qemu_img: str) -> None:
    path, copy = tmp_path / "image.qcow2", tmp_path / "crashed.qcow2"
    make(path, size, **options)
    play_and_crash(path, copy, seed=zlib.crc32(name.encode()), steps=60, crashes=22, resize=resize)


@pytest.mark.interop
def test_power_cut_with_caches_that_evict_all_the_time(tmp_path: Path, qemu_img: str) -> None:
    path, copy = tmp_path / "image.qcow2", tmp_path / "crashed.qcow2"
    make(path, 512 << 10, cluster_size=512)
    play_and_crash(path, copy, seed=5, steps=80, crashes=25, resize=True, options=TINY_CACHE)


@pytest.mark.interop
def test_power_cut_beside_a_snapshot(tmp_path: Path, qemu_img: str) -> None:
    path, copy = tmp_path / "image.qcow2", tmp_path / "crashed.qcow2"
    make(path, 256 << 10, cluster_size=512)
    child = FileChild(path)
    image = Opened(child)
    image.write(0, b"before" * 30_000)
    image.close()
    child.close()
    run(qemu_img, "snapshot", "-c", "s", path)
    play_and_crash(path, copy, seed=6, steps=60, crashes=25, resize=False)


def play_and_crash(
    path: Path, copy: Path, *, seed: int, steps: int, crashes: int, resize: bool, **options: Any
) -> None:
    history = History(path, seed, **options)
    for _ in range(steps):
        history.step(resize)
    history.finish()
    pick = random.Random(seed)
    end = len(history.child.log)
    lazy = bool(history.opened.image.header.compatible & 1)
    # Most is open just before a flush.
    brinks = [i for i, event in enumerate(history.child.log) if event.kind == "flush" and i]
    for _ in range(crashes):
        at = pick.choice(brinks) if pick.random() < 0.8 else pick.randrange(1, end + 1)
        history.crash(at, pick if pick.random() < 0.8 else None, copy)
        history.verify(at, copy, lazy)
