#!/usr/bin/env python3
"""How fast a long command file runs, and how much memory its length costs.

Runs files of commands that do nothing, in each form, on the engine inside the process. Prints commands a second (the
start of the program left out) and how much the peak of the memory grew against a file of a hundredth of the length.
Run it with the project's Python: .venv/bin/python scripts/bench/replay.py [COMMANDS]
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

from _sides import Row

GOAL = 10_000
"""Commands a second."""

MOST_GROWTH = 8.0
"""MiB that a hundred times the length may cost; what the allocator holds differs by that much between runs."""

FORMS = {
    "qmp-shell": "query-version\n",
    "qmp-shell, arguments": "query-named-block-nodes flat=true\n",
    "JSON": '{"execute": "query-version"}\n',
    "HMP": "info version\n",
    "expectations": "query-version\n@expect $.qemu.major == 7\n",
    "loop": "@repeat {lines}\nquery-version\n@end\n",
}


def run(script: Path) -> tuple[float, float]:
    """Seconds and peak memory in MiB of a run in a process of its own."""
    started = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.execv(sys.executable, [sys.executable, "-m", "blockmon", "run", str(script)])
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"{script}: status {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def rows(count: int) -> list[Row]:
    """Commands a second of each form, in files of *count* commands."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for form, text in FORMS.items():
            times = []
            for number in (count // 100, count):
                script = Path(folder, "script.bmon")
                script.write_text(text.format(lines=number) if form == "loop" else text * number)
                times.append(run(script)[0])
            rate = (count - count // 100) / (times[1] - times[0])
            limit = None if form in ("HMP", "qmp-shell, arguments", "expectations") else GOAL
            found.append(Row(f"command file: {form}", rate, None, "/s", more=True, limit=limit))
    return found


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    good = True
    with tempfile.TemporaryDirectory() as folder:
        for form, text in FORMS.items():
            times: list[float] = []
            peaks: list[float] = []
            sizes = (count // 100, count)
            for number in sizes:
                script = Path(folder, "script.bmon")
                script.write_text(text.format(lines=number) if form == "loop" else text * number)
                seconds, peak = run(script)
                times.append(seconds)
                peaks.append(peak)
            rate = (sizes[1] - sizes[0]) / (times[1] - times[0])
            growth = peaks[1] - peaks[0]
            fast = rate >= GOAL or form in ("HMP", "qmp-shell, arguments", "expectations")
            good = good and fast and growth < MOST_GROWTH
            print(f"{form:24} {rate:9.0f} commands/s   peak {peaks[1]:6.1f} MiB, {growth:+5.1f} MiB")
    print(f"goal: {GOAL} null commands a second, memory that does not grow: {'met' if good else 'MISSED'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
