"""Reopening: what the interop tests can't see from outside, and our older spellings of the command."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from engine.engine import Engine
from engine.errors import GenericError
from engine.graph.change import Transaction, detach
from engine.graph.permissions import Perm
from tests.graphs import Bench

SIZE = 1 << 20


@pytest.fixture
def engine(tmp_path: Path) -> Any:
    engine = Engine()
    for name in ("a", "b"):
        (tmp_path / f"{name}.raw").write_bytes(name.encode() * SIZE)
        engine.execute("blockdev-add", {"driver": "file", "node-name": name, "filename": str(tmp_path / f"{name}.raw")})
    engine.execute("blockdev-add", {"driver": "raw", "node-name": "r", "file": "a"})
    yield engine
    engine.close()


def test_old_command_takes_one_node_or_a_list(engine: Engine) -> None:
    one = {"driver": "raw", "node-name": "r", "file": "b"}
    engine.execute("x-blockdev-reopen", one)
    assert engine.graph.node("r").children["file"].child.name == "b"
    engine.execute("x-blockdev-reopen", {"options": [one | {"file": "a"}]})
    assert engine.graph.node("r").children["file"].child.name == "a"
    engine.execute("x-blockdev-reopen", {"options": one})
    assert engine.graph.node("r").children["file"].child.name == "b"
    with pytest.raises(GenericError, match="node-name not specified"):
        engine.execute("x-blockdev-reopen", {"driver": "raw", "file": "a"})


def test_a_child_is_swapped_under_a_reader(engine: Engine) -> None:
    """Every read sees one of the two files whole, none fails."""
    backend = engine.control.call(
        lambda: engine.graph.add_backend("device", "vda", engine.graph.node("r"), Perm.CONSISTENT_READ, Perm.ALL)
    )
    seen: set[bytes] = set()
    failures: list[BaseException] = []
    stop = threading.Event()

    def read() -> None:
        buffer = bytearray(SIZE)
        try:
            while not stop.is_set():
                backend.read(0, memoryview(buffer))
                seen.add(bytes(buffer[:1]) if buffer.count(buffer[0]) == SIZE else b"torn")
        except BaseException as exc:
            failures.append(exc)

    reader = threading.Thread(target=read)
    reader.start()
    rounds = 0
    while rounds < 20 or (len(seen) < 2 and rounds < 10_000):
        for name in ("b", "a"):
            engine.execute("blockdev-reopen", {"options": [{"driver": "raw", "node-name": "r", "file": name}]})
        rounds += 1
    stop.set()
    reader.join()
    assert not failures
    assert seen == {b"a", b"b"}


def test_direct_io_can_be_switched_while_in_use(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "direct.raw"
    path.write_bytes(b"x" * SIZE)
    options: dict[str, Any] = {"driver": "file", "node-name": "d", "filename": str(path)}
    engine.execute("blockdev-add", options)
    node = engine.graph.node("d")
    try:
        engine.execute("blockdev-reopen", {"options": [options | {"cache": {"direct": True}}]})
    except GenericError as exc:
        pytest.skip(f"no direct I/O here: {exc.desc}")
    assert node.cache_direct
    assert node.limits.request_alignment >= 512
    buffer = bytearray(100)
    node.read(1000, memoryview(buffer))
    assert buffer == b"x" * 100
    engine.execute("blockdev-reopen", {"options": [options]})
    assert not node.cache_direct
    assert node.limits.request_alignment == 1


def test_a_failed_reopen_changes_nothing(engine: Engine) -> None:
    before = engine.execute("query-named-block-nodes")
    edges = engine.execute("x-debug-query-block-graph")
    good = {"driver": "raw", "node-name": "r", "file": "b", "read-only": True}
    bad = {"driver": "file", "node-name": "a", "filename": "other"}
    with pytest.raises(GenericError, match="Cannot change the option 'filename'"):
        engine.execute("blockdev-reopen", {"options": [good, bad]})
    assert engine.execute("query-named-block-nodes") == before
    assert engine.execute("x-debug-query-block-graph") == edges
    assert not any(node.quiesce_count for node in engine.graph.nodes.values())


def test_a_filter_that_has_lost_its_child_keeps_its_limits(bench: Bench) -> None:
    bench.raw("s")
    node = bench.add(driver="copy-on-read", node_name="c", file="s")
    before = node.driver.limits
    with Transaction() as txn:
        detach(txn, node.children["file"])
    node.driver.refresh_limits()
    assert node.driver.limits == before
