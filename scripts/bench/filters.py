#!/usr/bin/env python3
"""Requests a second through chains of 0 to 8 filters, in this process: what each filter adds to a request.

Run it with the project's Python: .venv/bin/python scripts/bench/filters.py [SECONDS]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time

from _sides import ROOT, Row, shown

sys.path.insert(0, str(ROOT))

from engine.engine import Engine
from engine.graph.permissions import Perm

DEPTH = 8
SIZE, REQUEST = 64 << 20, 4096
ROUNDS = 5
KINDS = ("raw", "copy-on-read", "blkdebug")


def measure(kind: str, seconds: float) -> list[float]:
    """Microseconds of a read of 4 KiB through 0, 1, … DEPTH filters of *kind*; medians, measured in turn."""
    engine = Engine()
    times: list[list[float]] = [[] for _ in range(DEPTH + 1)]
    try:
        with tempfile.NamedTemporaryFile() as image:
            image.truncate(SIZE)
            engine.execute("blockdev-add", {"driver": "file", "node-name": "f0", "filename": image.name})
            for depth in range(1, DEPTH + 1):
                child = "image" if kind == "blkdebug" else "file"
                engine.execute("blockdev-add", {"driver": kind, "node-name": f"f{depth}", child: f"f{depth - 1}"})
            graph, backends = engine.graph, []
            for depth in range(DEPTH + 1):
                node = graph.nodes[f"f{depth}"]
                backends.append(
                    engine.control.call(
                        lambda node=node: graph.add_backend("user", "", node, Perm.CONSISTENT_READ, Perm.ALL)
                    )
                )
            buffer = memoryview(bytearray(REQUEST))
            for _ in range(ROUNDS):
                for depth, backend in enumerate(backends):
                    count, started = 0, time.perf_counter()
                    while (taken := time.perf_counter() - started) < seconds:
                        for offset in range(0, 200 * REQUEST, REQUEST):
                            backend.read(offset, buffer)
                        count += 200
                    times[depth].append(taken / count * 1e6)
    finally:
        engine.close()
    return [statistics.median(each) for each in times]


def rows(seconds: float) -> list[Row]:
    """One row for each kind of filter: what one more of them costs, and what the deepest chain takes."""
    found = []
    for kind in KINDS:
        times = measure(kind, seconds)
        each = (times[-1] - times[0]) / DEPTH
        note = "0…8: " + " ".join(f"{value:.2f}" for value in times)
        found.append(Row(f"one more {kind} in a 4 KiB read", each, None, "µs", note=note))
    return found


def main() -> int:
    print(*map(shown, rows(float(sys.argv[1]) if len(sys.argv) > 1 else 0.1)), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
