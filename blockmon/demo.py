"""``blockmon demo``: a small real chain, a guest that works on it, and jobs to watch, in a temporary folder."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockmon.options import CommonOptions, StartupError

if TYPE_CHECKING:
    from blockmon.backend import Backend

_MIB = 1 << 20
_DISK = 512 * _MIB
_STREAM_SPEED = _MIB
"""Bytes a second of the throttled job: slow enough to be watched, and steered, for half a minute and more."""


def run(options: CommonOptions) -> int:
    """Show the screen on images made for the purpose, in a folder that goes when it is left; the exit status."""
    from blockmon import tui

    folder = Path(tempfile.mkdtemp(prefix="blockmon-demo-"))
    options.prepare = partial(build, folder)
    options.places = {"DIR": str(folder)}
    try:
        return tui.run(options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def build(folder: Path, backend: Backend) -> None:
    """Make the images in *folder*, open them in *backend*, and start guests and jobs. Errors: StartupError."""
    from blockmon.backend import CommandError

    try:
        await _build(folder, backend)
    except CommandError as exc:
        raise StartupError("demo", exc.desc) from exc


async def _build(folder: Path, backend: Backend) -> None:
    # A system disk of three layers, and a data disk of two: what snapshots leave behind.
    await _chain(backend, folder, [("base", None), ("patch", "base"), ("system", "patch")])
    await _fill(backend, "base", [(0, 48), (64, 16), (160, 24)], 0x41)
    await _chain(backend, folder, [("data", None), ("scratch", "data")])
    await _fill(backend, "data", [(0, 32)], 0x44)
    await _guest(backend, "vda", "system", iops=120, span=192 * _MIB, seed=1)
    await _guest(backend, "vdb", "scratch", iops=40, span=64 * _MIB, seed=2)
    await backend.execute(
        "block-stream",
        {"job-id": "flatten", "device": "system", "base-node": "base", "speed": _STREAM_SPEED, "auto-dismiss": True},
    )
    await backend.execute("block-commit", {"job-id": "merge", "device": "scratch"})


async def _chain(backend: Backend, folder: Path, layers: list[tuple[str, str | None]]) -> None:
    """Create qcow2 images and open them, base first; in the middle ones real data is written on the way up."""
    for number, (name, backing) in enumerate(layers):
        path = str(folder / f"{name}.qcow2")
        await _create(backend, {"driver": "file", "filename": path, "size": 0})
        await backend.execute("blockdev-add", {"driver": "file", "node-name": f"{name}-file", "filename": path})
        image: dict[str, Any] = {"driver": "qcow2", "file": f"{name}-file", "size": _DISK}
        if backing is not None:
            image |= {"backing-file": str(folder / f"{backing}.qcow2"), "backing-fmt": "qcow2"}
        await _create(backend, image)
        node: dict[str, Any] = {"driver": "qcow2", "node-name": name, "file": f"{name}-file", "discard": "unmap"}
        if backing is not None:
            node["backing"] = backing
        await backend.execute("blockdev-add", node)
        if backing is not None and number < len(layers) - 1:
            await _fill(backend, name, [(16, 24), (96, 40)], 0x50 + number)


async def _create(backend: Backend, image: Mapping[str, Any]) -> None:
    """blockdev-create, waited for."""
    from blockmon.backend import CommandError

    done = asyncio.Event()

    def look(events: Any) -> None:
        for event in events:
            data = event.get("data", {})
            if event["event"] == "JOB_STATUS_CHANGE" and data == {"id": "demo-create", "status": "concluded"}:
                done.set()

    unsubscribe = backend.subscribe(look)
    try:
        await backend.execute("blockdev-create", {"job-id": "demo-create", "options": dict(image)})
        await done.wait()
    finally:
        unsubscribe()
    jobs = await backend.execute("query-jobs")
    error = next((job.get("error") for job in jobs if job["id"] == "demo-create"), None)
    await backend.execute("job-dismiss", {"id": "demo-create"})
    if error:
        raise CommandError("GenericError", error)


async def _fill(backend: Backend, node: str, runs: list[tuple[int, int]], pattern: int) -> None:
    """Write runs of (offset, length) MiB of a byte pattern through the node."""
    for offset, length in runs:
        line = f'qemu-io {node} "write -q -P {pattern} {offset}M {length}M"'
        await backend.execute("human-monitor-command", {"command-line": line})


async def _guest(backend: Backend, device: str, node: str, **workload: int) -> None:
    await backend.execute("x-blockmon-guest-add", {"id": device, "node-name": node, **workload})
