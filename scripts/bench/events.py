#!/usr/bin/env python3
"""Time from a key to its picture while 20,000 events a second come in, and the memory that they take.

The screen, 80×24 on a pseudo-terminal, shows a server that floods it. Letters are typed at the prompt; the cursor of
the event log is moved; a filter is typed over the full log; the palette is opened, with 300 commands. Prints median,
99th percentile and maximum in milliseconds beside the limit, the rate of events that the screen really took in, and how
much memory it has once the log's ring of 100,000 is full, with another such held, and again later. The status is 1
where a limit is not kept.
Run it with the project's Python: .venv/bin/python scripts/bench/events.py [KEYS]
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from keys import LIMIT, Terminal, echoes

RATE = 20_000
COMMANDS = 300
BEAT = 0.01
"""Seconds between two batches of events."""
GROWTH = 8
"""MiB that the screen may grow by once it holds all that it can: the allocator's slack."""


class Flood:
    """A server without nodes that only tells of events, RATE of them a second."""

    title = "flood"

    def __init__(self) -> None:
        self._callbacks: list[Callable[[Sequence[dict[str, Any]]], None]] = []
        self._task: asyncio.Task[None] | None = None
        self.sent = 0

    async def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()

    def subscribe(self, callback: Callable[[Sequence[dict[str, Any]]], None]) -> Callable[[], None]:
        """Tell *callback* of all batches."""
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """The commands that a screen asks for at its start."""
        from blockmon.backend import CommandError

        if command == "query-commands":
            own = ("query-commands", "query-jobs", "query-block-jobs")
            return [{"name": name} for name in (*own, *(f"do-thing-{number}" for number in range(COMMANDS - len(own))))]
        if command in ("query-jobs", "query-block-jobs"):
            return []
        raise CommandError("CommandNotFound", f"The command {command} has not been found")

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        while True:
            await asyncio.sleep(BEAT)
            batch = [self._event() for _ in range(int((loop.time() - started) * RATE) - self.sent)]
            self.sent += len(batch)
            for callback in tuple(self._callbacks):
                callback(batch)

    def _event(self) -> dict[str, Any]:
        number = random.randrange(1000)
        name: str
        data: dict[str, Any]
        if number % 7:
            name = "BLOCK_IO_ERROR"
            data = {"device": f"disk{number}", "node-name": f"node{number}", "operation": "write", "action": "report",
                    "nospace": False, "reason": "Input/output error"}  # fmt: skip
        else:
            name, data = "JOB_STATUS_CHANGE", {"id": f"disk{number % 10}", "status": ("paused", "running")[number % 2]}
        seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        stamp = {"seconds": seconds, "microseconds": nanoseconds // 1000}
        return {"timestamp": stamp, "event": name, "data": data}


async def screen(counted: str) -> None:
    """The screen on the flood. How many events it has had is written to the file *counted* in the end."""
    from blockmon.options import CommonOptions
    from blockmon.repl.session import ReplSession
    from blockmon.tui import main as _environment  # noqa: F401
    from blockmon.tui.app import BlockmonApp

    backend = Flood()
    session = ReplSession(backend, show_events=False)
    app = BlockmonApp(backend, session, CommonOptions())
    started = time.monotonic()
    await app.run_async()
    seconds = time.monotonic() - started
    await session.close()
    await backend.close()
    await asyncio.to_thread(Path(counted).write_text, f"{app.state.events.end / seconds:.0f}")


def moves(terminal: Terminal, keys: int) -> list[float]:
    """Milliseconds from each press of an arrow to what it draws; the log is held meanwhile."""
    times = []
    terminal.write(b"\x1b[B")
    terminal.count(0.5)
    for number in range(keys):
        started = time.perf_counter()
        terminal.write(b"\x1b[B" if number % 12 < 6 else b"\x1b[A")
        terminal.wait_for(lambda seen: b"disk" in seen, 5)
        times.append((time.perf_counter() - started) * 1000)
        # The log is held, so that nothing else is drawn; but for the count of newer events, ten times a second.
        terminal.count(0.07)
    return times


def filters(terminal: Terminal, keys: int) -> list[float]:
    """Milliseconds from each letter of a filter over the full log to its echo."""
    times = []
    terminal.write(b"/")
    terminal.count(0.3)
    for number in range(keys):
        if number % 8 == 0:
            terminal.write(b"\x15")
            terminal.count(0.5)
        key = b"QWXZ"[number % 4 : number % 4 + 1]
        started = time.perf_counter()
        terminal.write(key)
        terminal.wait_for_text(key, 5)
        times.append((time.perf_counter() - started) * 1000)
        terminal.count(0.1)
    terminal.write(b"\x1b")
    return times


def palettes(terminal: Terminal, keys: int) -> list[float]:
    """Milliseconds from the key of the palette to the palette."""
    times = []
    for _ in range(keys // 4):
        started = time.perf_counter()
        terminal.write(b"\x1b[20~")
        terminal.wait_for_text(b"Commands and views", 5)
        times.append((time.perf_counter() - started) * 1000)
        terminal.count(0.1)
        terminal.write(b"\x1b")
        terminal.count(0.4)
    return times


def resident(pid: int) -> float:
    """A process's memory in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def main() -> int:
    keys = int(sys.argv[1]) if len(sys.argv) > 1 else 120
    counted = Path(f"/tmp/blockmon-events-{os.getpid()}")
    terminal = Terminal([sys.executable, os.path.abspath(__file__), "--screen", str(counted)])
    bad = False
    try:
        terminal.wait_for_text(b"flood", 30)
        terminal.count(100_000 / RATE + 2)
        full, held = resident(terminal.pid), 0.0
        for name, pane, measure in (
            ("typing at the prompt", b"\x1b[15~", echoes),
            ("moving in the log", b"\x1bOS", moves),
            ("filtering the log", b"\x1bOS", filters),
            ("opening the palette", b"\x1bOS", palettes),
            ("moving in the log", b"\x1bOS", moves),
        ):
            terminal.write(pane)
            terminal.count(0.5)
            times = sorted(measure(terminal, keys))
            if measure is moves and not held:
                terminal.count(100_000 / RATE)
                held = resident(terminal.pid)
            late = times[min(len(times) - 1, round(len(times) * 0.99))]
            bad |= late > LIMIT
            print(
                f"{name:<22} median {statistics.median(times):5.1f} ms   99 % {late:5.1f} ms   max {times[-1]:5.1f} ms"
                f"   limit {LIMIT} ms"
            )
        terminal.count(100_000 / RATE)
        after = resident(terminal.pid)
    finally:
        terminal.end()
    bad |= after - held > GROWTH
    print(
        f"memory with a full ring {full:.0f} MiB, with another one held {held:.0f} MiB, and again later {after:.0f} MiB"
        f"   limit +{GROWTH} MiB"
    )
    if counted.exists():
        print(f"events taken in        {counted.read_text():>6} a second")
        counted.unlink()
    return int(bad)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--screen"]:
        asyncio.run(screen(sys.argv[2]))
    else:
        sys.exit(main())
