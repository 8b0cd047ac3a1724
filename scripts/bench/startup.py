#!/usr/bin/env python3
"""Time from the command to its answer: --version, an empty script, the first frame of the screen.

And a server until its first answer, beside qemu-storage-daemon. Prints medians of several runs in milliseconds,
beside the limit. Run it with the project's Python:
.venv/bin/python scripts/bench/startup.py [RUNS]
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from _sides import DAEMON, Row, need, program, running, servers, shown

LIMITS = {"--version": 100, "run of an empty script": 250, "first frame": 500}
"""Milliseconds."""


def timed(command: Sequence[str]) -> float:
    """Milliseconds that *command* takes to end with status 0."""
    started = time.perf_counter()
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True, timeout=30)
    return (time.perf_counter() - started) * 1000


def version() -> float:
    return timed([*program(), "--version"])


def empty_script() -> float:
    with tempfile.NamedTemporaryFile("w", suffix=".bmon") as script:
        return timed([*program(), "run", script.name])


def first_frame() -> float:
    """Milliseconds until the screen, 80×24, has shown the title of its graph pane."""
    started = time.perf_counter()
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm-256color", LANG="C.UTF-8")
        command = program()
        os.execv(command[0], command)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    seen = b""
    try:
        while b"Graph" not in seen:
            ready, _, _ = select.select([terminal], [], [], 30)
            if not ready:
                raise TimeoutError(f"no frame within 30 s; seen: {seen[-2000:]!r}")
            seen += os.read(terminal, 65536)
        return (time.perf_counter() - started) * 1000
    finally:
        os.kill(pid, signal.SIGTERM)
        # What is still written has to be read, or the program could not end.
        try:
            while os.read(terminal, 65536):
                pass
        except OSError:
            pass
        os.waitpid(pid, 0)
        os.close(terminal)


MEASURES: dict[str, Callable[[], float]] = {
    "--version": version,
    "run of an empty script": empty_script,
    "first frame": first_frame,
}


def serving(side: str) -> float:
    """Milliseconds until a server has answered the first command."""
    with tempfile.TemporaryDirectory() as folder:
        command, path = servers(Path(folder))[side]
        started = time.perf_counter()
        with running(command, path):
            return (time.perf_counter() - started) * 1000


def rows(runs: int) -> list[Row]:
    """Medians of *runs* starts."""
    found = []
    for name, measure in MEASURES.items():
        times = [measure() for _ in range(runs)]
        found.append(Row(name, statistics.median(times), None, "ms", limit=LIMITS[name]))
    both: dict[str, list[float]] = {"ours": [], "daemon": []}
    for _ in range(runs):
        for side, times in both.items():
            times.append(serving(side))
    found.append(
        Row("server until its first answer", *(statistics.median(both[side]) for side in ("ours", "daemon")), "ms")
    )
    return found


def main() -> int:
    need(DAEMON)
    found = rows(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
    print(*map(shown, found), sep="\n")
    return int(any(row.limit is not None and row.ours > row.limit for row in found))


if __name__ == "__main__":
    sys.exit(main())
