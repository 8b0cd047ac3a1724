"""Cases of conversations with our engine and a real QEMU program: short ways to say things, images, what files hold."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.interop.differential import STORAGE_DAEMON, Call, Do, Step, assert_same
from tests.qemu import QemuImages

MIB = 1 << 20
SIZE = 64 << 10
"""Length of most raw images, bytes."""


def wire_names(given: dict[str, Any]) -> dict[str, Any]:
    return {key.replace("_", "-"): value for key, value in given.items()}


def add(driver: str, node_name: str, **options: Any) -> Do:
    return Do("blockdev-add", {"driver": driver, "node-name": node_name, **wire_names(options)})


def file(name: str, node_name: str | None = None, **options: Any) -> dict[str, Any]:
    named = {"node-name": node_name} if node_name is not None else {}
    return {"driver": "file", "filename": f"$DIR/{name}", **named, **wire_names(options)}


def files(*names: str) -> list[Step]:
    return [add("file", name, filename=f"$DIR/{name}.raw") for name in names]


def delete(node_name: str) -> Do:
    return Do("blockdev-del", {"node-name": node_name})


def reopen(**options: Any) -> Do:
    return Do("blockdev-reopen", {"options": [wire_names(options)]})


def io(node: str, command: str, prints: str = "") -> Do:
    """A qemu-io command. QEMU 7.2 prints what it has to say on its standard output; ours returns it."""
    arguments = {"command-line": f'qemu-io {node} "{command}"'}
    return Do("human-monitor-command", arguments, {"return": prints} if prints else None)


def fails(node: str, command: str, text: str = "Input/output error") -> Do:
    return io(node, command, f"{command.split()[0]} failed: {text}\r\n")


NODES = Do("query-named-block-nodes")
FLAT = Do("query-named-block-nodes", {"flat": True})
GRAPH = Do("x-debug-query-block-graph")


def lengths(*names: str) -> Call:
    return Call(lambda where: [(where / name).stat().st_size for name in names])


def contents(*names: str) -> Call:
    """What the files hold: where each run of equal bytes begins, and the byte."""

    def runs(where: Path) -> list[list[tuple[int, int]]]:
        return [_runs((where / name).read_bytes()) for name in names]

    return Call(runs)


def _runs(data: bytes) -> list[tuple[int, int]]:
    return [(next(run)[0], byte) for byte, run in itertools.groupby(enumerate(data), key=lambda item: item[1])]


def prepare(where: Path) -> None:
    """Raw images of one byte each, named so (c and same hold what b does), and qcow2 images; p has data already."""
    images = QemuImages("qemu-img", "qemu-io")
    for name, byte in (("a", b"a"), ("b", b"b"), ("c", b"b"), ("same", b"b"), ("d", b"d")):
        (where / f"{name}.raw").write_bytes(byte * SIZE)
    (where / "long.raw").write_bytes(bytes(2 * SIZE))
    (where / "odd.raw").write_bytes(bytes(1000))
    images.run("create", "-q", "-f", "qcow2", where / "q.qcow2", str(MIB))
    images.run("create", "-q", "-f", "qcow2", where / "odd.qcow2", str(MIB - 512))
    # Where qcow2 writes new tables first is its own affair, so here they are already.
    images.run("create", "-q", "-f", "qcow2", where / "p.qcow2", str(MIB))
    subprocess.run(["qemu-io", "-c", "write -q -P 1 0 64k", str(where / "p.qcow2")], check=True, timeout=20)


@dataclass
class Case:
    """A conversation. real: who is asked. ignore: members that may differ. events: whether they count."""

    id: str
    talk: Sequence[Step]
    real: Sequence[str] = STORAGE_DAEMON
    prepare: Callable[[Path], None] = prepare
    ignore: set[str] = field(default_factory=set)
    events: bool = True


def assert_case(case: Case, folder: Path) -> None:
    """Play *case* to both sides; skips the test where the real one is missing."""
    if shutil.which(case.real[0]) is None:
        pytest.skip(f"{case.real[0]} is not installed")
    assert_same(case.talk, folder, prepare=case.prepare, real=case.real, ignore=case.ignore, events=case.events)
