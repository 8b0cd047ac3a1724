#!/usr/bin/env python3
"""Time of block jobs beside qemu-storage-daemon, and of a raw copy beside cp, all in the same run.

    scripts/bench/jobs.py [--size MIB] [--rounds N] [--folder DIR] [--only WORD]

Each case is done by both sides in turn; printed are the medians and their ratio (the daemon's time by ours: above 1
ours is faster), and the geometric mean of the ratios. A copy counts as done when the job has said that it is ready or
complete and the data are on the disk, as `sync -d` does it; so for cp. With --no-flush nobody waits for the disk: both
sides open all images with cache.no-flush=on, and what counts is the job's event.

Layouts: "full" is all data; "holes" has 64 KiB of data after every 64 KiB of nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from _sides import DAEMON, ROOT, Row, need, shown, summary

sys.path.insert(0, str(ROOT))

from engine.engine import Engine
from tests.qemu import storage_daemon

MIB = 1 << 20
HOLE = 64 << 10
SPARE = 8 << 30
"""Bytes left free on the disk."""


class Side(Protocol):
    """One of the two programs."""

    def do(self, command: str, **arguments: Any) -> Any:
        """Execute a command; what it returns."""

    def wait(self, event: str) -> None:
        """Wait until the next event called *event*."""


class Ours:
    """An engine in this process."""

    def __init__(self) -> None:
        self.engine = Engine()
        self._events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.engine.subscribe(self._events.put)

    def do(self, command: str, **arguments: Any) -> Any:
        return self.engine.execute(command, wire(arguments))

    def wait(self, event: str) -> None:
        while (found := self._events.get(timeout=300))["event"] != event:
            pass
        if "error" in found.get("data", {}):
            raise RuntimeError(found)


class Real:
    """A qemu-storage-daemon."""

    def __init__(self, daemon: Any) -> None:
        self._daemon = daemon

    def do(self, command: str, **arguments: Any) -> Any:
        reply = self._daemon.ask(command, wire(arguments))
        if "return" not in reply:
            raise RuntimeError(reply)
        return reply["return"]

    def wait(self, event: str) -> None:
        self._daemon.wait_event(event)
        self._daemon.events.clear()


def wire(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "-"): value for name, value in arguments.items()}


@dataclass
class Place:
    """Where images are, and how large. size: bytes of the disk. no_flush: nothing waits for the host's disk."""

    folder: Path
    size: int
    no_flush: bool = False
    kept: int = 0

    def source(self, layout: str, fmt: str) -> Path:
        """An image of that layout, made when it is first asked for."""
        raw, path = self.folder / f"{layout}.raw", self.folder / f"{layout}.{fmt}"
        if not raw.exists():
            step = MIB if layout == "full" else HOLE
            with raw.open("wb") as out:
                out.truncate(self.size)
                for offset in range(0, self.size, step if layout == "full" else 2 * step):
                    out.seek(offset)
                    out.write(os.urandom(step))
        if not path.exists():
            convert(raw, "raw", path, fmt)
        return path

    def put_away(self, path: Path) -> None:
        """Make room for another file of that name.

        Where there is space enough the old one stays until the end: a filesystem that discards freed blocks (ext4
        with discard) gives them to the next file, and to write them again takes a virtual disk several times as long,
        whoever does it. The memory of its cache is used again, for the same reason: a virtual machine may have to get
        more from its host.
        """
        if not path.exists():
            return
        if shutil.disk_usage(self.folder).free > SPARE + self.size:
            self.kept += 1
            with path.open("rb") as old:
                os.fsync(old.fileno())
                os.posix_fadvise(old.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            path.rename(self.folder / f"kept-{self.kept}")
        else:
            path.unlink()

    def empty(self, fmt: str, backing: Path | None = None, backing_format: str = "") -> Path:
        """A new image."""
        path = self.folder / "target"
        self.put_away(path)
        over = ["-b", str(backing), "-F", backing_format] if backing is not None else []
        subprocess.run(["qemu-img", "create", "-q", "-f", fmt, *over, path, str(self.size)], check=True)
        return path


def convert(path: Path, fmt: str, to: Path, to_format: str) -> None:
    subprocess.run(["qemu-img", "convert", "-f", fmt, "-O", to_format, path, to], check=True)


def add(side: Side, place: Place, name: str, fmt: str, path: Path, **options: Any) -> None:
    cache = {"no-flush": place.no_flush}
    file = {"driver": "file", "filename": str(path), "cache": cache}
    side.do("blockdev-add", node_name=name, driver=fmt, file=file, cache=cache, **options)


def seconds_since(began: float, place: Place, target: Path) -> float:
    """The time until now, when a job has ended, or until *target* is on the disk."""
    if not place.no_flush:
        fd = os.open(target, os.O_RDONLY)
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)
    return time.monotonic() - began


def mirror(side: Side, place: Place, layout: str, fmt: str, to: str) -> float:
    target = place.empty(to)
    add(side, place, "s", fmt, place.source(layout, fmt))
    add(side, place, "t", to, target)
    os.sync()
    began = time.monotonic()
    side.do("blockdev-mirror", job_id="j", device="s", target="t", sync="full")
    side.wait("BLOCK_JOB_READY")
    taken = seconds_since(began, place, target)
    side.do("block-job-cancel", device="j")
    side.wait("BLOCK_JOB_COMPLETED")
    return taken


def backup(side: Side, place: Place, layout: str, fmt: str, to: str) -> float:
    target = place.empty(to)
    add(side, place, "s", fmt, place.source(layout, fmt))
    add(side, place, "t", to, target)
    os.sync()
    began = time.monotonic()
    side.do("blockdev-backup", job_id="j", device="s", target="t", sync="full")
    side.wait("BLOCK_JOB_COMPLETED")
    return seconds_since(began, place, target)


def stream(side: Side, place: Place, layout: str, fmt: str, to: str) -> float:
    """Pull an image into an overlay of format *to*."""
    source = place.source(layout, fmt)
    target = place.empty(to, source, fmt)
    add(side, place, "s", fmt, source, read_only=True)
    add(side, place, "t", to, target, backing="s")
    os.sync()
    began = time.monotonic()
    side.do("block-stream", job_id="j", device="t")
    side.wait("BLOCK_JOB_COMPLETED")
    return seconds_since(began, place, target)


def commit(side: Side, place: Place, layout: str, fmt: str, to: str) -> float:
    """Write a layer of the chain down into an empty image of format *to*."""
    target = place.empty(to)
    middle, top = place.folder / "middle.qcow2", place.folder / "top.qcow2"
    place.put_away(middle)
    place.put_away(top)
    convert(place.source(layout, fmt), fmt, middle, "qcow2")
    subprocess.run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", target, "-F", to, middle], check=True)
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", middle, "-F", "qcow2", top]
    subprocess.run(command, check=True)
    add(side, place, "t", to, target, read_only=True)
    add(side, place, "s", "qcow2", middle, read_only=True, backing="t")
    add(side, place, "top", "qcow2", top, backing="s")
    os.sync()
    began = time.monotonic()
    side.do("block-commit", job_id="j", device="top", top_node="s", base_node="t")
    side.wait("BLOCK_JOB_COMPLETED")
    return seconds_since(began, place, target)


def tidy(side: Side) -> None:
    """Take out of the graph what is left in it."""
    while side.do("query-jobs"):
        time.sleep(0.001)
    names = ["top", "t", "s"]
    while left := names_of(side, names):
        for name in left:
            # One that another leans on goes in the next round.
            with contextlib.suppress(Exception):
                side.do("blockdev-del", node_name=name)


def names_of(side: Side, names: list[str]) -> list[str]:
    """Those of *names* that there are nodes of."""
    there = {node["node-name"] for node in side.do("query-named-block-nodes")}
    return [name for name in names if name in there]


def copy(place: Place) -> float:
    """Seconds that cp takes for the full raw image, until it is on the disk."""
    source, target = place.source("full", "raw"), place.folder / "copy"
    place.put_away(target)
    os.sync()
    began = time.monotonic()
    subprocess.run(["cp", "--reflink=never", source, target], check=True)
    subprocess.run(["sync", "-d", target], check=True)
    return time.monotonic() - began


Job = Callable[[Side, Place, str, str, str], float]
CASES: list[tuple[str, Job, str, str, str]] = [
    (f"{job.__name__} {source} -> {to}, {layout}", job, layout, source, to)
    for layout in ("full", "holes")
    for job, pairs in (
        (mirror, (("raw", "raw"), ("raw", "qcow2"), ("qcow2", "qcow2"), ("qcow2", "raw"))),
        (backup, (("raw", "raw"), ("raw", "qcow2"), ("qcow2", "qcow2"))),
        (stream, (("raw", "qcow2"), ("qcow2", "qcow2"))),
        (commit, (("qcow2", "raw"), ("qcow2", "qcow2"))),
    )
    for source, to in pairs
]


def rows(size: int, rounds: int, folder: str | None = None, only: str = "", *, no_flush: bool = False) -> Iterator[Row]:
    """Measure the cases that have *only* in their name, with disks of *size* bytes; images are made in *folder*."""
    with tempfile.TemporaryDirectory(dir=folder) as where, storage_daemon(DAEMON) as daemon:
        place = Place(Path(where), size, no_flush)
        ours = Ours()
        sides: dict[str, Side] = {"ours": ours, "daemon": Real(daemon)}
        try:
            for name, job, layout, source, to in CASES:
                if only not in name:
                    continue
                times: dict[str, list[float]] = {"ours": [], "daemon": [], "cp": []}
                for number in range(rounds):
                    # Each is the first one as often as the other.
                    for who, side in sorted(sides.items(), reverse=bool(number % 2)):
                        times[who].append(job(side, place, layout, source, to))
                        tidy(side)
                    if name == "mirror raw -> raw, full":
                        times["cp"].append(copy(place))
                mine, other = (statistics.median(times[who]) for who in ("ours", "daemon"))
                note = f"{mine / statistics.median(times['cp']):.2f} × the time of cp" if times["cp"] else ""
                yield Row(name, mine * 1000, other * 1000, "ms", note=note)
        finally:
            ours.engine.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="block jobs beside qemu-storage-daemon")
    parser.add_argument("--size", type=int, default=512, help="MiB of the disk (default: 512)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where the images are made (default: a temporary folder)")
    parser.add_argument("--only", default="", help="only the cases that have this in their name")
    parser.add_argument("--no-flush", action="store_true", help="open images with cache.no-flush=on, on both sides")
    args = parser.parse_args()
    need(DAEMON, "qemu-img")
    found = []
    for row in rows(args.size * MIB, args.rounds, args.folder, args.only, no_flush=args.no_flush):
        found.append(row)
        print(shown(row), flush=True)
    print(summary(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
