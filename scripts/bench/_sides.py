"""What the benchmarks share: the two programs, medians and means, and the table."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DAEMON = "qemu-storage-daemon"


class Row(NamedTuple):
    """One line of the table. ours, peer: in *unit*; peer None: nothing to compare with. more: whether more is better.

    limit: what ours has to keep, where there is no peer. note: what else there is to say.
    """

    name: str
    ours: float
    peer: float | None
    unit: str
    more: bool = False
    limit: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times as good as the peer, or as the limit asks."""
        other = self.peer if self.peer is not None else self.limit
        if not other or not self.ours:
            return None
        return self.ours / other if self.more else other / self.ours


def number(value: float | None) -> str:
    """Three digits at least, and no more decimals than they need."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def shown(row: Row) -> str:
    """The row as a line of text."""
    peer = f"{number(row.peer):>10} {row.unit}" if row.peer is not None else ""
    if row.limit is not None:
        peer = f"{number(row.limit):>10} {row.unit} (limit)"
    ratio = f"{row.ratio:6.2f}" if row.ratio is not None else ""
    return f"{row.name:42} {number(row.ours):>10} {row.unit:6} {peer:24} {ratio:>6}  {row.note}".rstrip()


def geometric_mean(values: Iterable[float]) -> float:
    """The geometric mean of what is above zero."""
    return math.exp(statistics.fmean(map(math.log, values)))


def summary(rows: Sequence[Row]) -> str:
    """The geometric mean of the ratios to the peer, and the least."""
    ratios = [row.ratio for row in rows if row.peer is not None and row.ratio is not None]
    if not ratios:
        return ""
    return f"geometric mean {geometric_mean(ratios):.2f}, least {min(ratios):.2f}"


def markdown(title: str, rows: Sequence[Row]) -> str:
    """A section of the table for the README."""
    lines = [f"| {title} | blockmon | peer | ratio |", "| :-- | --: | --: | --: |"]
    for row in rows:
        peer = f"{number(row.peer)} {row.unit}" if row.peer is not None else "–"
        if row.limit is not None:
            peer = f"{'≥' if row.more else '≤'} {number(row.limit)} {row.unit}"
        ratio = f"{row.ratio:.2f}" if row.ratio is not None else ""
        name = f"{row.name} ({row.note})" if row.note else row.name
        lines.append(f"| {name} | {number(row.ours)} {row.unit} | {peer} | {ratio} |")
    if text := summary(rows):
        lines.append(f"| **{text}** | | | |")
    return "\n".join(lines) + "\n"


def need(*tools: str) -> None:
    """End the program if one of *tools* is not there."""
    for tool in tools:
        if shutil.which(tool) is None:
            raise SystemExit(f"{tool} is not installed")


def program(*args: str | Path) -> list[str]:
    """The command line of this project's program."""
    script = Path(sys.executable).with_name("blockmon")
    return [*([str(script)] if script.exists() else [sys.executable, "-m", "blockmon"]), *map(str, args)]


def machine(folder: Path) -> str:
    """Where the figures come from, in a line. folder: where the images are."""
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    system = subprocess.run(
        ["findmnt", "-n", "-o", "FSTYPE", "--target", folder], capture_output=True, text=True, check=False
    ).stdout.strip()
    said = subprocess.run([DAEMON, "--version"], capture_output=True, text=True, check=False).stdout
    version = said.partition("version ")[2].split(" ")[0].strip() or "none"
    cores = os.cpu_count()
    return (
        f"{model}, {cores} cores; {system or 'unknown file system'}; Linux {platform.release()}; "
        f"Python {platform.python_version()}; QEMU {version}"
    )


class Client:
    """A QMP client that sends one command after the other."""

    def __init__(self, path: Path, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 20
        while True:
            self._socket = socket.socket(socket.AF_UNIX)
            try:
                self._socket.connect(str(path))
                break
            except OSError:
                self._socket.close()
                if time.monotonic() > deadline or process.poll() is not None:
                    raise
                time.sleep(0.01)
        self._file = self._socket.makefile("rwb")
        self.process = process
        self._file.readline()
        self.execute("qmp_capabilities")

    def send(self, command: str, arguments: Any = None) -> None:
        """Send a command and do not wait."""
        request = {"execute": command} | ({"arguments": arguments} if arguments is not None else {})
        self._file.write(json.dumps(request).encode() + b"\n")

    def receive(self) -> Any:
        """The next answer's value. Events are left out."""
        self._file.flush()
        while True:
            reply = json.loads(self._file.readline())
            if "return" in reply:
                return reply["return"]
            if "error" in reply:
                raise RuntimeError(reply["error"]["desc"])

    def execute(self, command: str, arguments: Any = None) -> Any:
        """Send a command; its value."""
        self.send(command, arguments)
        return self.receive()

    def wait(self, event: str) -> None:
        """Wait for an event that is still to come."""
        while json.loads(self._file.readline()).get("event") != event:
            pass

    @property
    def memory(self) -> float:
        """What the server has in memory, MiB."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


@contextmanager
def running(command: Sequence[str | Path], path: Path) -> Iterator[Client]:
    """A server with QMP at *path*."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        yield Client(path, process)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def servers(folder: Path) -> dict[str, tuple[list[str | Path], Path]]:
    """(command line, socket) of both programs with a QMP server."""
    ours, daemon = folder / "ours.sock", folder / "daemon.sock"
    chardev = f"socket,id=m,path={daemon},server=on,wait=off"
    return {
        "ours": ([*program("serve", "--qmp", f"unix:{ours}")], ours),
        "daemon": ([DAEMON, "--chardev", chardev, "--monitor", "chardev=m"], daemon),
    }
