#!/usr/bin/env python3
"""Time from a key to its echo on the screen while its engine serves NBD at full speed and runs a job.

The screen, 80×24 on a pseudo-terminal, has the engine inside; fio's nbd engine keeps its export busy, and mirror after
mirror runs. Run it with the project's Python: .venv/bin/python scripts/bench/latency.py [KEYS]; the status is 1 where
the 99th percentile is above the limit.
"""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from _sides import Client, Row, need, program, shown
from keys import LIMIT, Terminal, echoes

SIZE = 256 << 20


class _Process:
    """Stands for the terminal's process, which a Client only asks whether it has ended."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def poll(self) -> None:
        return None


def mirror(path: Path, folder: Path, pid: int, ending: threading.Event, copies: list[float]) -> None:
    """One mirror after the other until *ending*."""
    client = Client(path, _Process(pid))  # type: ignore[arg-type]
    while not ending.is_set():
        target = folder / "target.raw"
        target.unlink(missing_ok=True)
        with target.open("wb") as out:
            out.truncate(SIZE)
        file = {"driver": "file", "filename": str(target)}
        client.execute("blockdev-add", {"driver": "raw", "node-name": "t", "file": file})
        client.execute("blockdev-mirror", {"job-id": "j", "device": "m", "target": "t", "sync": "full"})
        client.wait("BLOCK_JOB_READY")
        copies.append(time.monotonic())
        client.execute("block-job-cancel", {"device": "j"})
        client.wait("BLOCK_JOB_COMPLETED")
        while client.execute("query-jobs"):
            time.sleep(0.01)
        with suppress(RuntimeError):
            client.execute("blockdev-del", {"node-name": "t"})


def mirror_until_the_end(path: Path, folder: Path, pid: int, ending: threading.Event, copies: list[float]) -> None:
    """As mirror(); the server may end first."""
    try:
        mirror(path, folder, pid, ending, copies)
    except (OSError, ValueError):
        if not ending.is_set():
            raise


def rows(keys: int) -> list[Row]:
    """Type so many keys and measure."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options: list[str] = []
        for node in ("n", "m"):
            image = folder / f"{node}.qcow2"
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, str(SIZE)], check=True)
            subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -q -P 165 0 {SIZE}", image], check=True)
            options += ["--blockdev", f"qcow2,node-name={node},file.driver=file,file.filename={image}"]
        nbd, qmp = folder / "nbd.sock", folder / "qmp.sock"
        options += ["--nbd-server", f"addr.type=unix,addr.path={nbd}", "--export", "nbd,id=e,node-name=n,writable=on"]
        terminal = Terminal([*program(*options, "--qmp", f"unix:{qmp}", "--theme", "dark")])
        ending, copies = threading.Event(), list[float]()
        fio = None
        try:
            terminal.wait_for_text(b"Graph", 30)
            # The screen is there before all of its engine is.
            deadline = time.monotonic() + 30
            while not qmp.exists() and time.monotonic() < deadline:
                terminal.count(0.05)
            command = ["fio", "--name=x", "--ioengine=nbd", f"--uri=nbd+unix:///n?socket={nbd}", "--rw=randrw"]
            command += ["--bs=4k", "--iodepth=16", "--time_based", "--runtime=600", f"--size={SIZE}", "--norandommap"]
            fio = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            work = threading.Thread(
                target=mirror_until_the_end, args=(qmp, folder, terminal.pid, ending, copies), daemon=True
            )
            work.start()
            terminal.count(2)
            terminal.write(b"\x1b[15~")
            terminal.count(0.5)
            times = sorted(echoes(terminal, keys))
            if not copies:
                raise SystemExit("no mirror came to its end meanwhile")
            if fio.poll() is not None:
                raise SystemExit(f"fio has ended before the measurement: {fio.communicate()[0]}")
        finally:
            ending.set()
            if fio is not None:
                fio.terminate()
                fio.wait()
            terminal.end()
    late = times[math.ceil(len(times) * 0.99) - 1]
    note = f"median {statistics.median(times):.1f} ms, {len(times)} keys, {len(copies)} mirrors meanwhile"
    return [Row("key to echo, 99 %, NBD and mirrors at work", late, None, "ms", limit=LIMIT, note=note)]


def main() -> int:
    need("fio", "qemu-img", "qemu-io")
    found = rows(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
    print(*map(shown, found), sep="\n")
    return int(any(row.limit is not None and row.ours > row.limit for row in found))


if __name__ == "__main__":
    sys.exit(main())
