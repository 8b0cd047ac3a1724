#!/usr/bin/env python3
"""What a key at the prompt costs with many nodes: completion, the signature line and the highlighting, by kind of line.

Every line is typed letter by letter; the 99th percentile and the worst of all keys are printed, in milliseconds.
.venv/bin/python scripts/bench/completion.py [NODES [JOBS]]; status 1 if a 99th percentile is over 10 ms.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import sys
import time
from pathlib import Path

from _sides import Row
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from blockmon.backend import Backend
from blockmon.backend.embedded import EmbeddedBackend
from blockmon.model.graph import GraphModel, from_query_graph
from blockmon.options import CommonOptions
from blockmon.repl.completer import ReplCompleter
from blockmon.repl.live import Bitmap, Drive, JobName, Snapshot
from blockmon.repl.session import ReplSession

LIMIT = 10.0
REPEAT = 5
LINES = {
    "command": "blockdev-snapshot-delete-internal-sync",
    "command, loosely": "bdsdis",
    "key": "blockdev-add driver=qcow2 l2-cache-entry-size",
    "nested key": "blockdev-add driver=qcow2 file.driver=raw file.file.driver=file file.file.filename",
    "enum": "blockdev-add driver=copy-before-write",
    "node": "blockdev-reopen options.0.node-name=node-09999-image",
    "node, inside": "block-export-add type=nbd id=x node-name=09999-im",
    "node, loosely": "blockdev-mirror job-id=j sync=full device=n9999i",
    "node, none": "blockdev-mirror job-id=j sync=full device=zyxwv",
    "node to delete": "blockdev-del node-name=node-09999-image",
    "node of a chain": "block-stream device=node-00000-image base-node=node-00250-image",
    "layer": "block-commit device=node-00000-image base=/images/250.qcow2",
    "edge": "x-blockdev-change parent=node-00000-image child=backing",
    "job": "job-cancel id=job-00999",
    "bitmap": "block-dirty-bitmap-clear node=node-00010-image name=bitmap-10",
    "bitmap of any node": "block-dirty-bitmap-merge node= target=bitmap-10",
    "snapshot": "blockdev-snapshot-delete-internal-sync device=node-00010-image name=snap-10",
    "drive": "eject id=drive-00999",
    "size": "blockdev-add driver=null-co size=1048",
    "JSON": '{"execute": "blockdev-add", "arguments": {"driver": "qcow2", "file": {"driver": "file", '
    '"filename": "/x"}, "backing": "node-09999-image"}}',
    "transaction": '{"execute": "transaction", "arguments": {"actions": [{"type": "blockdev-snapshot", "data": '
    '{"node": "node-09999-image", "overlay": "node-0',
    "HMP node": "block_resize node-09999-image 10",
    "HMP job": "block_job_cancel job-00999",
    "qemu-io": 'qemu-io node-09999-image "write -P 1 0 64',
}


def graph_of(nodes: int) -> GraphModel:
    """A graph with so many images in chains of 300, each over a file node of its own."""
    items, edges = [], []
    for number in range(nodes // 2):
        name, path = f"node-{number:05d}-image", f"/images/{number}.qcow2"
        common = {"filename": path, "size": 8 << 30, "monitor-owned": True}
        items.append({"node-name": name, "driver": "qcow2", **common})
        items.append({"node-name": f"file-{number:05d}", "driver": "file", **common})
        edges.append({"parent": name, "name": "file", "child": f"file-{number:05d}", "roles": ["data"]})
        if number % 300 and number:
            edges.append({"parent": f"node-{number - 1:05d}-image", "name": "backing", "child": name, "roles": ["cow"]})
    return from_query_graph({"generation": 1, "nodes": items, "parents": [], "edges": edges})


def fill(session: ReplSession, nodes: int, jobs: int) -> None:
    """Make the session know a large graph, as if it had asked for it."""
    names = session.knowledge.names
    names.feed(graph_of(nodes))
    states = ("running", "ready", "paused", "concluded")
    names.jobs = {f"job-{n:05d}": JobName(f"job-{n:05d}", "mirror", states[n % 4]) for n in range(jobs)}
    images = [f"node-{number:05d}-image" for number in range(min(1000, nodes // 2))]
    names.bitmaps = {image: (Bitmap(f"bitmap-{n}", image),) for n, image in enumerate(images)}
    names.snapshots = {image: (Snapshot(f"snap-{n}", "1", image),) for n, image in enumerate(images)}
    names.drives = tuple(Drive(f"d{n}", f"drive-{n:05d}", True, True, False, image) for n, image in enumerate(images))
    names.devices = {drive.name: drive.node for drive in names.drives}
    for section in ("images", "chardevs", "peripherals", "types"):
        names._wanted.add(section)


def measure(session: ReplSession, line: str) -> list[float]:
    """Type *line*; the milliseconds of each key."""
    completer, spent = ReplCompleter(session.knowledge), []
    for end in range(1, len(line) + 1):
        document = Document(line[:end], end)
        start = time.perf_counter()
        list(completer.get_completions(document, CompleteEvent(text_inserted=True)))
        session.hint(line[:end], end, 80)
        session.lexer.lex_document(document)(0)
        spent.append((time.perf_counter() - start) * 1000)
    return spent


def rows(nodes: int, jobs: int) -> list[Row]:
    """The 99th percentile of all keys of a line, for each kind of line."""
    figures: dict[str, float] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        asyncio.run(run(nodes, jobs, figures))
    kind = max(figures, key=lambda name: figures[name])
    return [Row(f"completion, {nodes:,} nodes, 99 %", figures[kind], None, "ms", limit=LIMIT, note=f"of '{kind}'")]


async def run(nodes: int, jobs: int, figures: dict[str, float] | None = None) -> int:
    """Measure and print all kinds of lines. figures: takes the 99th percentile of each."""
    backend: Backend = EmbeddedBackend(CommonOptions())
    await backend.start()
    session = ReplSession(backend)
    await session.start()
    await session.learned()
    fill(session, nodes, jobs)
    worst = 0.0
    print(f"{nodes} nodes, {jobs} jobs; milliseconds a key: completion, signature line and highlighting")
    print(f"{'':24}{'median':>8}{'99 %':>8}{'worst':>8}")
    for kind, line in LINES.items():
        measure(session, line)
        gc.collect()
        # Of each key the best of several times: what else the machine does is not to be measured.
        spent = sorted(map(min, zip(*(measure(session, line) for _ in range(REPEAT)), strict=True)))
        high = spent[min(len(spent) - 1, int(len(spent) * 0.99))]
        worst = max(worst, high)
        if figures is not None:
            figures[kind] = high
        print(f"{kind:24}{spent[len(spent) // 2]:8.2f}{high:8.2f}{spent[-1]:8.2f}")
    print(f"{'over the limit' if worst > LIMIT else 'within the limit'} of {LIMIT:g} ms")
    await session.close()
    await backend.close()
    return int(worst > LIMIT)


if __name__ == "__main__":
    numbers = [int(text) for text in sys.argv[1:]]
    sys.exit(asyncio.run(run(*(numbers + [10_000, 1000][len(numbers) :]))))
