"""A file as the child of a qcow2 image without a graph around it, and short ways to make, open and compare images."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.drivers.format.qcow2 import (
    create,
    header,
    packing,
    reading,
    resize,
    settings,
    snapshots,
    snapshotting,
    unmap,
    writing,
)
from engine.drivers.format.qcow2.image import Image
from engine.drivers.format.qcow2.options import BlockdevCreateOptionsQcow2, BlockdevOptionsQcow2
from engine.drivers.format.qcow2.snapshots import Snapshot
from engine.drivers.format.qcow2.storage import Child
from engine.graph.driver import Extent, Prealloc, Status, WriteFlag


class FileChild:
    """A host file that behaves as an edge to a file node. discards: ranges that were punched."""

    def __init__(self, path: Path | str, *, make: bool = False) -> None:
        self.path = str(path)
        self.fd = os.open(self.path, os.O_RDWR | (os.O_CREAT | os.O_TRUNC if make else 0), 0o644)
        self.discards: list[tuple[int, int]] = []
        self.reads = 0
        self.writes = 0
        self.flushes = 0

    def close(self) -> None:
        os.close(self.fd)

    @property
    def length(self) -> int:
        return os.fstat(self.fd).st_size

    def read(self, offset: int, buffer: memoryview) -> None:
        self.reads += 1
        data = os.pread(self.fd, len(buffer), offset)
        buffer[: len(data)] = data
        buffer[len(data) :] = bytes(len(buffer) - len(data))

    def write(self, offset: int, data: memoryview, flags: int = 0) -> None:
        self.writes += 1
        assert os.pwrite(self.fd, data, offset) == len(data)

    def write_zeroes(self, offset: int, length: int, flags: int = 0) -> None:
        self.write(offset, memoryview(bytes(length)))

    def discard(self, offset: int, length: int) -> None:
        self.discards.append((offset, length))

    def flush(self) -> None:
        self.flushes += 1

    def block_status(self, offset: int, length: int, want_zero: bool = True) -> Extent:
        return Extent(length, Status.DATA | Status.ALLOCATED)

    def truncate(self, length: int, *, exact: bool = True, prealloc: Prealloc = Prealloc.OFF) -> None:
        os.ftruncate(self.fd, length)


Report = tuple[str, int | None, int | None, bool]


class Opened:
    """An open image and the calls of a driver on it."""

    def __init__(
        self,
        file: Child,
        *,
        data_file: Child | None = None,
        backing: Callable[[], Child | None] = lambda: None,
        writable: bool = True,
        options: BlockdevOptionsQcow2 | None = None,
        discard_unmap: bool = True,
    ) -> None:
        self.file = file
        head = header.parse(file, writable=writable)
        self.reports: list[Report] = []
        self.image = Image(
            file,
            head,
            settings.from_options(options, head, discard_unmap),
            data_file=data_file,
            backing=backing,
            report=lambda *found: self.reports.append(found),
            writable=writable,
            snapshots=snapshots.read(file, head),
        )

    @property
    def length(self) -> int:
        return self.image.size

    def read(self, offset: int, buffer: memoryview) -> None:
        inside = max(min(len(buffer), self.image.size - offset), 0)
        if inside:
            reading.read(self.image, offset, buffer[:inside])
        buffer[inside:] = bytes(len(buffer) - inside)

    def get(self, offset: int, length: int) -> bytes:
        buffer = bytearray(length)
        self.read(offset, memoryview(buffer))
        return bytes(buffer)

    def write(self, offset: int, data: bytes | memoryview, flags: int = 0) -> None:
        if flags & WriteFlag.COMPRESSED:
            packing.write(self.image, offset, memoryview(data))
        else:
            writing.write(self.image, offset, memoryview(data))

    def write_zeroes(self, offset: int, length: int, flags: int = 0) -> None:
        try:
            unmap.write_zeroes(self.image, offset, length, flags)
        except OSError as exc:
            if exc.strerror != os.strerror(95):
                raise
            self.write(offset, bytes(length))

    def discard(self, offset: int, length: int) -> None:
        try:
            unmap.discard(self.image, offset, length)
        except OSError as exc:
            if exc.strerror != os.strerror(95):
                raise

    def flush(self) -> None:
        self.image.ordering.write_back()

    def block_status(self, offset: int, length: int, want_zero: bool = True) -> Extent:
        run, flags, host = reading.block_status(self.image, offset, length)
        return Extent(run, flags, None, host)

    def truncate(self, length: int, *, exact: bool = True, prealloc: Prealloc = Prealloc.OFF) -> None:
        resize.truncate(self.image, length, exact=exact, prealloc=prealloc)

    def snapshot(self, name: str) -> Snapshot:
        return snapshotting.create(self.image, name, snapshotting.Moment(1_700_000_000, 5, 7))

    def delete(self, name: str) -> None:
        found = snapshotting.find(self.image, None, name)
        assert found is not None
        snapshotting.delete(self.image, found)

    def goto(self, name: str) -> None:
        found = snapshotting.find_any(self.image, name)
        assert found is not None
        snapshotting.go_back(self.image, found)

    def close(self) -> None:
        self.image.close()
        if self.image.writable and not self.image.dead:
            self.image.mark_clean()


@contextmanager
def opened(path: Path | str, **options: Any) -> Iterator[Opened]:
    """The image at *path*, open; closed cleanly at the end."""
    file = FileChild(path)
    image = Opened(file, **options)
    try:
        yield image
    finally:
        image.close()
        file.close()


def make(path: Path | str, size: int, *, data_file: Path | str | None = None, **options: Any) -> None:
    """A new image made by the driver; *options* are those of BlockdevCreateOptionsQcow2."""
    given = BlockdevCreateOptionsQcow2(
        file=str(path), size=size, data_file=str(data_file) if data_file is not None else None, **options
    )
    file = FileChild(path, make=True)
    data = FileChild(data_file, make=True) if data_file is not None else None
    try:
        head = create.header_for(given)
        head.data_file = str(data_file) if data_file is not None else ""
        create.build(file, data, head, given)
    finally:
        file.close()
        if data is not None:
            data.close()


def run(*command: str | Path) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def qemu_check(path: Path | str, *, leaks: bool = False) -> dict[str, Any]:
    """What qemu-img check finds; fails on corruption, and on leaks unless *leaks*."""
    done = subprocess.run(["qemu-img", "check", "--output=json", str(path)], capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode in ((0, 3) if leaks else (0,)), f"{done.returncode} {found} {done.stderr}"
    return found


def qemu_read(path: Path | str) -> bytes:
    """The guest's bytes as qemu-img sees them."""
    raw = f"{path}.raw"
    run("qemu-img", "convert", "-O", "raw", path, raw)
    data = Path(raw).read_bytes()
    os.unlink(raw)
    return data
