"""x-blockmon-query-graph and x-blockmon-open."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from engine.engine import Engine
from engine.errors import GenericError
from engine.graph.permissions import Perm
from tests.engine.commands.conftest import make_chain

ALL = ["consistent-read", "write", "write-unchanged", "resize"]


def graph_of(engine: Engine) -> dict[str, Any]:
    found: dict[str, Any] = engine.execute("x-blockmon-query-graph")
    return found


def nodes_of(engine: Engine) -> dict[str, dict[str, Any]]:
    return {node["node-name"]: node for node in graph_of(engine)["nodes"]}


def edges_of(graph: dict[str, Any], parent: str) -> list[dict[str, Any]]:
    return [edge for edge in graph["edges"] if edge["parent"] == parent]


def test_an_empty_graph(engine: Engine) -> None:
    answer = graph_of(engine)
    assert answer.pop("mark") >= 0
    assert answer == {"generation": engine.graph.generation, "nodes": [], "parents": [], "edges": []}


def test_what_has_moved_since_a_mark(engine: Engine) -> None:
    for name in ("a", "b"):
        engine.execute("blockdev-add", {"driver": "null-co", "node-name": name, "size": 1 << 20})
    first = graph_of(engine)

    def moved(since: int) -> tuple[list[str], int]:
        answer = engine.execute("x-blockmon-query-io", {"since": since})
        assert answer["generation"] == engine.graph.generation
        return [node["node-name"] for node in answer["nodes"]], answer["mark"]

    names, mark = moved(first["mark"])
    assert names == []
    engine.execute("human-monitor-command", {"command-line": 'qemu-io a "write 0 4k"'})
    names, later = moved(mark)
    assert names == ["a"]
    assert moved(later)[0] == []
    # Whoever asked longer ago hears of it too.
    assert moved(first["mark"])[0] == ["a"]
    node = engine.execute("x-blockmon-query-io", {"since": first["mark"]})["nodes"][0]
    assert node == nodes_of(engine)["a"]
    assert node["wr-bytes"] == 4096
    mark = moved(later)[1]
    engine.execute("block-dirty-bitmap-add", {"node": "b", "name": "new"})
    assert moved(mark)[0] == ["b"]


def test_nodes_edges_and_their_permissions(engine: Engine, tmp_path: Path) -> None:
    make_chain(engine, tmp_path)
    path = tmp_path / "overlay1.qcow2"
    file = {"driver": "file", "filename": str(path), "node-name": "top-f"}
    engine.execute("blockdev-add", {"driver": "qcow2", "node-name": "top", "file": file})
    graph = graph_of(engine)
    top, base, base_file, top_file = graph["nodes"][2], *graph["nodes"][:2], graph["nodes"][3]
    assert [node["driver"] for node in graph["nodes"]] == ["raw", "file", "qcow2", "file"]
    assert top["size"] == 1 << 20
    assert top["allocated"] == top_file["allocated"] == path.stat().st_blocks * 512
    assert top["cluster-size"] == 65536
    assert (top["backing-file"], top["backing-format"]) == (str(tmp_path / "base.raw"), "raw")
    assert (top["monitor-owned"], base["monitor-owned"]) == (True, False)
    assert (top["auto-name"], base["auto-name"]) == (False, True)
    assert (top["read-only"], base["read-only"]) == (False, True)
    assert base["busy"] == ["node is used as backing hd of 'top'"]
    assert base_file["filename"] == base["filename"] == str(tmp_path / "base.raw")
    by_name = {edge["name"]: edge for edge in edges_of(graph, "top")}
    assert by_name["file"]["child"] == "top-f"
    assert by_name["file"]["roles"] == ["data", "metadata", "primary"]
    assert by_name["file"]["perm"] == ["consistent-read", "write", "resize"]
    assert by_name["file"]["shared-perm"] == ["consistent-read", "write-unchanged"]
    assert by_name["backing"]["child"] == base["node-name"]
    assert by_name["backing"]["roles"] == ["cow"]
    assert by_name["backing"]["frozen"] is False
    monitor = {"parent": "monitor", "parent-kind": "monitor", "name": "", "child": "top", "roles": [], "perm": []}
    assert edges_of(graph, "monitor") == [{**monitor, "shared-perm": ALL, "frozen": False}]
    assert graph["parents"] == [{"id": "monitor", "kind": "monitor", "name": "monitor"}]


def test_parents_of_every_kind(engine: Engine) -> None:
    engine.execute("blockdev-add", {"driver": "null-co", "node-name": "n"})
    graph = engine.graph

    def attach() -> None:
        node = graph.node("n")
        graph.add_backend("device", "vda", node, Perm.CONSISTENT_READ | Perm.WRITE, Perm.ALL).model = "virtio-blk"
        graph.add_backend("export", "exp0", node, Perm.CONSISTENT_READ, Perm.ALL)
        graph.add_backend("user", "", node, Perm.NONE, Perm.ALL)
        graph.add_backend("user", "", node, Perm.NONE, Perm.ALL)
        graph.add_backend("device", "empty", None, Perm.NONE, Perm.ALL)

    engine.control.call(attach)
    answer = graph_of(engine)
    parents = {(parent["kind"], parent["id"]): parent for parent in answer["parents"]}
    assert len(parents) == len(answer["parents"]) == 6
    assert parents["device", "vda"] == {"id": "vda", "kind": "device", "name": "vda", "model": "virtio-blk"}
    assert parents["device", "empty"]["name"] == "empty"
    (edge,) = edges_of(answer, "vda")
    assert (edge["parent-kind"], edge["name"], edge["child"]) == ("device", "root", "n")
    assert edge["perm"] == ["consistent-read", "write"]
    assert edges_of(answer, "empty") == []
    nameless = [parent["id"] for parent in answer["parents"] if parent["kind"] == "user"]
    assert len(set(nameless)) == 2
    assert all(len(edges_of(answer, ident)) == 1 for ident in nameless)
    # The same user keeps its id from one answer to the next.
    assert [parent["id"] for parent in graph_of(engine)["parents"] if parent["kind"] == "user"] == nameless


def test_a_job_and_its_own_io_are_one_parent(engine: Engine, tmp_path: Path) -> None:
    paths = make_chain(engine, tmp_path, 2)
    with paths[0].open("r+b") as file:
        file.write(os.urandom(1 << 20))
    top = {"driver": "file", "filename": str(paths[2])}
    engine.execute("blockdev-add", {"driver": "qcow2", "node-name": "top", "file": top})
    engine.execute("block-stream", {"job-id": "stream0", "device": "top", "speed": 1})
    engine.execute("block-job-pause", {"device": "stream0"})
    answer = graph_of(engine)
    jobs = [parent for parent in answer["parents"] if parent["kind"] == "job"]
    assert jobs == [{"id": "stream0", "kind": "job", "name": "stream0", "model": "stream"}]
    held = edges_of(answer, "stream0")
    assert {edge["name"] for edge in held} >= {"main node", "root"}
    (backing,) = (edge for edge in edges_of(answer, "top") if edge["name"] == "backing")
    assert backing["frozen"] is True
    filters = [node for node in answer["nodes"] if node["filter"]]
    assert [(node["driver"], node["implicit"]) for node in filters] == [("copy-on-read", True)]
    assert "block device is in use by block job: stream" in nodes_of(engine)["top"]["busy"]


def test_file_names_follow_the_graph(engine: Engine, tmp_path: Path) -> None:
    make_chain(engine, tmp_path)
    overlay, new = tmp_path / "overlay1.qcow2", tmp_path / "new.qcow2"
    file = {"driver": "file", "filename": str(overlay)}
    engine.execute("blockdev-add", {"driver": "qcow2", "node-name": "top", "file": file})
    engine.execute("blockdev-add", {"driver": "raw", "node-name": "user", "file": "top"})
    assert str(overlay) in nodes_of(engine)["user"]["filename"]
    arguments = {"node-name": "top", "snapshot-node-name": "new", "snapshot-file": str(new)}
    engine.execute("blockdev-snapshot-sync", arguments)
    assert str(new) in nodes_of(engine)["user"]["filename"]


def test_counters(engine: Engine) -> None:
    engine.execute("blockdev-add", {"driver": "null-co", "node-name": "n"})
    node = engine.graph.node("n")
    node.write(0, memoryview(bytes(4096)))
    node.read(0, memoryview(bytearray(512)))
    node.read(0, memoryview(bytearray(1024)))
    found = nodes_of(engine)["n"]
    assert [found[key] for key in ("rd-bytes", "rd-operations", "wr-bytes", "wr-operations")] == [1536, 2, 4096, 1]


def test_one_event_tells_of_many_changes(engine: Engine) -> None:
    seen: list[int] = []
    told = threading.Event()

    def take(event: dict[str, Any]) -> None:
        if event["event"] == "X_BLOCKMON_GRAPH_CHANGE":
            seen.append(event["data"]["generation"])
            told.set()

    engine.subscribe(take)
    before = graph_of(engine)["generation"]
    engine.execute("blockdev-add", {"driver": "raw", "node-name": "r", "file": {"driver": "null-co"}})
    assert told.wait(10)
    after = graph_of(engine)["generation"]
    assert before < after == seen[-1]
    assert len(seen) <= 2


def test_a_thousand_nodes_are_told_quickly(engine: Engine) -> None:
    for number in range(500):
        engine.execute("blockdev-add", {"driver": "raw", "node-name": f"r{number}", "file": {"driver": "null-co"}})
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        assert len(graph_of(engine)["nodes"]) == 1000
        seconds.append(time.perf_counter() - begin)
    # Five a second then take under a third of one core, even on a slow machine that is busy with something else.
    assert min(seconds) < 0.06


# -- x-blockmon-open -------------------------------------------------------------------------------------------------


def open_image(engine: Engine, path: Path | str, **arguments: Any) -> str:
    wire = {key.replace("_", "-"): value for key, value in arguments.items()}
    return str(engine.execute("x-blockmon-open", {"filename": str(path), **wire})["node-name"])


def test_open_names_the_nodes_by_their_files(engine: Engine, tmp_path: Path) -> None:
    paths = make_chain(engine, tmp_path, 2)
    assert open_image(engine, paths[2]) == "overlay2"
    nodes = nodes_of(engine)
    assert set(nodes) == {f"{stem}{suffix}" for stem in ("overlay2", "overlay1", "base") for suffix in ("", "-file")}
    assert {node["driver"] for name, node in nodes.items() if not name.endswith("-file")} == {"qcow2", "raw"}
    assert all(node["read-only"] for node in nodes.values())
    assert [name for name, node in nodes.items() if node["monitor-owned"]] == ["overlay2"]
    engine.execute("blockdev-del", {"node-name": "overlay2"})
    assert nodes_of(engine) == {}


def test_open_names_are_unique_and_legal(engine: Engine, tmp_path: Path) -> None:
    names = []
    for number, stem in enumerate(("disk", "disk", "42", "Größe 1", "…", "very-long-name-that-does-not-fit-anywhere")):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / f"{stem}.raw"
        path.write_bytes(bytes(512))
        names.append(open_image(engine, path))
    assert names == ["disk", "disk-2", "image-42", "Groe-1", "image", "very-long-name-that-does-n"]
    nodes = nodes_of(engine)
    assert all(f"{name}-file" in nodes for name in names)
    assert open_image(engine, tmp_path / "0" / "disk.raw", node_prefix="old-") == "old-disk"
    assert open_image(engine, f"file:{tmp_path}/0/disk.raw") == "disk-3"
    options = f'json:{{"driver": "raw", "file": {{"driver": "file", "filename": "{tmp_path}/0/disk.raw"}}}}'
    assert open_image(engine, options) == "disk-4"
    assert nodes_of(engine)["disk-4-file"]["driver"] == "file"


def test_open_tells_namesakes_in_one_chain_apart(engine: Engine, tmp_path: Path) -> None:
    paths = make_chain(engine, tmp_path, 2)
    (tmp_path / "old").mkdir()
    old = paths[1].rename(tmp_path / "old" / "overlay2.qcow2")
    paths[1].symlink_to(old)
    file = {"driver": "file", "filename": str(paths[2])}
    engine.execute("blockdev-add", {"driver": "qcow2", "node-name": "top", "file": file})
    arguments = {"device": "top", "image-node-name": "top", "backing-file": str(old)}
    engine.execute("change-backing-file", arguments)
    engine.execute("blockdev-del", {"node-name": "top"})
    assert open_image(engine, paths[2]) == "overlay2"
    nodes = nodes_of(engine)
    assert nodes["overlay2-2"]["filename"] == nodes["overlay2-2-file"]["filename"] == str(old)


@pytest.mark.parametrize("prefix", ["1", "a b", "x" * 17, "-"])
def test_open_refuses_bad_prefixes(engine: Engine, prefix: str) -> None:
    with pytest.raises(GenericError, match="Parameter 'node-prefix' expects"):
        open_image(engine, "/dev/null", node_prefix=prefix)


def test_open_tells_what_is_wrong_with_the_top_image(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(GenericError, match=r"Could not open '.*none': No such file or directory"):
        open_image(engine, tmp_path / "none")
    with pytest.raises(GenericError, match="Is a directory"):
        open_image(engine, tmp_path)
    with pytest.raises(GenericError, match="Unknown protocol 'nope'"):
        open_image(engine, "nope:x")
    with pytest.raises(GenericError, match="'filename' expects"):
        open_image(engine, "")
    assert nodes_of(engine) == {}


def test_open_leaves_others_alone_and_writes_only_when_told_to(engine: Engine, tmp_path: Path) -> None:
    paths = make_chain(engine, tmp_path)
    other = Engine()
    try:
        file = {"driver": "file", "filename": str(paths[1])}
        other.execute("blockdev-add", {"driver": "qcow2", "node-name": "vm", "file": file})
        assert open_image(engine, paths[1]) == "overlay1"
        assert open_image(engine, paths[1]) == "overlay1-2"
        with pytest.raises(GenericError, match='Failed to get "write" lock'):
            open_image(engine, paths[1], read_write=True)
        other.execute("blockdev-del", {"node-name": "vm"})
        assert open_image(engine, paths[1], read_write=True) == "overlay1-3"
        assert nodes_of(engine)["overlay1-3"]["read-only"] is False
        with pytest.raises(GenericError, match='Failed to get "write" lock'):
            other.execute("blockdev-add", {"driver": "qcow2", "node-name": "vm", "file": file})
    finally:
        other.close()


def break_missing(paths: list[Path]) -> str:
    paths[1].unlink()
    return f"Could not open '{paths[1]}': No such file or directory"


def break_format(paths: list[Path]) -> str:
    paths[1].write_bytes(bytes(1 << 20))
    return "Image is not in qcow2 format"


def break_loop(paths: list[Path]) -> str:
    paths[1].unlink()
    paths[1].symlink_to(paths[2])
    return f"Backing file '{paths[1]}' is already part of the chain: the chain loops"


@pytest.mark.parametrize("breaking", [break_missing, break_format, break_loop])
def test_a_broken_link_is_an_edge_that_says_why(engine: Engine, tmp_path: Path, breaking: Any) -> None:
    paths = make_chain(engine, tmp_path, 3)
    error = breaking(paths)
    top = open_image(engine, paths[3])
    answer = graph_of(engine)
    broken = [edge for edge in answer["edges"] if "child" not in edge]
    assert [(edge["parent"], edge["name"], edge["roles"]) for edge in broken] == [("overlay2", "backing", ["cow"])]
    assert broken[0]["filename"] == str(paths[1])
    assert broken[0]["error"] == error
    # The stand-in for what is missing shows up nowhere.
    names = {"overlay3", "overlay3-file", "overlay2", "overlay2-file"}
    assert {node["node-name"] for node in answer["nodes"]} == names
    named = engine.execute("query-named-block-nodes")
    assert {node["node-name"] for node in named} == names
    assert {node["node-name"]: node["file"] for node in named}["overlay2"] == str(paths[2])
    assert {node["node-name"]: node["backing_file_depth"] for node in named}["overlay3"] == 1
    assert {node["node-name"] for node in engine.execute("query-blockstats", {"query-nodes": True})} == names
    debug = engine.execute("x-debug-query-block-graph")
    assert {node["name"] for node in debug["nodes"]} == names
    ids = {node["id"] for node in debug["nodes"]}
    assert all({edge["parent"], edge["child"]} <= ids for edge in debug["edges"])
    engine.execute("blockdev-del", {"node-name": top})
    assert engine.graph.nodes == {}
