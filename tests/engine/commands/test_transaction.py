"""transaction: all or nothing, whichever action fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.engine import Engine
from engine.errors import GenericError

NODES = 4


def snapshot(i: int, folder: Path) -> dict[str, Any]:
    return {
        "type": "blockdev-snapshot-sync",
        "data": {
            "node-name": f"n{i}",
            "snapshot-file": str(folder / f"over{i}.qcow2"),
            "snapshot-node-name": f"over{i}",
        },
    }


ABORT = {"type": "abort", "data": {}}


@pytest.fixture
def nodes(engine: Engine, tmp_path: Path) -> Engine:
    for i in range(NODES):
        (tmp_path / f"{i}.raw").write_bytes(bytes(1 << 20))
        file = {"driver": "file", "filename": str(tmp_path / f"{i}.raw")}
        engine.execute("blockdev-add", {"driver": "raw", "node-name": f"n{i}", "file": file})
        engine.execute("blockdev-add", {"driver": "raw", "node-name": f"user{i}", "file": f"n{i}"})
    return engine


def state(engine: Engine) -> tuple[Any, list[tuple[str, bool]]]:
    graph = engine.execute("x-debug-query-block-graph")
    edges = sorted(graph["edges"], key=lambda edge: (edge["parent"], edge["child"], edge["name"]))
    return edges, [(node["node-name"], node["ro"]) for node in engine.execute("query-named-block-nodes")]


@pytest.mark.parametrize("position", range(NODES + 1))
def test_a_failing_action_in_any_position_undoes_all(nodes: Engine, tmp_path: Path, position: int) -> None:
    before = state(nodes)
    actions = [snapshot(i, tmp_path) for i in range(NODES)]
    actions.insert(position, ABORT)
    with pytest.raises(GenericError, match="Transaction aborted using Abort action"):
        nodes.execute("transaction", {"actions": actions})
    assert state(nodes) == before
    assert all(not node.quiesce_count for node in nodes.graph.nodes.values())


def test_all_actions_take_effect(nodes: Engine, tmp_path: Path) -> None:
    nodes.execute("transaction", {"actions": [snapshot(i, tmp_path) for i in range(NODES)]})
    for i in range(NODES):
        assert nodes.graph.node(f"user{i}").children["file"].child.name == f"over{i}"
        assert nodes.graph.node(f"n{i}").read_only


def test_a_snapshot_of_a_snapshot_in_one_step(nodes: Engine, tmp_path: Path) -> None:
    second = snapshot(0, tmp_path)
    second["data"] = {**second["data"], "node-name": "over0", "snapshot-node-name": "top"}
    second["data"]["snapshot-file"] = str(tmp_path / "top.qcow2")
    nodes.execute("transaction", {"actions": [snapshot(0, tmp_path), second]})
    assert nodes.graph.node("user0").children["file"].child.name == "top"
    assert nodes.graph.node("top").children["backing"].child.name == "over0"


def test_an_action_without_a_job_cannot_be_grouped(nodes: Engine, tmp_path: Path) -> None:
    before = state(nodes)
    text = "Action 'blockdev-snapshot-sync' does not support Transaction property completion-mode = grouped"
    with pytest.raises(GenericError, match=text):
        nodes.execute("transaction", {"actions": [snapshot(0, tmp_path)], "properties": {"completion-mode": "grouped"}})
    assert state(nodes) == before
