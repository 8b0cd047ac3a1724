#!/usr/bin/env python3
"""Requests a second of a quorum of three equal raw files in the page cache, ours beside qemu-img bench.

One request at a time on both sides, in turn, the best of a few rounds; the ratio above 1 means ours is faster.
Run it with the project's Python: .venv/bin/python scripts/bench/quorum.py [ROUNDS [FOLDER]]
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _sides import Row

sys.path.insert(0, str(Path(__file__).parents[2]))

from engine.engine import Engine
from engine.graph.permissions import Perm

LENGTH = 64 << 20
"""Bytes of each child."""
CHILDREN = 3
THRESHOLD = 2


def ours(folder: Path, size: int, count: int, write: bool) -> float:
    """Requests a second of an engine in this process."""
    engine = Engine()
    try:
        children = [{"driver": "file", "filename": str(folder / f"{number}.raw")} for number in range(CHILDREN)]
        options = {"driver": "quorum", "node-name": "q", "children": children, "vote-threshold": THRESHOLD}
        engine.execute("blockdev-add", options)
        graph, perm = engine.graph, Perm.CONSISTENT_READ | Perm.WRITE
        user = engine.control.call(lambda: graph.add_backend("user", "", graph.nodes["q"], perm, Perm.ALL))
        request = user.write if write else user.read
        buffer = memoryview(bytearray(size))
        started = time.perf_counter()
        for number in range(count):
            request(number * size % LENGTH, buffer)
        return count / (time.perf_counter() - started)
    finally:
        engine.close()


def real(folder: Path, size: int, count: int, write: bool) -> float:
    """Requests a second of QEMU's block layer."""
    options = f"driver=quorum,vote-threshold={THRESHOLD}"
    for number in range(CHILDREN):
        options += f",children.{number}.driver=file,children.{number}.filename={folder / f'{number}.raw'}"
    command = ["qemu-img", "bench", *(["-w"] if write else []), "-c", str(count), "-d", "1", "-s", str(size)]
    done = subprocess.run([*command, "--image-opts", options], capture_output=True, text=True, check=True, timeout=120)
    found = re.search(r"completed in ([0-9.]+) seconds", done.stdout)
    assert found is not None, done.stdout
    return count / float(found[1])


def rows(rounds: int) -> list[Row]:
    """Beside qemu-img bench; the best of so many rounds."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        content = os.urandom(LENGTH)
        for number in range(CHILDREN):
            (folder / f"{number}.raw").write_bytes(content)
        for size in (4 << 10, 1 << 20):
            count = min(3000, 2 * LENGTH // size)
            for write in (False, True):
                best = [0.0, 0.0]
                for _ in range(rounds):
                    for side, measure in enumerate((ours, real)):
                        best[side] = max(best[side], measure(folder, size, count, write))
                what = f"quorum of {CHILDREN}, {'write' if write else 'read'} {size >> 10} KiB"
                found.append(Row(what, best[0], best[1], "/s", more=True))
    return found


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as name:
        folder = Path(name)
        content = os.urandom(LENGTH)
        for number in range(CHILDREN):
            (folder / f"{number}.raw").write_bytes(content)
        print(f"{'bytes':>8} {'':5} {'ours':>10} {'real':>10} requests/s  ratio")
        for size in (4 << 10, 64 << 10, 1 << 20, 4 << 20):
            count = min(3000, 2 * LENGTH // size)
            for write in (False, True):
                best = [0.0, 0.0]
                for _ in range(rounds):
                    for side, measure in enumerate((ours, real)):
                        best[side] = max(best[side], measure(folder, size, count, write))
                kind = "write" if write else "read"
                print(f"{size:>8} {kind:5} {best[0]:>10.0f} {best[1]:>10.0f} {'':10}  {best[0] / best[1]:.1f}")


if __name__ == "__main__":
    main()
