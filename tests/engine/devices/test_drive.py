"""Legacy drives: what happens to the data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.engine import Engine
from engine.errors import GenericError
from engine.graph.backend import BlockBackend
from engine.graph.permissions import Perm

SIZE = 1 << 20


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.close()


def drive(engine: Engine, text: str) -> BlockBackend:
    backend: BlockBackend = engine.control.call(lambda: engine.drives.add(engine.drives.parse(text)))
    engine.control.call(lambda: backend.take(Perm.CONSISTENT_READ | Perm.WRITE, Perm.ALL))
    return backend


def read(backend: BlockBackend, length: int = 4096) -> bytes:
    buffer = bytearray(length)
    backend.read(0, memoryview(buffer))
    return bytes(buffer)


def test_a_snapshot_takes_the_writes_and_leaves_nothing(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "a.raw"
    image.write_bytes(b"o" * SIZE)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    backend = drive(engine, f"if=none,id=d,format=raw,file={image},snapshot=on")
    backend.write(0, memoryview(b"n" * 4096))
    assert read(backend) == b"n" * 4096
    assert os.listdir(temporary) == []
    engine.control.call(lambda: engine.drives.delete("d"))
    assert image.read_bytes() == b"o" * SIZE
    assert engine.graph.nodes == {}


def test_copy_on_read_fills_the_image(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "base.raw").write_bytes(b"b" * SIZE)
    engine.execute(
        "blockdev-add", {"driver": "file", "node-name": "t", "filename": str(make_overlay(engine, tmp_path))}
    )
    engine.execute("blockdev-del", {"node-name": "t"})
    backend = drive(engine, f"if=none,id=d,file={tmp_path}/o.qcow2,copy-on-read=on")
    assert read(backend, 65536) == b"b" * 65536
    # The filter does not show, as in QEMU, where it is none.
    assert engine.execute("query-block")[0]["inserted"]["drv"] == "qcow2"
    overlay = next(node for node in engine.graph.nodes.values() if node.driver.name == "qcow2")
    assert overlay.block_status(0, 65536).flags & 0x10
    assert not overlay.block_status(65536, 65536).flags & 0x10


def make_overlay(engine: Engine, tmp_path: Path) -> Path:
    path = tmp_path / "o.qcow2"
    file: dict[str, Any] = {"driver": "file", "filename": str(path), "size": 0}
    engine.execute("blockdev-create", {"job-id": "f", "options": file})
    wait(engine, "f")
    engine.execute("blockdev-add", {"driver": "file", "node-name": "f", "filename": str(path)})
    options = {
        "driver": "qcow2",
        "file": "f",
        "size": SIZE,
        "backing-file": str(tmp_path / "base.raw"),
        "backing-fmt": "raw",
    }
    engine.execute("blockdev-create", {"job-id": "q", "options": options})
    wait(engine, "q")
    engine.execute("blockdev-del", {"node-name": "f"})
    return path


def wait(engine: Engine, job: str) -> None:
    while engine.execute("query-jobs")[0]["status"] != "concluded":
        pass
    engine.execute("job-dismiss", {"id": job})


def test_a_drive_that_cannot_be_made_leaves_nothing(engine: Engine, tmp_path: Path) -> None:
    image = tmp_path / "a.raw"
    image.write_bytes(bytes(SIZE))
    engine.execute("blockdev-add", {"driver": "null-co", "node-name": "taken"})
    before = engine.execute("query-named-block-nodes")
    with pytest.raises(GenericError, match="conflicts with an existing node name"):
        drive(engine, f"if=none,id=taken,format=raw,file={image},snapshot=on")
    assert engine.execute("query-named-block-nodes") == before
    assert engine.execute("query-block") == []
