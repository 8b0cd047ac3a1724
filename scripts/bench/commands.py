#!/usr/bin/env python3
"""QMP commands a second: over a socket, one by one and sixteen ahead, beside qemu-storage-daemon; and in the process.

Run it with the project's Python: .venv/bin/python scripts/bench/commands.py [SECONDS] [ROUNDS]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from _sides import ROOT, Client, Row, need, running, servers, shown, summary

AHEAD = 16
COMMANDS = ("query-version", "query-named-block-nodes")


def one_by_one(client: Client, command: str, seconds: float) -> float:
    """Commands a second."""
    count, started = 0, time.perf_counter()
    while (taken := time.perf_counter() - started) < seconds:
        for _ in range(20):
            client.execute(command)
        count += 20
    return count / taken


def ahead(client: Client, command: str, seconds: float) -> float:
    """Commands a second with AHEAD of them on their way."""
    count, started = 0, time.perf_counter()
    while (taken := time.perf_counter() - started) < seconds:
        for _ in range(AHEAD):
            client.send(command)
        for _ in range(AHEAD):
            client.receive()
        count += AHEAD
    return count / taken


def inside(command: str, seconds: float) -> float:
    """Commands a second of an engine in this process, from another thread than its own."""
    sys.path.insert(0, str(ROOT))
    from engine.engine import Engine

    engine = Engine()
    try:
        count, started = 0, time.perf_counter()
        while (taken := time.perf_counter() - started) < seconds:
            for _ in range(20):
                engine.execute(command)
            count += 20
        return count / taken
    finally:
        engine.close()


WAYS: dict[str, Callable[[Client, str, float], float]] = {"one by one": one_by_one, f"{AHEAD} ahead": ahead}


def rows(seconds: float, rounds: int) -> list[Row]:
    """Measure everything."""
    found = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        clients = {
            side: stack.enter_context(running(command, path)) for side, (command, path) in servers(Path(name)).items()
        }
        for client in clients.values():
            client.execute("blockdev-add", {"driver": "null-co", "node-name": "n"})
        for command in COMMANDS:
            for way, measure in WAYS.items():
                rates: dict[str, list[float]] = {side: [] for side in clients}
                for _ in range(rounds):
                    for side, client in clients.items():
                        rates[side].append(measure(client, command, seconds))
                ours, daemon = (statistics.median(rates[side]) for side in ("ours", "daemon"))
                found.append(Row(f"{command}, socket, {way}", ours, daemon, "/s", more=True))
    rate = statistics.median(inside(COMMANDS[0], seconds) for _ in range(rounds))
    found.append(Row(f"{COMMANDS[0]}, in the process", rate, None, "/s", more=True))
    return found


def main() -> int:
    need("qemu-storage-daemon")
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    found = rows(seconds, int(sys.argv[2]) if len(sys.argv) > 2 else 5)
    print(*map(shown, found), summary(found), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
