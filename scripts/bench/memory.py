#!/usr/bin/env python3
"""Memory of an idle server, and what a thousand nodes add to it, beside qemu-storage-daemon.

Run it with the project's Python: .venv/bin/python scripts/bench/memory.py [NODES]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _sides import Row, need, running, servers, shown

KINDS = ("null-co", "raw", "qcow2")


def measure(folder: Path, side: str, kind: str, count: int) -> tuple[float, float]:
    """MiB when idle, and MiB that a thousand nodes add. kind: null-co alone, or a format with its file node each."""
    command, path = servers(folder)[side]
    with running(command, path) as client:
        idle = client.memory
        for number in range(count):
            options: dict[str, Any] = {"driver": kind, "node-name": f"n{number}"}
            if kind != "null-co":
                options["file"] = {"driver": "file", "filename": str(folder / f"image.{kind}"), "locking": "off"}
                options["read-only"] = options["file"]["read-only"] = True
            client.execute("blockdev-add", options)
        nodes = count * (1 if kind == "null-co" else 2)
        return idle, (client.memory - idle) * 1000 / nodes


def rows(count: int) -> list[Row]:
    """Measure everything; *count* images."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in KINDS[1:]:
            subprocess.run(["qemu-img", "create", "-q", "-f", kind, folder / f"image.{kind}", "64M"], check=True)
        for kind in KINDS:
            both = {side: measure(folder, side, kind, count) for side in ("ours", "daemon")}
            if kind == KINDS[0]:
                found.append(Row("idle server", both["ours"][0], both["daemon"][0], "MiB"))
            label = "nodes" if kind == "null-co" else f"nodes ({kind} on file)"
            found.append(Row(f"1,000 {label}", both["ours"][1], both["daemon"][1], "MiB"))
    return found


def main() -> int:
    need("qemu-storage-daemon", "qemu-img")
    print(*map(shown, rows(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
