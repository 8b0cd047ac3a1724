"""The graph out of QEMU's own answers, as recorded from 7.2 (`recorded/`) and put into the shape of other versions."""

import json
from pathlib import Path
from typing import Any

import pytest

from blockmon.model.graph import EdgeInfo, GraphModel, IoCounters, NodeInfo
from blockmon.model.standard import Answers, build_graph, jobs_from_block_jobs, roles_of

RECORDED = Path(__file__).parent / "recorded"


def answers(name: str, **changes: Any) -> Answers:
    return Answers(**{**json.loads((RECORDED / f"{name}.json").read_text()), **changes})


def recorded(name: str, **changes: Any) -> GraphModel:
    return build_graph(answers(name, **changes))


def link(graph: GraphModel, parent: str, name: str) -> EdgeInfo:
    edge = graph.child(parent, name)
    assert edge is not None, [(edge.parent, edge.name) for edge in graph.edges]
    return edge


def mirror_top(graph: GraphModel) -> str:
    return next(node.name for node in graph.nodes.values() if node.driver == "mirror_top")


def below(graph: GraphModel, parent: str, name: str) -> str:
    child = link(graph, parent, name).child
    assert child is not None
    return child


def test_nodes_say_what_the_images_have() -> None:
    top = recorded("storage_daemon_7.2_mirror").nodes["top"]
    assert (top.driver, top.filename, top.read_only) == ("qcow2", "/img/top.qcow2", False)
    assert (top.size, top.allocated, top.cluster_size) == (64 << 20, 200704, 65536)
    assert (top.backing_file, top.backing_format) == ("base.qcow2", "qcow2")
    assert top.bitmaps == 1  # the mirror's own bitmap has no name, and is nobody's business


def test_the_chain_with_roles_and_permissions() -> None:
    graph = recorded("storage_daemon_7.2_mirror")
    backing = link(graph, "top", "backing")
    assert backing.roles == ("cow",)
    assert backing.perm == {"consistent-read"}
    assert link(graph, "top", "file").perm == {"consistent-read", "write", "resize"}
    assert "write" not in link(graph, "top", "file").shared
    base = graph.nodes[below(graph, "top", "backing")]
    assert (base.filename, base.read_only, base.auto_name) == ("/img/base.qcow2", True, True)
    assert link(graph, "top", "file").roles == ("data", "metadata", "primary")
    assert graph.nodes[below(graph, "top", "file")].name == "f"


def test_a_jobs_filter_is_no_layer_of_its_own() -> None:
    graph = recorded("storage_daemon_7.2_mirror")
    name = mirror_top(graph)
    assert graph.nodes[name].filter
    assert graph.nodes[name].implicit
    assert graph.nodes[name].allocated is None
    assert link(graph, name, "backing").roles == ("filtered", "primary")


def test_nameless_users_are_the_export_and_the_job_that_they_belong_to() -> None:
    graph = recorded("storage_daemon_7.2_mirror")
    assert {parent.key for parent in graph.parents.values()} == {"job:m0", "export:e0"}
    assert graph.parents["job:m0"].model == "mirror"
    assert below(graph, "export:e0", "root") == mirror_top(graph)
    assert {edge.child for edge in graph.children("job:m0")} == {mirror_top(graph), "top", "tgt"}


def test_devices_with_what_is_in_them() -> None:
    models = {"/machine/peripheral/vda/virtio-backend": "virtio-blk-pci"}
    graph = recorded("pc_7.2_mirror", models=models)
    vda = graph.parents["device:/machine/peripheral/vda/virtio-backend"]
    assert (vda.name, vda.model) == ("vda", "virtio-blk-pci")
    assert below(graph, vda.key, "root") == mirror_top(graph)
    names = {parent.name for parent in graph.parents.values() if parent.kind == "device"}
    assert names == {"vda", "hd0", "cd0", "unused"}
    assert graph.children("device:cd0") == ()  # an empty drive is there all the same
    assert set(graph.counters) == {"top", below(graph, "device:/machine/unattached/device[18]", "root")}


def test_a_node_that_nothing_uses_is_the_monitors() -> None:
    data = answers("storage_daemon_7.2_mirror")
    assert data.debug is not None
    edges = [edge for edge in data.debug["edges"] if edge["name"] != "root" and edge["perm"]]
    graph = build_graph(answers("storage_daemon_7.2_mirror", debug={**data.debug, "edges": edges}, exports=()))
    assert graph.nodes["tgt"].monitor_owned
    assert not graph.nodes["tf"].monitor_owned


def test_nodes_that_are_not_told_stay_as_they_were_known() -> None:
    before = recorded("storage_daemon_7.2_mirror")
    graph = build_graph(answers("storage_daemon_7.2_mirror", nodes=None), before.nodes)
    assert graph.nodes["top"].filename == "/img/top.qcow2"
    assert graph.edges == before.edges
    unknown = recorded("storage_daemon_7.2_mirror", nodes=None)
    assert unknown.nodes["top"].filename == ""


@pytest.mark.parametrize("name", ["storage_daemon_7.2_mirror", "pc_7.2_mirror"])
def test_without_the_graph_query_the_links_are_concluded(name: str) -> None:
    told, concluded = recorded(name), recorded(name, debug=None)

    def links(graph: GraphModel) -> set[tuple[str, str, str | None]]:
        return {edge.key for edge in graph.edges if edge.parent_kind != "job"}

    assert links(concluded) == links(told)


def test_versions_that_list_the_children_are_believed() -> None:
    nodes = [
        {"node-name": "q", "drv": "quorum", "file": "", "ro": False, "image": {"virtual-size": 1},
         "children": [{"child": "children.0", "node-name": "a"}, {"child": "children.1", "node-name": "b"}]},
        {"node-name": "a", "drv": "file", "file": "/a", "ro": False, "image": {"virtual-size": 1}},
        {"node-name": "b", "drv": "file", "file": "/b", "ro": False, "image": {"virtual-size": 1}},
    ]  # fmt: skip
    graph = build_graph(Answers(nodes))
    assert [(edge.name, edge.child) for edge in graph.children("q")] == [("children.0", "a"), ("children.1", "b")]


def test_file_names_link_only_where_they_fit_in_one_way() -> None:
    def node(name: str, driver: str, **image: Any) -> dict[str, Any]:
        return {"node-name": name, "drv": driver, "file": "/top", "ro": False, "image": {"virtual-size": 1, **image}}

    alone = build_graph(Answers([node("top", "qcow2"), node("f", "file")]))
    assert alone.child("top", "file") is not None
    twice = build_graph(Answers([node("top", "qcow2"), node("f", "file"), node("g", "file")]))
    assert twice.edges == ()


def test_guests_io_is_counted_where_the_devices_stand() -> None:
    def stats(read: int) -> dict[str, Any]:
        return {"rd_bytes": read, "rd_operations": 1, "wr_bytes": 0, "wr_operations": 0}

    graph = build_graph(Answers([], stats=[{"node-name": "n", "stats": stats(5)}, {"node-name": "n", "stats": stats(6)},
                                           {"device": "empty", "stats": stats(0)}]))  # fmt: skip
    assert graph.counters == {"n": IoCounters(rd_bytes=11, rd_ops=2)}


def test_a_corrupt_image_shows() -> None:
    image = {"virtual-size": 1, "format-specific": {"type": "qcow2", "data": {"corrupt": True}}}
    graph = build_graph(Answers([{"node-name": "n", "drv": "qcow2", "file": "/n", "ro": False, "image": image}]))
    assert graph.nodes["n"].error == "the image is marked corrupt"


def test_jobs_of_servers_that_know_only_block_jobs() -> None:
    old = {"device": "d", "type": "stream", "len": 10, "offset": 4, "paused": False, "speed": 0}
    assert jobs_from_block_jobs([old]) == [
        {"id": "d", "type": "stream", "status": "running", "current-progress": 4, "total-progress": 10}
    ]
    assert jobs_from_block_jobs([{**old, "ready": True, "paused": True}])[0]["status"] == "standby"
    assert jobs_from_block_jobs([{**old, "status": "pending", "error": "no"}])[0]["error"] == "no"


def test_roles_as_in_qemus_drivers() -> None:
    raw, part = NodeInfo("r", "raw"), NodeInfo("r", "raw", 'json:{"driver": "raw", "offset": 512, "file": "x"}')
    assert roles_of(raw, "file") == ("filtered", "primary")
    assert roles_of(part, "file") == ("data", "primary")
    assert roles_of(NodeInfo("c", "copy-on-read"), "file") == ("filtered", "primary")
    assert roles_of(NodeInfo("q", "quorum"), "children.0") == ("data",)
    assert roles_of(NodeInfo("s", "snapshot-access"), "file") == ("data", "primary")
    assert roles_of(NodeInfo("q", "qcow2"), "data-file") == ("data",)
