#!/usr/bin/env python3
"""Time of blockdev-mirror until it is ready, beside qemu-storage-daemon in the same run.

    scripts/bench/mirror.py [--size MIB] [--rounds N] [--folder DIR]

The source is full of data; the target is a new qcow2 image each time. For each pair of formats the sides take turns,
and the ratio of the best times is printed: below 1 ours is faster.
"""

from __future__ import annotations

import argparse
import os
import queue
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Protocol

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine.engine import Engine
from tests.qemu import storage_daemon

PAIRS = (("raw", "qcow2"), ("qcow2", "qcow2"))
MIB = 1 << 20


class Side(Protocol):
    """One of the two programs."""

    def do(self, command: str, arguments: dict[str, Any]) -> None:
        """Execute a command."""

    def wait(self, event: str) -> None:
        """Wait until the next event called *event*."""


class Ours:
    """An engine in this process."""

    def __init__(self) -> None:
        self.engine = Engine()
        self._events: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.engine.subscribe(lambda event: self._events.put(str(event["event"])))

    def do(self, command: str, arguments: dict[str, Any]) -> None:
        self.engine.execute(command, arguments)

    def wait(self, event: str) -> None:
        while self._events.get(timeout=300) != event:
            pass


class Real:
    """A qemu-storage-daemon."""

    def __init__(self, daemon: Any) -> None:
        self._daemon = daemon

    def do(self, command: str, arguments: dict[str, Any]) -> None:
        reply = self._daemon.ask(command, arguments)
        if "return" not in reply:
            raise RuntimeError(reply)

    def wait(self, event: str) -> None:
        self._daemon.wait_event(event)
        self._daemon.events.clear()


def measure(side: Side, source: Path, source_format: str, target: Path, target_format: str, size: int) -> float:
    """Seconds from the command to BLOCK_JOB_READY; the target is complete on the disk then."""
    subprocess.run(["qemu-img", "create", "-q", "-f", target_format, target, str(size)], check=True)
    for name, path, fmt in (("s", source, source_format), ("t", target, target_format)):
        file = {"driver": "file", "filename": str(path)}
        side.do("blockdev-add", {"driver": fmt, "node-name": name, "file": file})
    os.sync()
    started = time.monotonic()
    side.do("blockdev-mirror", {"job-id": "m", "device": "s", "target": "t", "sync": "full"})
    side.wait("BLOCK_JOB_READY")
    taken = time.monotonic() - started
    side.do("block-job-cancel", {"device": "m"})
    side.wait("BLOCK_JOB_COMPLETED")
    for name in ("s", "t"):
        side.do("blockdev-del", {"node-name": name})
    return taken


def make_source(folder: Path, fmt: str, size: int) -> Path:
    """An image full of data that is neither zero nor repeats."""
    path, raw = folder / f"source.{fmt}", folder / "source.raw"
    if not raw.exists():
        with raw.open("wb") as out:
            for _ in range(size // MIB):
                out.write(os.urandom(MIB))
    if fmt != "raw":
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", fmt, raw, path], check=True)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description="blockdev-mirror beside qemu-storage-daemon")
    parser.add_argument("--size", type=int, default=1024, help="MiB of data (default: 1024)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where the images are made (default: a temporary folder)")
    args = parser.parse_args()
    size = args.size * MIB
    with tempfile.TemporaryDirectory(dir=args.folder) as where, storage_daemon("qemu-storage-daemon") as daemon:
        folder = Path(where)
        ours = Ours()
        sides: dict[str, Side] = {"ours": ours, "qemu": Real(daemon)}
        try:
            for source_format, target_format in PAIRS:
                source = make_source(folder, source_format, size)
                best = dict.fromkeys(sides, float("inf"))
                target = folder / "target"
                for _ in range(args.rounds):
                    for name, side in sides.items():
                        taken = measure(side, source, source_format, target, target_format, size)
                        best[name] = min(best[name], taken)
                        target.unlink()
                print(
                    f"{source_format:>6} -> {target_format:6} {args.size} MiB   ours {best['ours']:6.2f} s   "
                    f"qemu-storage-daemon {best['qemu']:6.2f} s   ratio {best['ours'] / best['qemu']:.2f}",
                    flush=True,
                )
        finally:
            ours.engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
