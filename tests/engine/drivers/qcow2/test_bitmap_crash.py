"""Power cuts and bitmaps: whatever a crash leaves, the image is sound, and no bitmap that counts misses a write.

As in test_crash.py, with sessions of opening, marking in use, writing, adding, removing and storing. A bitmap found in
use means nothing and is fine. One that is not has to be set wherever the guest's bytes are not those of the moment when
it was made.
"""

from __future__ import annotations

import errno
import itertools
import os
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest

from engine.bitmaps.hbitmap import HBitmap
from engine.drivers.format.qcow2 import bitmap_header, bitmap_store, bitmaps
from engine.drivers.format.qcow2.header import ExtensionType
from engine.drivers.format.qcow2.header import parse as parse_header
from engine.errors import GenericError
from tests.engine.drivers.qcow2.support import FileChild, Opened, opened, qemu_check, run
from tests.engine.drivers.qcow2.test_crash import RecordingChild, apply

BASE = 1 << 20


@dataclass
class Followed:
    """A bitmap in memory, and the guest's bytes at the time it was made."""

    bits: HBitmap
    baseline: bytes
    enabled: bool = True


@dataclass
class Sessions:
    """Several openings of one image, in one log."""

    path: Path
    random: Random
    size: int
    child: RecordingChild = field(init=False)
    model: bytearray = field(init=False)
    bitmaps: dict[str, Followed] = field(default_factory=dict)
    ever: dict[str, Followed] = field(default_factory=dict)
    quiet: list[tuple[int, set[str]]] = field(default_factory=list)
    """(log position, names) at which all is closed."""
    starts: list[int] = field(default_factory=list)
    """Log positions after opening."""

    def __post_init__(self) -> None:
        self.before = self.path.read_bytes()
        self.child = RecordingChild(self.path)
        self.model = bytearray(self.size)

    def session(self) -> None:
        image = Opened(self.child)
        image.image.keeps_bitmaps = True
        bitmap_store.mark_in_use(image.image)
        self.starts.append(len(self.child.log))
        if self.random.random() < 0.7:
            # Written in place: nothing but marking stands before it.
            self._write(image, 0, self.random.randbytes(600))
        for _ in range(self.random.randrange(1, 9)):
            self._step(image)
        wanted = [bitmap_store.Bits(name, item.enabled, item.bits.copy()) for name, item in self.bitmaps.items()]
        bitmap_store.store(image.image, wanted)
        image.close()
        self.quiet.append((len(self.child.log), set(self.bitmaps)))

    def _step(self, image: Opened) -> None:
        pick = self.random.random()
        if pick < 0.4:
            offset = self.random.randrange(self.size)
            self._write(
                image, offset, self.random.randbytes(min(self.random.choice((1, 600, 9000)), self.size - offset))
            )
        elif pick < 0.5:
            image.flush()
        elif pick < 0.8:
            name = f"bitmap-{len(self.ever)}" + "x" * self.random.choice((0, 200, 900))
            item = Followed(HBitmap(self.size, self.random.choice((512, 4096, 65536))), bytes(self.model))
            self.bitmaps[name] = self.ever[name] = item
        elif self.bitmaps:
            name = self.random.choice(sorted(self.bitmaps))
            del self.bitmaps[name]
            bitmap_store.remove(image.image, name)

    def _write(self, image: Opened, offset: int, data: bytes) -> None:
        for item in self.bitmaps.values():
            item.bits.set(offset, len(data))
        image.write(offset, data)
        self.model[offset : offset + len(data)] = data

    def crash(self, at: int, pick: Random | None, copy: Path) -> None:
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

    def verify(self, copy: Path, backing: str) -> int:
        """The number of bitmaps that count."""
        qemu_check(copy, leaks=True)
        counting = 0
        with opened(copy, writable=False, backing=_no_backing) as image:
            assert image.image.header.backing_file == backing
            guest = image.get(0, self.size)
            for entry in bitmap_store.read(image.image):
                if entry.in_use:
                    continue
                counting += 1
                found = bitmaps.read_bits(image.image, entry, self.size)
                missed = covers(found, self.ever[entry.name].baseline, guest)
                assert missed is None, f"{entry.name[:12]} misses a write at {missed:#x}"
        return counting


def _no_backing() -> None:
    return None


def covers(bits: HBitmap, before: bytes, now: bytes) -> int | None:
    """Where *now* differs from *before* under a bit that is not set."""
    at = bits.next_zero(0)
    while at is not None:
        stop = bits.next_dirty(at)
        stop = len(now) if stop is None else stop
        if before[at:stop] != now[at:stop]:
            return at
        at = bits.next_zero(stop)
    return None


class Torn(Random):
    """Picks, of a write, the first sector or the second."""

    def __init__(self, *sectors: float) -> None:
        super().__init__()
        self._answers = itertools.cycle((0.5, *sectors))

    def random(self) -> float:
        return next(self._answers)


CASES: dict[str, dict[str, Any]] = {
    "512": {"cluster_size": 512, "refcount_bits": 1},
    "4k-backing": {"cluster_size": 4096, "backing": True},
    "64k": {"cluster_size": 65536},
    "64k-backing": {"cluster_size": 65536, "backing": True, "format": False},
    "64k-backing-format": {"cluster_size": 65536, "backing": True},
    "extension-across-sectors": {"cluster_size": 4096, "padding": 368},
    "lazy": {"cluster_size": 4096, "lazy_refcounts": "on"},
}


def make_image(
    path: Path, size: int, backing: bool = False, format: bool = True, padding: int = 0, **options: Any
) -> str:
    """The backing file's name."""
    name = ""
    if backing:
        name = str(path.parent / ("base" + "-" * 90))
        Path(name).write_bytes(bytes(size))
    given = ",".join(f"{key}={value}" for key, value in options.items())
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", given, path, str(size))
    if backing:
        run("qemu-img", "rebase", "-u", "-F", "raw", "-b", name, path)
    if backing and not format:
        with opened(path) as image:
            image.image.header.backing_format = ""
            image.image.rewrite_header()
    if padding:
        with opened(path) as image:
            image.image.header.extensions.append((0x12345678, bytes(padding)))
            image.image.rewrite_header()
    return name


@pytest.mark.interop
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_power_cut(case: dict[str, Any], tmp_path: Path, qemu_img: str) -> None:
    path, copy = tmp_path / "image.qcow2", tmp_path / "crashed.qcow2"
    size = 5 << 19
    backing = make_image(path, size, **case)
    sessions = Sessions(path, Random(50), size)
    for _ in range(6):
        sessions.session()
    pick = Random(7)
    brinks = [i for i, event in enumerate(sessions.child.log) if event.kind == "flush" and i]
    places = [pick.choice(brinks) if pick.random() < 0.8 else pick.randrange(1, brinks[-1]) for _ in range(20)]
    places += [start + pick.randrange(4) for start in sessions.starts[1:] for _ in range(3)]
    for at in places:
        sessions.crash(at, pick if pick.random() < 0.8 else None, copy)
        if copy.read_bytes()[79] & 1:
            continue  # lazy refcounts: a repair comes before anything else
        sessions.verify(copy, backing)
    # Torn headers are what matters most.
    log = sessions.child.log
    for at in brinks:
        if log[at - 1].kind == "write" and log[at - 1].offset < 1024 and "lazy_refcounts" not in case:
            for torn in (Torn(0.0, 0.9), Torn(0.9, 0.0)):
                sessions.crash(at, torn, copy)
                sessions.verify(copy, backing)
    for at, names in sessions.quiet:
        sessions.crash(at, None, copy)
        assert sessions.verify(copy, backing) == len(names)
    sessions.child.close()


class BreakingChild(FileChild):
    """A file child whose *fuse*-th change fails, and all after it."""

    fuse = -1

    def _burn(self) -> None:
        if self.fuse >= 0:
            self.fuse -= 1
            if self.fuse < 0:
                self.fuse = 0
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    def write(self, offset: int, data: memoryview, flags: int = 0) -> None:
        self._burn()
        super().write(offset, data, flags)

    def flush(self) -> None:
        self._burn()
        super().flush()


@pytest.mark.interop
def test_storage_that_fails_while_storing(tmp_path: Path, qemu_img: str) -> None:
    """Whichever write fails: the error is told, and the image is sound with bitmaps in use or stored."""
    path = tmp_path / "image.qcow2"
    make_image(path, 1 << 20, cluster_size=4096)
    with opened(path) as image:
        image.image.keeps_bitmaps = True
        bitmap_store.store(image.image, [bitmap_store.Bits("old", True, HBitmap(1 << 20, 512))])
    before = path.read_bytes()
    for fuse in range(60):
        path.write_bytes(before)
        child = BreakingChild(path)
        image = Opened(child)
        image.image.keeps_bitmaps = True
        bitmap_store.mark_in_use(image.image)
        bits = HBitmap(1 << 20, 512)
        bits.set(4096, 512)
        child.fuse = fuse
        failed = False
        try:
            bitmap_store.store(image.image, [bitmap_store.Bits(name, True, bits) for name in ("old", "new")])
        except GenericError:
            failed = True
        child.fuse = -1
        image.close()
        child.close()
        qemu_check(path, leaks=True)
        file = FileChild(path)
        entries = bitmaps.read_directory(file, parse_header(file))
        file.close()
        stored = [entry.name for entry in entries if not entry.in_use]
        if not failed:
            assert stored == ["old", "new"]
            break
    else:
        pytest.fail("it never went well")
    assert fuse > 8


@pytest.mark.interop
def test_an_extension_before_others_is_removed_too(tmp_path: Path, qemu_img: str) -> None:
    """QEMU writes unknown extensions after that of the bitmaps."""
    path = tmp_path / "image.qcow2"
    make_image(path, 1 << 20, cluster_size=65536)
    run("qemu-img", "bitmap", "--add", path, "b")
    with opened(path) as image:
        image.image.keeps_bitmaps = True
        image.image.header.extensions.append((0x12345678, b"unknown!"))
        image.image.rewrite_header()
    run("qemu-img", "bitmap", "--disable", path, "b")
    with opened(path) as image:
        image.image.keeps_bitmaps = True
        bitmap_store.remove(image.image, "b")
    with opened(path) as image:
        assert image.image.header.extensions == [(0x12345678, b"unknown!")]
        assert image.image.header.bitmaps is None
        assert not image.image.header.stale_bitmaps
    assert ExtensionType.BITMAPS.to_bytes(4, "big") not in path.read_bytes()[:65536]
    qemu_check(path)
    with opened(path) as image:
        image.image.keeps_bitmaps = True
        bitmap_store.store(image.image, [bitmap_store.Bits("c", False, HBitmap(1 << 20, 512))])
        assert bitmap_header._read(image.image).extension
    assert "c" in run("qemu-img", "info", path)
    qemu_check(path)
