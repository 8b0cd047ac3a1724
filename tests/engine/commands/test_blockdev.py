"""change-backing-file and block_resize, as far as they differ from QEMU or need no QEMU to be tested."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.engine import Engine
from engine.errors import GenericError
from engine.graph.permissions import Perm
from tests.engine.commands.conftest import make_chain


def add_top(engine: Engine, path: Path) -> None:
    file = {"driver": "file", "filename": str(path)}
    engine.execute("blockdev-add", {"driver": "qcow2", "node-name": "top", "file": file})


def test_a_relabelled_raw_backing_file_can_be_opened_again(engine: Engine, tmp_path: Path) -> None:
    base, overlay = make_chain(engine, tmp_path)
    add_top(engine, overlay)
    arguments = {"device": "top", "image-node-name": "top", "backing-file": base.name}
    engine.execute("change-backing-file", arguments)
    (image,) = [node["image"] for node in engine.execute("query-named-block-nodes") if node["node-name"] == "top"]
    assert (image["backing-filename"], image["backing-filename-format"]) == ("base.raw", "raw")
    assert image["full-backing-filename"] == str(base)
    engine.execute("blockdev-del", {"node-name": "top"})
    # QEMU 7.2 would have written qcow2, the overlay's own format, and this would fail.
    add_top(engine, overlay)
    assert engine.execute("query-named-block-nodes", {"flat": True})[0]["drv"] == "raw"


def test_a_read_only_image_is_read_only_again_after_relabelling(engine: Engine, tmp_path: Path) -> None:
    paths = make_chain(engine, tmp_path, 2)
    add_top(engine, paths[2])
    middle = engine.graph.node("top").backing
    assert middle is not None
    name = middle.child.name
    before = engine.execute("x-debug-query-block-graph")
    engine.execute("change-backing-file", {"device": "top", "image-node-name": name, "backing-file": "elsewhere"})
    assert engine.execute("x-debug-query-block-graph") == before
    assert middle.child.read_only
    assert b"elsewhere" in paths[1].read_bytes()


def test_a_device_is_resized_with_its_io_drained(engine: Engine, tmp_path: Path) -> None:
    _, overlay = make_chain(engine, tmp_path)
    add_top(engine, overlay)
    graph = engine.graph
    perm = Perm.CONSISTENT_READ | Perm.WRITE
    backend = engine.control.call(lambda: graph.add_backend("device", "vda", graph.node("top"), perm, Perm.ALL))
    backend.write(0, memoryview(b"x" * 4096))
    engine.execute("block_resize", {"device": "vda", "size": 4 << 20})
    assert backend.length == 4 << 20
    found = bytearray(8192)
    backend.read(0, memoryview(found))
    assert found == b"x" * 4096 + bytes(4096)
    backend.read((4 << 20) - 8192, memoryview(found))
    assert found == bytes(8192)
    assert graph.backends == [backend]
    engine.control.call(lambda: backend.take(perm, Perm.ALL & ~Perm.RESIZE))
    with pytest.raises(GenericError, match="permissions 'resize' are both required by an unnamed block device"):
        engine.execute("block_resize", {"device": "vda", "size": 8 << 20})
    assert graph.backends == [backend]
