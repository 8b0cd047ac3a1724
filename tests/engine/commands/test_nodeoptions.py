"""x-blockmon-query-node-options: what is in force, and who chose it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.engine import Engine
from engine.errors import GenericError
from tests.engine.commands.conftest import make_chain


def options_of(engine: Engine, name: str) -> dict[str, tuple[Any, str]]:
    answer = engine.execute("x-blockmon-query-node-options", {"node-name": name})
    return {item["name"]: (item.get("value"), item["source"]) for item in answer}


def test_options_are_told_with_their_source(engine: Engine, tmp_path: Path) -> None:
    make_chain(engine, tmp_path)
    file = {"driver": "file", "filename": str(tmp_path / "overlay1.qcow2"), "node-name": "top-f", "locking": "off"}
    engine.execute(
        "blockdev-add",
        {"driver": "qcow2", "node-name": "top", "file": file, "discard": "unmap", "cache": {"no-flush": True}},
    )
    top = options_of(engine, "top")
    assert list(top)[:3] == ["driver", "node-name", "read-only"]
    assert top["driver"] == ("qcow2", "explicit")
    assert top["discard"] == ("unmap", "explicit")
    assert top["cache.no-flush"] == (True, "explicit")
    assert top["cache.direct"] == (False, "default")
    assert top["cache-clean-interval"] == (600, "default")
    assert top["pass-discard-request"] == (True, "default")
    assert top["l2-cache-entry-size"] == (None, "default")
    assert top["file"] == ("top-f", "explicit")
    assert top["backing"][1] == "default"
    below = options_of(engine, "top-f")
    assert below["locking"] == ("off", "explicit")
    assert below["aio"] == ("threads", "default")
    assert below["cache.no-flush"] == (True, "inherited")
    assert below["discard"] == ("unmap", "inherited")
    base = options_of(engine, top["backing"][0])
    assert base["read-only"] == (True, "inherited")
    assert base["node-name"][1] == "default"


def test_reopening_makes_options_explicit(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(bytes(1 << 20))
    engine.execute("blockdev-add", {"driver": "file", "node-name": "f", "filename": str(path)})
    assert options_of(engine, "f")["read-only"] == (False, "default")
    options = {"driver": "file", "node-name": "f", "filename": str(path), "read-only": True}
    engine.execute("blockdev-reopen", {"options": [options]})
    assert options_of(engine, "f")["read-only"] == (True, "explicit")


def test_a_node_that_is_not_there(engine: Engine) -> None:
    with pytest.raises(GenericError, match="Failed to find node with node-name='nope'"):
        engine.execute("x-blockmon-query-node-options", {"node-name": "nope"})


def test_the_graph_counts_bitmaps(engine: Engine) -> None:
    engine.execute("blockdev-add", {"driver": "null-co", "node-name": "n"})
    (before,) = engine.execute("x-blockmon-query-graph")["nodes"]
    assert "bitmaps" not in before
    engine.execute("block-dirty-bitmap-add", {"node": "n", "name": "b0"})
    (after,) = engine.execute("x-blockmon-query-graph")["nodes"]
    assert after["bitmaps"] == 1
