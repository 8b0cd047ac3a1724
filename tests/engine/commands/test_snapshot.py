"""External snapshots: nothing is lost, and what fails leaves no trace."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from engine.engine import Engine
from engine.errors import GenericError
from engine.graph.permissions import Perm

BLOCK = 4096


def add_base(engine: Engine, tmp_path: Path, blocks: int) -> None:
    path = tmp_path / "base.raw"
    path.write_bytes(bytes(blocks * BLOCK))
    file = {"driver": "file", "filename": str(path)}
    engine.execute("blockdev-add", {"driver": "raw", "node-name": "node0", "file": file})


def sync(number: int, tmp_path: Path, **more: Any) -> dict[str, Any]:
    new = f"node{number}"
    return {
        "node-name": f"node{number - 1}",
        "snapshot-node-name": new,
        "snapshot-file": str(tmp_path / f"{new}.qcow2"),
        **more,
    }


def test_a_writer_loses_nothing_while_snapshots_are_taken(engine: Engine, tmp_path: Path) -> None:
    blocks = 64
    add_base(engine, tmp_path, blocks)
    graph = engine.graph
    backend = engine.control.call(
        lambda: graph.add_backend("device", "vda", graph.node("node0"), Perm.CONSISTENT_READ | Perm.WRITE, Perm.ALL)
    )
    content = [0] * blocks
    written = 0
    moved_on = threading.Condition()
    stop = threading.Event()

    def write() -> None:
        nonlocal written
        while not stop.is_set():
            for block in range(blocks):
                content[block] = value = (content[block] + block + 1) % 255
                backend.write(block * BLOCK, memoryview(bytes([value]) * BLOCK))
            with moved_on:
                written += 1
                moved_on.notify_all()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(1, 9):
            with moved_on:
                before = written
                assert moved_on.wait_for(lambda before=before: written > before, 30)  # type: ignore[misc]
            engine.execute("blockdev-snapshot-sync", sync(number, tmp_path))
    finally:
        stop.set()
        writer.join()
    assert backend.node.name == "node8"
    found = bytearray(blocks * BLOCK)
    backend.read(0, memoryview(found))
    assert [found[block * BLOCK : (block + 1) * BLOCK] for block in range(blocks)] == [
        bytes([value]) * BLOCK for value in content
    ]
    depth = {node["node-name"]: node["backing_file_depth"] for node in engine.execute("query-named-block-nodes")}
    assert depth["node8"] == 8
    assert [node["ro"] for node in engine.execute("query-named-block-nodes") if node["node-name"] == "node7"] == [True]


def test_a_snapshot_waits_for_the_request_in_flight(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_base(engine, tmp_path, 4)
    graph = engine.graph
    backend = engine.control.call(
        lambda: graph.add_backend("device", "vda", graph.node("node0"), Perm.CONSISTENT_READ | Perm.WRITE, Perm.ALL)
    )
    driver = graph.node("node0").driver
    entered, go_on = threading.Event(), threading.Event()
    write = driver.write

    def slow_write(*args: Any) -> None:
        entered.set()
        assert go_on.wait(30)
        write(*args)

    monkeypatch.setattr(driver, "write", slow_write)
    writer = threading.Thread(target=lambda: backend.write(0, memoryview(b"x" * BLOCK)))
    writer.start()
    assert entered.wait(10)
    taken = engine.submit("blockdev-snapshot-sync", sync(1, tmp_path))
    with pytest.raises(TimeoutError):
        taken.result(0.2)
    assert backend.node.name == "node0"
    go_on.set()
    taken.result(10)
    writer.join()
    # The write was begun before the snapshot, so it belongs to the old image.
    assert (tmp_path / "base.raw").read_bytes()[:BLOCK] == b"x" * BLOCK
    assert backend.node.name == "node1"


def test_a_later_failure_takes_the_snapshot_back(engine: Engine, tmp_path: Path) -> None:
    add_base(engine, tmp_path, 4)
    engine.execute("blockdev-add", {"driver": "raw", "node-name": "user", "file": "node0"})
    before = engine.execute("x-debug-query-block-graph")
    good = sync(0, tmp_path) | {"node-name": "node0", "snapshot-node-name": "s"}
    bad = {"node": "s", "overlay": "nope"}
    actions = [
        {"type": "blockdev-snapshot-sync", "data": good},
        {"type": "blockdev-snapshot", "data": bad},
    ]
    with pytest.raises(GenericError, match="node-name='nope'"):
        engine.execute("transaction", {"actions": actions})
    assert engine.execute("x-debug-query-block-graph") == before
    node = engine.graph.node("node0")
    assert not node.read_only
    assert node.quiesce_count == engine.graph.node("user").quiesce_count == 0
    engine.execute("blockdev-snapshot-sync", sync(1, tmp_path))
    assert engine.graph.node("user").children["file"].child.name == "node1"


def test_an_overlay_that_cannot_serve_the_parents_is_refused(engine: Engine, tmp_path: Path) -> None:
    add_base(engine, tmp_path, 4)
    engine.execute("blockdev-snapshot-sync", sync(1, tmp_path))
    engine.execute("blockdev-del", {"node-name": "node0"})
    add_base(engine, tmp_path, 4)
    file = {"driver": "file", "filename": str(tmp_path / "node1.qcow2")}
    overlay = {"driver": "qcow2", "node-name": "ov", "read-only": True, "file": file, "backing": None}
    engine.execute("blockdev-add", overlay)
    graph = engine.graph
    backend = engine.control.call(
        lambda: graph.add_backend("device", "vda", graph.node("node0"), Perm.CONSISTENT_READ | Perm.WRITE, Perm.ALL)
    )
    before = engine.execute("x-debug-query-block-graph")
    with pytest.raises(GenericError, match="Block node is read-only"):
        engine.execute("blockdev-snapshot", {"node": "vda", "overlay": "ov"})
    assert engine.execute("x-debug-query-block-graph") == before
    backend.write(0, memoryview(b"x" * BLOCK))
    assert (tmp_path / "base.raw").read_bytes()[:1] == b"x"


def test_a_device_may_be_named_for_its_node(engine: Engine, tmp_path: Path) -> None:
    add_base(engine, tmp_path, 4)
    graph = engine.graph
    backend = engine.control.call(
        lambda: graph.add_backend("device", "vda", graph.node("node0"), Perm.CONSISTENT_READ | Perm.WRITE, Perm.ALL)
    )
    # By device no node name is needed for the overlay.
    arguments = {"device": "vda", "snapshot-file": str(tmp_path / "s.qcow2")}
    engine.execute("blockdev-snapshot-sync", arguments)
    assert backend.node.auto_name
    assert backend.node.backing is not None
    assert backend.node.backing.child.name == "node0"
    (device,) = engine.execute("query-block")
    assert device["device"] == "vda"
    assert device["inserted"]["file"] == str(tmp_path / "s.qcow2")
    assert device["inserted"]["backing_file_depth"] == 1
    (stats,) = engine.execute("query-blockstats")
    assert (stats["device"], stats["stats"]["account_invalid"]) == ("vda", True)
    assert stats["backing"]["node-name"] == "node0"


def test_a_failed_creation_leaves_no_file(engine: Engine, tmp_path: Path) -> None:
    add_base(engine, tmp_path, 4)
    long_name = "/".join(["x" * 200] * 6)
    folder = tmp_path / long_name
    folder.mkdir(parents=True)
    path = folder / "base.raw"
    path.write_bytes(bytes(4 * BLOCK))
    file = {"driver": "file", "filename": str(path)}
    engine.execute("blockdev-add", {"driver": "raw", "node-name": "deep", "file": file})
    with pytest.raises(GenericError):
        # A backing file name may have 1023 bytes.
        engine.execute(
            "blockdev-snapshot-sync",
            {"node-name": "deep", "snapshot-node-name": "s", "snapshot-file": str(tmp_path / "s.qcow2")},
        )
    assert not (tmp_path / "s.qcow2").exists()
    assert "s" not in engine.graph.nodes
