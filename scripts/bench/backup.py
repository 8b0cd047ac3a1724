#!/usr/bin/env python3
"""Time of a full backup of a raw image to a new qcow2 image, ours beside qemu-storage-daemon's.

Both do the same blockdev-backup, in turn, on the same files, a few times; printed are the best times and their ratio
(the daemon's by ours: above 1 means ours is faster). The copies are compared with the source by qemu-img.
Run it with the project's Python: .venv/bin/python scripts/bench/backup.py [MIB [ROUNDS [FOLDER]]]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from engine.engine import Engine

TIMEOUT = 300.0


def commands(folder: Path, target: Path) -> list[dict[str, Any]]:
    """Open both images and start the job."""
    source = {"driver": "file", "filename": str(folder / "source.raw")}
    return [
        {"execute": "blockdev-add", "arguments": {"driver": "raw", "node-name": "source", "file": source}},
        {
            "execute": "blockdev-add",
            "arguments": {
                "driver": "qcow2",
                "node-name": "target",
                "file": {"driver": "file", "filename": str(target)},
            },
        },
        {
            "execute": "blockdev-backup",
            "arguments": {"job-id": "b", "device": "source", "target": "target", "sync": "full"},
        },
    ]


def ended(event: dict[str, Any]) -> bool:
    if event["event"] != "BLOCK_JOB_COMPLETED":
        return False
    if "error" in event["data"]:
        raise RuntimeError(event["data"]["error"])
    return True


def ours(folder: Path, target: Path) -> float:
    """Seconds from the command to the completion, in this process."""
    engine = Engine()
    done = threading.Event()
    engine.subscribe(lambda event: done.set() if ended(event) else None)
    try:
        *opening, start = commands(folder, target)
        for command in opening:
            engine.execute(command["execute"], command["arguments"])
        began = time.perf_counter()
        engine.execute(start["execute"], start["arguments"])
        if not done.wait(TIMEOUT):
            raise TimeoutError
        return time.perf_counter() - began
    finally:
        engine.close()


def theirs(folder: Path, target: Path) -> float:
    """Seconds from the command to the completion, in qemu-storage-daemon."""
    daemon = subprocess.Popen(
        ["qemu-storage-daemon", "--chardev", "stdio,id=m", "--monitor", "chardev=m,mode=control"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    killer = threading.Timer(TIMEOUT, daemon.kill)
    killer.start()
    assert daemon.stdin is not None
    assert daemon.stdout is not None
    try:
        *opening, start = [{"execute": "qmp_capabilities"}, *commands(folder, target)]
        for command in opening:
            daemon.stdin.write(json.dumps(command) + "\n")
            daemon.stdin.flush()
            while "return" not in (reply := json.loads(daemon.stdout.readline())):
                if "error" in reply:
                    raise RuntimeError(reply["error"]["desc"])
        began = time.perf_counter()
        daemon.stdin.write(json.dumps(start) + "\n")
        daemon.stdin.flush()
        for line in daemon.stdout:
            message = json.loads(line)
            if "event" in message and ended(message):
                return time.perf_counter() - began
        raise TimeoutError
    finally:
        killer.cancel()
        daemon.terminate()
        daemon.wait()


def main() -> int:
    mib = int(sys.argv[1]) if len(sys.argv) > 1 else 1024
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    parent = sys.argv[3] if len(sys.argv) > 3 else None
    with tempfile.TemporaryDirectory(prefix="backup-bench-", dir=parent) as name:
        folder = Path(name)
        with (folder / "source.raw").open("wb") as out:
            for _ in range(mib):
                out.write(os.urandom(1 << 20))
        best: dict[str, float] = {}
        for _ in range(rounds):
            for side, run in (("theirs", theirs), ("ours", ours)):
                target = folder / "target.qcow2"
                subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(target), f"{mib}M"], check=True)
                os.sync()
                best[side] = min(best.get(side, TIMEOUT), run(folder, target))
                subprocess.run(
                    ["qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2", str(folder / "source.raw"), str(target)],
                    check=True,
                )
                target.unlink()
    for side, seconds in best.items():
        print(f"{side:7} {seconds:6.2f} s {mib / seconds:7.0f} MiB/s")
    print(f"ratio   {best['theirs'] / best['ours']:6.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
