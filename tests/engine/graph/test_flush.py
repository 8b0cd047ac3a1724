"""A flush reaches whatever was written below, also before those above came in."""

from pathlib import Path

import pytest

from engine.graph.permissions import Perm
from tests.graphs import Bench


def test_a_filter_that_came_later_passes_the_flush_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path)
    node = bench.raw("r")
    flushed: list[str] = []
    host = node.children["file"].child.driver
    monkeypatch.setattr(host, "flush", lambda: flushed.append("file"))
    writer = bench.graph.add_backend("user", "", node, Perm.WRITE, Perm.ALL)
    writer.write(0, memoryview(b"x"))
    bench.graph.remove_backend(writer)
    later = bench.add(driver="copy-on-read", file="r")
    guest = bench.graph.add_backend("device", "guest", later, Perm.CONSISTENT_READ | Perm.WRITE, Perm.ALL)
    guest.flush()
    assert flushed == ["file"]
    guest.flush()
    assert flushed == ["file"], "nothing was written since"


def test_closing_a_node_brings_what_was_written_to_stable_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    node = bench.raw("r")
    flushed: list[str] = []
    monkeypatch.setattr(node.children["file"].child.driver, "flush", lambda: flushed.append("file"))
    writer = bench.graph.add_backend("user", "", node, Perm.WRITE, Perm.ALL)
    writer.write(0, memoryview(b"x"))
    bench.graph.remove_backend(writer)
    node.monitor_owned = False
    bench.graph.release_if_unused(node)
    assert flushed == ["file"]
