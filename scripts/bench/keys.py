#!/usr/bin/env python3
"""Time from a key to its picture on the screen, and the bytes that a busy screen sends.

Two screens of 80×24 on a pseudo-terminal, each with the normal output and with --low-bandwidth:

- `blockmon demo`, with its guests and jobs at work;
- an engine with 1,000 nodes and 10 jobs at work, of which a thousand events come in every second.

Letters are typed at the prompt one at a time, and each is waited for; on the large screen the cursor of the graph is
moved too. Prints median, 99th percentile and maximum in milliseconds beside the limit, and the bytes a second that come
while nobody types. The status is 1 where a limit is not kept.
Run it with the project's Python: .venv/bin/python scripts/bench/keys.py [KEYS [NODES]]; 10000 nodes are worth a look.
"""

from __future__ import annotations

import asyncio
import fcntl
import math
import os
import pty
import random
import re
import select
import signal
import statistics
import struct
import sys
import termios
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

LIMIT = 50
"""Milliseconds at the 99th percentile."""
LOW_LIMIT = 2000
"""Bytes a second with --low-bandwidth."""
QUIET = 8.0
"""Seconds over which the bytes of the busy screen are counted."""

NODES, JOBS, EVENTS = 1000, 10, 1000
DEPTH = 5
BEAT = 0.02
"""Seconds between two batches of events."""

_CONTROLS = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|.)", re.DOTALL)
LETTERS = b"QWXZ"
"""Capitals stand nowhere else on the screen, so one that comes is the echo."""


class Terminal:
    """The program on a pseudo-terminal."""

    def __init__(self, command: Sequence[str]) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM="xterm-256color", COLORTERM="truecolor", LANG="C.UTF-8")
            os.execv(command[0], list(command))
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))

    def wait_for(self, wanted: Callable[[bytes], bool], seconds: float) -> None:
        """Read until *wanted* holds for what came. Raises TimeoutError."""
        seen, end = b"", time.perf_counter() + seconds
        while not wanted(seen):
            ready, _, _ = select.select([self.fd], [], [], max(0.0, end - time.perf_counter()))
            if not ready:
                raise TimeoutError(f"it did not come within {seconds} s; seen: {seen[-1000:]!r}")
            seen += os.read(self.fd, 65536)

    def wait_for_text(self, text: bytes, seconds: float) -> None:
        """Read until *text* was written."""
        self.wait_for(lambda seen: text in _CONTROLS.sub(b"", seen), seconds)

    def count(self, seconds: float) -> int:
        """Bytes that come within so many seconds."""
        total, end = 0, time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0:
            if select.select([self.fd], [], [], left)[0]:
                total += len(os.read(self.fd, 65536))
        return total

    def write(self, keys: bytes) -> None:
        os.write(self.fd, keys)

    def end(self) -> None:
        """Close it as the user would, or else by force."""
        self.write(b"\x11\x11")  # once more for the question whether to end what is under way
        killer = time.perf_counter() + 10
        try:
            while time.perf_counter() < killer:
                if select.select([self.fd], [], [], 1)[0]:
                    os.read(self.fd, 65536)
            os.kill(self.pid, signal.SIGKILL)
        except OSError:
            pass  # the terminal is gone, and the program with it
        os.waitpid(self.pid, 0)
        os.close(self.fd)


def echoes(terminal: Terminal, keys: int) -> list[float]:
    """Milliseconds from each of so many keys to its echo at the prompt."""
    times = []
    chance = random.Random(1)
    for number in range(keys):
        if number % 24 == 0:
            terminal.write(b"\x15")  # Ctrl+U: an empty line
            terminal.count(0.2)
        key = LETTERS[number % 4 : number % 4 + 1]
        started = time.perf_counter()
        terminal.write(key)
        terminal.wait_for_text(key, 5)
        times.append((time.perf_counter() - started) * 1000)
        terminal.count(chance.uniform(0.03, 0.13))
    return times


def moves(terminal: Terminal, keys: int) -> list[float]:
    """Milliseconds from each press of the arrow to the moved cursor, which alone has that ground."""
    times = []
    chance = random.Random(2)
    for number in range(keys):
        started = time.perf_counter()
        terminal.write(b"\x1b[B" if number % 40 < 20 else b"\x1b[A")
        terminal.wait_for(lambda seen: CURSOR in seen, 5)
        times.append((time.perf_counter() - started) * 1000)
        terminal.count(chance.uniform(0.03, 0.13))
    return times


CURSOR = b""


def cursor_ground(low: bool) -> bytes:
    """How the ground of the selected row is sent."""
    from rich.color import Color, ColorSystem

    from blockmon.themes import find_theme, parse_style

    colour = parse_style(find_theme("dark")[0].ui["cursor"]).background
    system = ColorSystem.EIGHT_BIT if low else ColorSystem.TRUECOLOR
    return ";".join(Color.parse(str(colour)).downgrade(system).get_ansi_codes(foreground=False)).encode()


# The large screen, in a process of its own.


async def build(backend: Any, nodes: int) -> None:
    """Chains of so many nodes, and jobs that go on for as long as anyone looks."""
    for number in range(nodes):
        chain, level = divmod(number, DEPTH)
        options: dict[str, Any] = {"node-name": f"c{chain}-{level}"}
        if level:
            options |= {"driver": "raw", "file": f"c{chain}-{level - 1}"}
        else:
            options |= {"driver": "null-co", "size": 1 << 40, "read-zeroes": True}
        await backend.execute("blockdev-add", options)
    for number in range(JOBS):
        names = {"device": f"c{number}-{DEPTH - 1}", "target": f"c{number + JOBS}-{DEPTH - 1}"}
        await backend.execute("blockdev-mirror", {"job-id": f"job{number}", "sync": "full", "speed": 1 << 20, **names})


class Flooded:
    """A backend from which a thousand events a second come, besides its own."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._callbacks: list[Callable[[Sequence[dict[str, Any]]], None]] = []
        self._task: asyncio.Task[None] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def start(self) -> None:
        await self._inner.start()
        self._task = asyncio.create_task(self._flood())

    def subscribe(self, callback: Any) -> Callable[[], None]:
        self._callbacks.append(callback)
        stop = self._inner.subscribe(callback)

        def both() -> None:
            self._callbacks.remove(callback)
            stop()

        return both

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        await self._inner.close()

    async def _flood(self) -> None:
        due, number = time.monotonic(), 0
        while True:
            due += BEAT
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            seconds, fraction = divmod(time.time(), 1)
            stamp = {"seconds": int(seconds), "microseconds": int(fraction * 1e6)}
            batch = []
            for _ in range(round(EVENTS * BEAT)):
                number += 1
                data = {"device": f"job{number % JOBS}", "operation": "read", "action": "report", "number": number}
                batch.append({"event": "BLOCK_JOB_ERROR", "timestamp": stamp, "data": data})
            for callback in list(self._callbacks):
                callback(batch)


def show(low: bool, nodes: int) -> int:
    """The large screen, in this process."""
    from blockmon.options import CommonOptions
    from blockmon.tui import main as screen

    opened = screen.open_backend  # type: ignore[attr-defined]
    screen.open_backend = lambda options: Flooded(opened(options))  # type: ignore[attr-defined]
    return screen.main(CommonOptions(prepare=partial(build, nodes=nodes), low_bandwidth=low, theme="dark"))


# Measuring.


def report(name: str, times: list[float]) -> bool:
    """Print what was measured; whether it is good enough."""
    ordered = sorted(times)
    late = ordered[math.ceil(len(ordered) * 0.99) - 1]
    print(
        f"{name:34} {len(times)} keys   median {statistics.median(times):5.1f} ms   99 % {late:5.1f} ms"
        f"   max {ordered[-1]:5.1f} ms   limit {LIMIT} ms",
        flush=True,
    )
    return late <= LIMIT


def measure(name: str, command: Sequence[str], ready: bytes, keys: int, low: bool, large: bool) -> bool:
    """Run one screen and type at it."""
    global CURSOR
    CURSOR = cursor_ground(low)
    terminal = Terminal(command)
    good = True
    try:
        terminal.wait_for_text(ready, 60)
        terminal.count(3)
        for pane, sequence in (("graph", b"\x1bOQ"), ("events", b"\x1bOS")) if large else (("graph", b"\x1bOQ"),):
            terminal.write(sequence)
            terminal.count(2)
            rate = terminal.count(QUIET) / QUIET
            print(f"{f'{name}, {pane}':34} {rate:6.0f} bytes/s" + (f"   limit {LOW_LIMIT}" if low else ""), flush=True)
            good &= not low or rate <= LOW_LIMIT
        if large:
            terminal.write(b"\x1bOQ")
            terminal.count(1)
            good &= report(f"{name}, cursor", moves(terminal, keys))
        terminal.write(b"\x1b[15~")
        terminal.count(0.5)
        good &= report(f"{name}, typing", echoes(terminal, keys))
    finally:
        terminal.end()
    return good


def main() -> int:
    if sys.argv[1:2] == ["--show"]:
        return show("low" in sys.argv, int(sys.argv[2]))
    keys, nodes = (int(text) for text in (*sys.argv[1:3], *("200", str(NODES))[len(sys.argv[1:3]) :]))
    good = True
    for low in (False, True):
        kind = "low bandwidth" if low else "normal"
        demo = [sys.executable, "-m", "blockmon", "demo", "--theme", "dark", *(["--low-bandwidth"] if low else [])]
        large = [sys.executable, __file__, "--show", str(nodes), *(["low"] if low else [])]
        good &= measure(f"demo, {kind}", demo, b"flatten", keys, low, False)
        good &= measure(f"{nodes} nodes, {kind}", large, b"mirror_top", keys, low, True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
