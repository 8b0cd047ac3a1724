#!/usr/bin/env python3
"""Add, query, reopen and delete many nodes, by QMP over a socket, here and in qemu-storage-daemon, in the same run.

Prints milliseconds for each and the ratio (above 1: faster than the daemon). Run it with the project's Python:
.venv/bin/python scripts/bench/nodes.py [NODES]
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from _sides import Client, Row, need, running, servers, shown, summary

LIMIT = 120.0
"""Seconds that all commands of one program may take."""


def options(folder: Path, number: int) -> dict[str, Any]:
    file = {"driver": "file", "node-name": f"f{number}", "filename": str(folder / f"{number}.raw")}
    return {"driver": "raw", "node-name": f"n{number}", "file": file}


def measure(client: Client, folder: Path, count: int, limit: float) -> dict[str, float]:
    """Seconds that each kind of command took for *count* pairs of a raw and a file node; those done within *limit*."""
    times: dict[str, float] = {}
    ending = time.perf_counter() + limit

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        times[name] = time.perf_counter() - started

    def numbers(most: int) -> Iterator[int]:
        for number in range(most):
            if time.perf_counter() > ending:
                raise TimeoutError
            yield number

    with suppress(TimeoutError):
        with timed("add"):
            for i in numbers(count):
                client.execute("blockdev-add", options(folder, i))
        with timed("query, 5 times"):
            for _ in numbers(5):
                assert len(client.execute("query-named-block-nodes", {"flat": True})) == 2 * count
        with timed("reopen one by one"):
            for i in numbers(count):
                changed = {"driver": "raw", "node-name": f"n{i}", "file": f"f{i}", "read-only": True}
                client.execute("blockdev-reopen", {"options": [changed]})
        with timed("reopen all at once"):
            every = [
                {"driver": "raw", "node-name": f"n{i}", "file": f"f{i}", "read-only": False} for i in numbers(count)
            ]
            client.execute("blockdev-reopen", {"options": every})
        with timed("delete"):
            for i in numbers(count):
                client.execute("blockdev-del", {"node-name": f"n{i}"})
    return times


def rows(nodes: int, limit: float = LIMIT) -> list[Row]:
    """Measure *nodes* nodes. What only one side has done within *limit* seconds is said so."""
    count = max(nodes // 2, 1)
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i in range(count):
            (folder / f"{i}.raw").write_bytes(bytes(4096))
        times = {}
        for side, (command, path) in servers(folder).items():
            with running(command, path) as client:
                times[side] = measure(client, folder, count, limit)
        for what, seconds in times["ours"].items():
            peer = times["daemon"].get(what)
            note = "" if peer is not None else f"the daemon was not done after {limit:g} s"
            peer = None if peer is None else peer * 1000
            found.append(Row(f"{2 * count:,} nodes: {what}", seconds * 1000, peer, "ms", note=note))
        if len(times["ours"]) < 5:
            found.append(Row(f"{2 * count:,} nodes: stopped", limit * 1000, None, "ms", note="not done in time"))
    return found


def main() -> int:
    need("qemu-storage-daemon")
    found = rows(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
    print(*map(shown, found), summary(found), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
