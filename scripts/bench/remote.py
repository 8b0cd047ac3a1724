#!/usr/bin/env python3
"""Time of mirrors and a backup from and to an NBD server (qemu-nbd), here and in qemu-storage-daemon, in the same run.

    scripts/bench/remote.py [--size MIB] [--rounds N] [--folder DIR]

"pull" copies from the server into a raw image, "push" copies a raw image to it. All images are opened with
cache.no-flush=on: what counts is how the two programs use the connection, not the disk.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _sides import DAEMON, Row, need, shown, summary
from jobs import MIB, Ours, Place, Real, Side, add, tidy

from tests.qemu import storage_daemon


@contextmanager
def served(image: Path, *options: str) -> Iterator[Path]:
    """A qemu-nbd that serves the raw *image*; its socket."""
    socket = image.with_suffix(".sock")
    command = ["qemu-nbd", "-t", "-e", "8", "-f", "raw", *options, "-k", str(socket), str(image)]
    process = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + 20
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("qemu-nbd does not listen")
            time.sleep(0.02)
        yield socket
    finally:
        process.terminate()
        process.wait()


def empty(path: Path, size: int) -> Path:
    path.unlink(missing_ok=True)
    with path.open("wb") as out:
        out.truncate(size)
    return path


def connect(side: Side, name: str, socket: Path, **options: Any) -> None:
    server = {"type": "unix", "path": str(socket)}
    side.do("blockdev-add", driver="nbd", node_name=name, server=server, **options)


def copy(side: Side, job: str) -> float:
    """Seconds that the *job* takes from s to t."""
    began = time.monotonic()
    side.do(f"blockdev-{job}", job_id="j", device="s", target="t", sync="full")
    side.wait("BLOCK_JOB_READY" if job == "mirror" else "BLOCK_JOB_COMPLETED")
    taken = time.monotonic() - began
    if job == "mirror":
        side.do("block-job-cancel", device="j")
        side.wait("BLOCK_JOB_COMPLETED")
    return taken


def rows(size: int, rounds: int, folder: str | None = None) -> Iterator[Row]:
    """Measure with disks of *size* bytes; images are made in *folder*."""
    with tempfile.TemporaryDirectory(dir=folder) as where, storage_daemon(DAEMON) as daemon:
        place = Place(Path(where), size, no_flush=True)
        source = place.source("full", "raw")
        target = empty(place.folder / "remote.raw", size)
        ours = Ours()
        sides: dict[str, Side] = {"ours": ours, "daemon": Real(daemon)}
        try:
            with served(source, "-r") as pull, served(target) as push:
                for job, way in (("mirror", "pull"), ("mirror", "push"), ("backup", "pull")):
                    times: dict[str, list[float]] = {"ours": [], "daemon": []}
                    for _ in range(rounds):
                        for who, side in sides.items():
                            if way == "pull":
                                connect(side, "s", pull, read_only=True)
                                add(side, place, "t", "raw", empty(place.folder / "local.raw", size))
                            else:
                                add(side, place, "s", "raw", source, read_only=True)
                                connect(side, "t", push)
                            times[who].append(copy(side, job))
                            tidy(side)
                    mine, other = (statistics.median(times[who]) for who in ("ours", "daemon"))
                    yield Row(f"{job}, {way}", mine * 1000, other * 1000, "ms")
        finally:
            ours.engine.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="jobs over NBD beside qemu-storage-daemon")
    parser.add_argument("--size", type=int, default=256, help="MiB of the disk (default: 256)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where the images are made (default: a temporary folder)")
    args = parser.parse_args()
    need(DAEMON, "qemu-img", "qemu-nbd")
    found = []
    for row in rows(args.size * MIB, args.rounds, args.folder):
        found.append(row)
        print(shown(row), flush=True)
    print(summary(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
