"""Broken and hostile headers: one clear error, the one QEMU gives where it is known, and never much memory."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import struct
import subprocess
import tracemalloc
from pathlib import Path

import pytest

from engine.drivers.format.qcow2 import bitmaps, check, header
from engine.errors import GenericError
from engine.graph.driver import drivers
from tests.engine.drivers.qcow2.support import FileChild, Opened, make, run
from tests.graphs import Bench

Patch = list[tuple[int, bytes]]


def u32(value: int) -> bytes:
    return struct.pack(">I", value)


def u64(value: int) -> bytes:
    return struct.pack(">Q", value)


def extension(kind: int, data: bytes, size: int | None = None) -> bytes:
    return u32(kind) + u32(len(data) if size is None else size) + data + bytes(-len(data) % 8)


FEATURE = extension(0x6803F857, b"\0\x07" + b"time travel".ljust(46, b"\0"))
HEADER_CASES: dict[str, Patch] = {
    "magic": [(0, b"QFI\xfa")],
    "version 1": [(4, u32(1))],
    "version 4": [(4, u32(4))],
    "cluster bits 8": [(20, u32(8))],
    "cluster bits 22": [(20, u32(22))],
    "cluster bits huge": [(20, u32(0xFFFFFFFF))],
    "short header": [(100, u32(96))],
    "long header": [(100, u32(65544))],
    "backing offset": [(8, u64(65537))],
    "backing name in nowhere": [(8, u64(65500)), (16, u32(200))],
    "backing name too long": [(8, u64(1024)), (16, u32(1024))],
    "unknown feature": [(72, u64(1 << 40))],
    "two unknown features, one named": [(72, u64(1 << 7 | 1 << 62)), (112, FEATURE + bytes(8))],
    "refcount order": [(96, u32(7))],
    "encryption method": [(32, u32(3))],
    "no refcount table": [(56, u32(0))],
    "refcount table size": [(56, u32(0x10000))],
    "refcount table size wraps": [(56, u32(0x80000000))],
    "refcount table offset": [(48, u64(0x10200))],
    "refcount table offset far": [(48, u64(0x7FFFFFFFFFFF0000))],
    "snapshot count": [(60, u32(65537))],
    "snapshot offset": [(60, u32(1)), (64, u64(513))],
    "l1 size": [(36, u32(0x400001))],
    "l1 size huge": [(36, u32(0xFFFFFFFF))],
    "l1 too small": [(36, u32(0))],
    "l1 offset": [(40, u64(0x12345678))],
    "l1 offset far": [(40, u64(0xFFFFFFFFFFFF0000))],
    "size": [(24, u64(1 << 60))],
    "compression type without bit": [(104, b"\1")],
    "compression bit without type": [(72, u64(8))],
    "unknown compression": [(72, u64(8)), (104, b"\2")],
    "extension too long": [(112, extension(0x11111111, b"", 0xFFFFFFF0))],
    "backing format too long": [(112, extension(0xE2792ACA, b"x" * 16))],
    "crypto extension": [(112, extension(0x0537BE77, bytes(16)))],
    "crypto extension size": [(32, u32(2)), (112, extension(0x0537BE77, bytes(8)))],
    "crypto extension offset": [(32, u32(2)), (112, extension(0x0537BE77, u64(5) + u64(512)))],
    "bitmaps length": [(88, u64(1)), (112, extension(0x23852875, bytes(16)))],
    "bitmaps reserved": [(88, u64(1)), (112, extension(0x23852875, u32(1) + u32(1) + u64(32) + u64(65536)))],
    "bitmaps none": [(88, u64(1)), (112, extension(0x23852875, u32(0) + u32(0) + u64(32) + u64(65536)))],
    "bitmaps count": [(88, u64(1)), (112, extension(0x23852875, u32(65536) + u32(0) + u64(32) + u64(65536)))],
    "bitmaps offset": [(88, u64(1)), (112, extension(0x23852875, u32(1) + u32(0) + u64(32) + u64(512)))],
    "bitmaps size": [(88, u64(1)), (112, extension(0x23852875, u32(1) + u32(0) + u64(1 << 30) + u64(65536)))],
    "data file missing": [(72, u64(4))],
    "extended l2 needs larger clusters": [(20, u32(13)), (72, u64(16)), (40, u64(8192)), (48, u64(8192))],
}


def patched(path: Path, patch: Patch) -> Path:
    with path.open("r+b") as file:
        for offset, data in patch:
            file.seek(offset)
            file.write(data)
    return path


def open_error(path: Path, *, writable: bool = False) -> str:
    bench = Bench(path.parent)
    try:
        with pytest.raises(GenericError) as caught:
            bench.add(driver="qcow2", file={"driver": "file", "filename": str(path)}, read_only=not writable)
        return caught.value.desc
    finally:
        bench.graph.close()


@pytest.mark.interop
@pytest.mark.parametrize("case", HEADER_CASES)
def test_header_errors_are_those_of_qemu(case: str, tmp_path: Path, qemu_io: str) -> None:
    path = tmp_path / "image.qcow2"
    make(path, 1 << 20)
    patched(path, HEADER_CASES[case])
    done = subprocess.run([qemu_io, "-r", "-f", "qcow2", "-c", "length", str(path)], capture_output=True, text=True)
    theirs = done.stderr.strip().splitlines()[-1]
    prefix = f"qemu-io: can't open device {path}: "
    assert theirs.startswith(prefix), theirs
    assert open_error(path) == theirs.removeprefix(prefix)


def test_corrupt_images_open_read_only(tmp_path: Path, bench: Bench) -> None:
    path = tmp_path / "image.qcow2"
    make(path, 1 << 20)
    patched(path, [(72, u64(2))])
    assert open_error(path, writable=True) == "qcow2: Image is corrupt; cannot be opened read/write"
    node = bench.add(driver="qcow2", file={"driver": "file", "filename": str(path)}, read_only=True)
    specific = node.driver.format_specific()
    assert specific is not None
    assert specific[1].corrupt is True  # type: ignore[attr-defined]


def test_encrypted_images_are_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    make(path, 1 << 20)
    patched(path, [(32, u32(1))])
    assert open_error(path) == "Encrypted qcow2 images are not supported"


def test_unknown_autoclear_bits_go_at_a_read_write_open_only(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    make(path, 1 << 20)
    patched(path, [(88, u64(1 << 33))])
    for writable, left in ((False, 1 << 33), (True, 0)):
        bench = Bench(tmp_path)
        bench.add(driver="qcow2", file={"driver": "file", "filename": str(path)}, read_only=not writable)
        bench.graph.close()
        assert int.from_bytes(path.read_bytes()[88:96], "big") == left


def test_impossible_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    make(path, 1 << 20)
    patched(path, [(24, u64(0xFFFFFFFFFFFFFE00))])
    assert open_error(path) == "Image is too big"


def test_probing_knows_the_magic_and_the_version() -> None:
    probe = drivers["qcow2"].probe
    assert probe(b"QFI\xfb\0\0\0\x03" + bytes(504), "x") == 100
    assert probe(b"QFI\xfb\0\0\0\x01" + bytes(504), "x") == 0
    assert probe(b"QFI\xfb", "x") == 0
    assert probe(b"", "x.qcow2") == 0


@pytest.mark.interop
def test_snapshot_table_limits(tmp_path: Path, qemu_img: str) -> None:
    path = tmp_path / "image.qcow2"
    make(path, 1 << 20)
    run(qemu_img, "snapshot", "-c", "one", path)
    table = int.from_bytes(path.read_bytes()[64:72], "big")
    patched(path, [(table + 36, u32(2000))])
    assert open_error(path).startswith("Could not read snapshots: ")
    patched(path, [(table + 36, u32(0xFFFFFFFF))])
    assert "Too much extra metadata in snapshot table entry 0" in open_error(path)


FIELDS = [
    4,
    8,
    12,
    16,
    20,
    24,
    28,
    32,
    36,
    40,
    44,
    48,
    52,
    56,
    60,
    64,
    68,
    72,
    76,
    80,
    84,
    88,
    92,
    96,
    100,
    104,
    112,
    116,
]
VALUES = [0, 1, 2, 3, 8, 9, 21, 511, 512, 0xFFFF, 0x10000, 0x10001, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFE00]


def test_fuzzed_images_never_take_memory_or_raise_anything_odd(tmp_path: Path) -> None:
    """Random fields and tables: opening, reading, mapping and checking end with a proper error or a result."""
    pick = random.Random(2022)
    path = tmp_path / "image.qcow2"
    make(path, 1 << 20, cluster_size=4096)
    with FileOpen(path) as image:
        for at in range(0, 1 << 20, 40_000):
            image.write(at, b"data" * 100)
    good = path.read_bytes()
    outcomes = {"opened": 0, "refused": 0}
    tracemalloc.start()
    try:
        for _ in range(700):
            data = bytearray(good)
            for _ in range(pick.choice((1, 1, 2, 5))):
                if pick.random() < 0.6:
                    at = pick.choice(FIELDS)
                    data[at : at + 4] = u32(pick.choice(VALUES))
                else:
                    at = pick.randrange(len(data) // 8) * 8
                    data[at : at + 8] = u64(pick.choice((pick.randrange(1 << 64), pick.choice(VALUES))))
            path.write_bytes(data)
            tracemalloc.reset_peak()
            outcomes["opened" if try_everything(path, pick) else "refused"] += 1
            assert tracemalloc.get_traced_memory()[1] < 160 << 20
    finally:
        tracemalloc.stop()
    assert min(outcomes.values()) > 50


def try_everything(path: Path, pick: random.Random) -> bool:
    child = FileChild(path)
    writable = pick.random() < 0.6
    try:
        opened = Opened(child, writable=writable)
    except (GenericError, OSError):
        child.close()
        return False
    try:
        for action in (
            lambda: opened.get(0, 65536),
            lambda: opened.get(pick.randrange(max(opened.length, 1)), 4096),
            lambda: opened.block_status(0, max(opened.length, 1)),
            lambda: bitmaps.read_directory(child, opened.image.header),
            lambda: check.check(opened.image, frozenset()) if opened.length < 1 << 40 else None,
            lambda: opened.write(min(pick.randrange(1 << 20), max(opened.length - 1000, 0)), b"x" * 1000),
            lambda: opened.write_zeroes(0, min(100_000, opened.length)),
            lambda: opened.discard(0, min(100_000, opened.length)),
            opened.flush,
        ):
            # What reaches past the size is the node's business to refuse.
            if opened.length < 1000:
                break
            with contextlib.suppress(GenericError, OSError):
                action()
        opened.image.close()
        if opened.reports and writable and any(fatal for _, _, _, fatal in opened.reports):
            assert opened.image.dead
            with pytest.raises(OSError) as caught:
                opened.get(0, 512)
            assert caught.value.errno == errno.ENOMEDIUM
    finally:
        child.close()
    return True


class FileOpen:
    """with FileOpen(path) as image: an Opened that is closed at the end."""

    def __init__(self, path: Path) -> None:
        self.child = FileChild(path)
        self.opened = Opened(self.child)

    def __enter__(self) -> Opened:
        return self.opened

    def __exit__(self, *exc: object) -> None:
        self.opened.close()
        self.child.close()


def test_header_that_outgrows_its_cluster_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    make(path, 1 << 20, cluster_size=512)
    with FileOpen(path) as image:
        image.image.header.backing_file = "x" * 500
        with pytest.raises(OSError) as caught:
            image.image.rewrite_header()
        assert caught.value.errno == errno.ENOSPC
        assert os.strerror(errno.ENOSPC)
        image.image.header.backing_file = ""


def test_round_trip_keeps_every_field(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    make(path, 1 << 20, backing_file="a.raw", backing_fmt="raw", compression_type="zstd", lazy_refcounts=True)
    child = FileChild(path)
    first = header.parse(child)
    encoded = header.encode(first)
    assert path.read_bytes()[: len(encoded)] == encoded
    child.write(0, memoryview(encoded))
    assert header.parse(child) == first
    child.close()
