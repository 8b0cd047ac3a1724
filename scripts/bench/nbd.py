#!/usr/bin/env python3
"""Serve one image by NBD, here and from qemu-storage-daemon, to fio's nbd engine: requests a second, and their ratio.

Both servers run at the same time and are measured in turn; the figures are medians. A ratio above 1: faster than the
daemon. Images lie in $TMPDIR; on a disk, small writes measure its writeback more than the servers, so try /dev/shm too.
Run it with the project's Python: .venv/bin/python scripts/bench/nbd.py [SECONDS] [ROUNDS] [raw|qcow2 ...]
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from _sides import DAEMON, Row, need, program, shown, summary

SIZE = 512 << 20
CASES = (
    ("randread", "4k", 16),
    ("randread", "4k", 1),
    ("randwrite", "4k", 16),
    ("randwrite", "4k", 1),
    ("read", "1m", 4),
    ("write", "1m", 4),
)
"""fio's name, block size, requests in flight."""


def serve(command: list[str], image: Path, driver: str, socket: Path) -> subprocess.Popen[bytes]:
    """Start a server and wait until it listens."""
    process = subprocess.Popen(
        [
            *(
                *command,
                "--blockdev",
                f"file,filename={image},node-name=f",
                "--blockdev",
                f"{driver},file=f,node-name=n",
            ),
            *("--nbd-server", f"addr.type=unix,addr.path={socket}"),
            *("--export", "nbd,id=e,node-name=n,name=,writable=on"),
        ],
        stdin=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 20
    while not socket.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise SystemExit(f"{command[0]} does not listen")
        time.sleep(0.02)
    return process


def measure(socket: Path, what: str, size: str, depth: int, seconds: float) -> float:
    """Requests a second."""
    done = subprocess.run(
        [
            *("fio", "--name=x", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={socket}", f"--rw={what}"),
            *(
                f"--bs={size}",
                f"--iodepth={depth}",
                "--time_based",
                f"--runtime={round(seconds * 1000)}ms",
                f"--size={SIZE}",
            ),
            *("--output-format=json", "--randrepeat=1", "--norandommap"),
        ],
        capture_output=True,
        check=True,
        timeout=60 + seconds,
    )
    job = json.loads(done.stdout[done.stdout.index(b"{") :])["jobs"][0]
    return float(job["read"]["iops"] + job["write"]["iops"])


def compare(folder: Path, driver: str, seconds: float, rounds: int) -> Iterator[Row]:
    """Measure every case with an image of *driver*."""
    commands = {"ours": program("serve"), "daemon": [DAEMON]}
    processes, sockets = [], {}
    try:
        for name, command in commands.items():
            image = folder / f"{name}.{driver}"
            subprocess.run(["qemu-img", "create", "-q", "-f", driver, image, str(SIZE)], check=True)
            subprocess.run(["qemu-io", "-f", driver, "-c", f"write -q -P 165 0 {SIZE}", image], check=True)
            sockets[name] = folder / f"{name}.{driver}.sock"
            processes.append(serve(command, image, driver, sockets[name]))
        for what, size, depth in CASES:
            rates: dict[str, list[float]] = {name: [] for name in commands}
            for _ in range(rounds):
                for name, path in sockets.items():
                    rates[name].append(measure(path, what, size, depth, seconds))
            ours, daemon = (statistics.median(rates[name]) for name in ("ours", "daemon"))
            yield Row(f"{driver} {what} {size} depth {depth}", ours, daemon, "/s", more=True)
    finally:
        for process in processes:
            process.terminate()
            process.wait()


def rows(
    seconds: float, rounds: int, drivers: Sequence[str] = ("raw", "qcow2"), folder: str | None = None
) -> Iterator[Row]:
    """Measure all cases; images are made in *folder*."""
    with tempfile.TemporaryDirectory(prefix="blockmon-nbd-", dir=folder) as where:
        for driver in drivers:
            yield from compare(Path(where), driver, seconds, rounds)


def main() -> int:
    arguments = sys.argv[1:]
    drivers = [each for each in arguments if each in ("raw", "qcow2")] or ["raw", "qcow2"]
    numbers = [float(each) for each in arguments if each not in drivers]
    seconds = numbers[0] if numbers else 2.0
    rounds = int(numbers[1]) if len(numbers) > 1 else 3
    need("fio", DAEMON, "qemu-img", "qemu-io")
    found = []
    for row in rows(seconds, rounds, drivers):
        found.append(row)
        print(shown(row), flush=True)
    print(summary(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
