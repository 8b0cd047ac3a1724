"""transaction: all or nothing, whichever action fails."""

from __future__ import annotations

import threading
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


# -- every kind of action ----------------------------------------------------------------------------------------------

SIZE = 1 << 20


def make_qcow2(engine: Engine, path: Path) -> None:
    """An empty image of SIZE bytes."""
    name = path.stem
    for job, options in (
        (f"{name}-file", {"driver": "file", "filename": str(path), "size": 0}),
        (f"{name}-format", {"driver": "qcow2", "file": f"{name}-tmp", "size": SIZE}),
    ):
        if options["driver"] == "qcow2":
            engine.execute("blockdev-add", {"driver": "file", "node-name": f"{name}-tmp", "filename": str(path)})
        done = Finished(engine, job)
        engine.execute("blockdev-create", {"job-id": job, "options": options})
        done.wait()
        engine.execute("job-dismiss", {"id": job})
    engine.execute("blockdev-del", {"node-name": f"{name}-tmp"})


class Finished:
    """Waits until a job has concluded."""

    def __init__(self, engine: Engine, job: str) -> None:
        self._event = threading.Event()
        self._job = job
        self._leave = engine.subscribe(self._take)

    def _take(self, event: dict[str, Any]) -> None:
        data = event.get("data", {})
        if event["event"] == "JOB_STATUS_CHANGE" and data == {"id": self._job, "status": "concluded"}:
            self._event.set()

    def wait(self) -> None:
        assert self._event.wait(20)
        self._leave()


@pytest.fixture
def rich(engine: Engine, tmp_path: Path) -> Engine:
    """Nodes with bitmaps, and places for backups and snapshots."""
    for name in ("a", "b", "c", "overlay", "target", "target2"):
        path = tmp_path / f"{name}.qcow2"
        make_qcow2(engine, path)
        file = {"driver": "file", "filename": str(path)}
        more = {"backing": None} if name == "overlay" else {}
        engine.execute("blockdev-add", {"driver": "qcow2", "node-name": name, "file": file, **more})
    # Without a user above it the new overlay would go at once.
    engine.execute("blockdev-add", {"driver": "raw", "node-name": "user-b", "file": "b"})
    for name in ("used", "off", "gone", "sum"):
        engine.execute("block-dirty-bitmap-add", {"node": "a", "name": name, "disabled": name == "off"})
    engine.execute("human-monitor-command", {"command-line": 'qemu-io a "write -P 1 0 256k"'})
    return engine


def every_action(folder: Path) -> list[dict[str, Any]]:
    def bitmap(action: str, name: str, **more: Any) -> dict[str, Any]:
        return {"type": f"block-dirty-bitmap-{action}", "data": {"node": "a", "name": name, **more}}

    sync = {"node-name": "b", "snapshot-file": str(folder / "over-b.qcow2"), "snapshot-node-name": "over-b"}
    drive = {"job-id": "drive", "device": "a", "target": str(folder / "drive.qcow2"), "sync": "full"}
    return [
        bitmap("add", "new", persistent=True),
        bitmap("clear", "used"),
        bitmap("enable", "off"),
        bitmap("disable", "sum"),
        {"type": "block-dirty-bitmap-merge", "data": {"node": "a", "target": "sum", "bitmaps": ["gone"]}},
        bitmap("remove", "gone"),
        {"type": "blockdev-snapshot-internal-sync", "data": {"device": "a", "name": "now"}},
        {"type": "blockdev-backup", "data": {"job-id": "blockdev", "device": "a", "target": "target", "sync": "full"}},
        {"type": "drive-backup", "data": drive},
        {"type": "blockdev-snapshot-sync", "data": sync},
        {"type": "blockdev-snapshot", "data": {"node": "c", "overlay": "overlay"}},
    ]


def whole_state(engine: Engine) -> Any:
    nodes = engine.execute("query-named-block-nodes")
    for node in nodes:
        node["image"].pop("actual-size")
        if node["drv"] == "file":
            del node["image"]  # a snapshot that was made and taken back leaves the file longer
    hashes = {}
    for node in engine.execute("query-named-block-nodes", {"flat": True}):
        for bitmap in node.get("dirty-bitmaps", []):
            key = {"node": node["node-name"], "name": bitmap["name"]}
            hashes[str(key)] = engine.execute("x-debug-block-dirty-bitmap-sha256", key)
    return state(engine), nodes, hashes, engine.execute("query-jobs")


COUNT = len(every_action(Path()))


@pytest.mark.parametrize("position", range(COUNT + 1))
def test_whatever_came_before_a_failure_is_undone(rich: Engine, tmp_path: Path, position: int) -> None:
    before = whole_state(rich)
    actions = every_action(tmp_path)
    actions.insert(position, ABORT)
    with pytest.raises(GenericError, match="Transaction aborted using Abort action"):
        rich.execute("transaction", {"actions": actions})
    assert whole_state(rich) == before
    assert not any(node.quiesce_count or node.pins for node in rich.graph.nodes.values())


def test_every_kind_of_action_in_one_step(rich: Engine, tmp_path: Path) -> None:
    ends = [Finished(rich, "blockdev"), Finished(rich, "drive")]
    rich.execute("transaction", {"actions": every_action(tmp_path)})
    for end in ends:
        end.wait()
    bitmaps = {b["name"]: b for b in node_info(rich, "a")["dirty-bitmaps"]}
    assert set(bitmaps) == {"new", "used", "off", "sum"}
    assert bitmaps["used"]["count"] == 0
    assert bitmaps["sum"]["count"] == 256 << 10
    assert (bitmaps["off"]["recording"], bitmaps["sum"]["recording"]) == (True, False)
    assert [s["name"] for s in node_info(rich, "a")["image"]["snapshots"]] == ["now"]
    assert rich.graph.node("over-b").children["backing"].child.name == "b"
    assert rich.graph.node("overlay").children["backing"].child.name == "c"
    for name in ("a", "target"):
        buffer = bytearray(SIZE)
        rich.graph.node(name).read(0, memoryview(buffer))
        assert buffer == b"\1" * (256 << 10) + bytes(SIZE - (256 << 10))


def node_info(engine: Engine, name: str) -> Any:
    return next(n for n in engine.execute("query-named-block-nodes") if n["node-name"] == name)
