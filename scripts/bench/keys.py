#!/usr/bin/env python3
"""Time from a key to its echo on the screen of `blockmon demo`, with its guests and jobs at work.

Types letters at the prompt, one at a time, and waits for each to come back on the terminal, 80×24. Prints the median
and the 99th percentile in milliseconds beside the limit, and the bytes a second that the busy screen sends while nobody
types; the demo's guests are seeded and the screen draws at a fixed beat, so that number hardly changes between runs.
Run it with the project's Python: .venv/bin/python scripts/bench/keys.py [KEYS]
"""

from __future__ import annotations

import fcntl
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
from pathlib import Path

LIMIT = 50
"""Milliseconds at the 99th percentile."""
QUIET = 5.0
"""Seconds over which the bytes of the busy screen are counted."""

_CONTROLS = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|.)", re.DOTALL)


class Terminal:
    """The program on a pseudo-terminal."""

    def __init__(self, arguments: list[str]) -> None:
        script = Path(sys.executable).with_name("blockmon")
        command = [str(script)] if script.exists() else [sys.executable, "-m", "blockmon"]
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM="xterm-256color", LANG="C.UTF-8")
            os.execv(command[0], [*command, *arguments])
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))

    def wait_for(self, wanted: bytes, seconds: float) -> None:
        """Read until *wanted* was written as text. Raises TimeoutError."""
        seen, end = b"", time.perf_counter() + seconds
        while wanted not in _CONTROLS.sub(b"", seen):
            ready, _, _ = select.select([self.fd], [], [], max(0.0, end - time.perf_counter()))
            if not ready:
                raise TimeoutError(f"no {wanted!r} within {seconds} s; seen: {seen[-1000:]!r}")
            seen += os.read(self.fd, 65536)

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
        self.write(b"\x11")
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
    """Milliseconds from each of so many keys to its echo."""
    times = []
    chance = random.Random(1)
    for number in range(keys):
        if number % 24 == 0:
            terminal.write(b"\x15")  # Ctrl+U: an empty line
            terminal.count(0.2)
        # Capitals stand nowhere else on the screen, so one that comes is the echo.
        key = b"QWXZ"[number % 4 : number % 4 + 1]
        started = time.perf_counter()
        terminal.write(key)
        terminal.wait_for(key, 5)
        times.append((time.perf_counter() - started) * 1000)
        terminal.count(chance.uniform(0.03, 0.13))
    return times


def main() -> int:
    keys = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    terminal = Terminal(["demo"])
    try:
        terminal.wait_for(b"flatten", 30)
        terminal.count(2)
        rate = terminal.count(QUIET) / QUIET
        terminal.write(b"\x1b[15~")
        terminal.count(0.5)
        times = sorted(echoes(terminal, keys))
    finally:
        terminal.end()
    late = times[min(len(times) - 1, round(len(times) * 0.99))]
    print(f"busy screen, nobody types  {rate:6.0f} bytes/s")
    median = statistics.median(times)
    print(f"key to echo ({keys} keys)     median {median:5.1f} ms   99 % {late:5.1f} ms   limit {LIMIT} ms")
    return 1 if late > LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
