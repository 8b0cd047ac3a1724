"""Snapshots of the graph and what changed between two."""

import copy

from blockmon.model.graph import GraphModel, diff, from_query_graph
from tests.blockmon.tui.fake import busy_graph


def test_a_snapshot_knows_nodes_edges_and_parents() -> None:
    graph = from_query_graph(busy_graph())
    overlay = graph.nodes["overlay2"]
    assert (overlay.driver, overlay.read_only, overlay.size) == ("qcow2", False, 20 * 1024**3)
    assert overlay.backing_file == "overlay1.qcow2"
    assert [edge.name for edge in graph.children("overlay2")] == ["file", "backing"]
    assert {edge.parent for edge in graph.parents_of("base")} == {"snap", "clone"}
    assert graph.parent_label("device:/machine/vda") == "vda"
    backing = graph.backing("overlay2")
    assert backing is not None
    assert backing.frozen
    assert backing.perm == {"consistent-read"}


def test_a_broken_edge_has_its_reason() -> None:
    graph = from_query_graph(busy_graph())
    edge = graph.child("#block317", "backing")
    assert edge is not None
    assert edge.child is None
    assert edge.filename == "/img/golden.qcow2"
    assert "No such file" in (edge.error or "")


def test_unknown_members_do_not_matter() -> None:
    reply = busy_graph()
    reply["nodes"][0]["colour"] = "green"
    reply["more"] = 1
    assert from_query_graph(reply).nodes.keys() == from_query_graph(busy_graph()).nodes.keys()


def test_nothing_changed() -> None:
    changed = diff(from_query_graph(busy_graph()), from_query_graph(busy_graph()))
    assert not changed
    assert not changed.rows


def test_io_alone_changes_no_row() -> None:
    reply = busy_graph()
    reply["nodes"][0]["rd-bytes"] = 4096
    changed = diff(from_query_graph(busy_graph()), from_query_graph(reply))
    assert changed.io_nodes == ("overlay2",)
    assert changed
    assert not changed.rows


def test_growing_changes_a_row_but_not_the_shape() -> None:
    reply = busy_graph()
    reply["nodes"][0]["allocated"] += 65536
    changed = diff(from_query_graph(busy_graph()), from_query_graph(reply))
    assert changed.nodes_changed == ("overlay2",)
    assert changed.rows
    assert not changed.shape


def test_another_backing_link_changes_the_shape() -> None:
    reply = copy.deepcopy(busy_graph())
    link = next(edge for edge in reply["edges"] if edge["parent"] == "overlay2" and edge["name"] == "backing")
    link["child"] = "base"
    changed = diff(from_query_graph(busy_graph()), from_query_graph(reply))
    assert [edge.child for edge in changed.edges_added] == ["base"]
    assert [edge.child for edge in changed.edges_removed] == ["overlay1"]
    assert changed.shape


def test_permissions_change_an_edge() -> None:
    reply = busy_graph()
    reply["edges"][0]["perm"] = ["consistent-read"]
    changed = diff(from_query_graph(busy_graph()), from_query_graph(reply))
    assert [edge.name for edge in changed.edges_changed] == ["root"]
    assert not changed.shape


def test_a_node_comes_and_goes() -> None:
    reply = busy_graph()
    gone = reply["nodes"].pop()
    changed = diff(from_query_graph(busy_graph()), from_query_graph(reply))
    assert changed.nodes_removed == (gone["node-name"],)
    back = diff(from_query_graph(reply), from_query_graph(busy_graph()))
    assert back.nodes_added == (gone["node-name"],)


def test_the_active_layer_is_the_top_of_the_chain() -> None:
    graph = from_query_graph(busy_graph())
    assert graph.active_layer("snap") == "overlay2"
    assert graph.active_layer("overlay2") == "overlay2"
    assert graph.active_layer("overlay2-file") == "overlay2-file"


def test_leaves_are_where_the_bytes_come_from() -> None:
    leaves = set(from_query_graph(busy_graph()).leaves)
    assert "base-file" in leaves
    assert "scratch" in leaves
    assert "base" not in leaves
    assert set(GraphModel().leaves) == set()


def test_what_moves_leaves_the_links_and_what_follows_from_them_as_they_are() -> None:
    reply = busy_graph()
    graph = from_query_graph(reply)
    assert graph.unused == ("#block317", "scratch")
    assert graph.broken == 1
    moved = graph.with_nodes([{**reply["nodes"][0], "allocated": 1, "rd-bytes": 512}])
    assert moved.unused is graph.unused
    assert moved.children("overlay2") is graph.children("overlay2")
    assert (moved.nodes["overlay2"].allocated, moved.counters["overlay2"].rd_bytes) == (1, 512)
    assert graph.nodes["overlay2"].allocated != 1


def test_links_are_indexed_alike_however_they_came_about() -> None:
    reply = busy_graph()
    before = from_query_graph(reply)
    other = busy_graph()
    other["edges"] = [item for item in other["edges"] if item["parent"] != "clone"][1:]
    other["edges"].insert(3, {**other["edges"][0], "parent": "scratch", "child": "base"})
    after, anew = from_query_graph(other, before), from_query_graph(other)
    for name in (*anew.nodes, *anew.parents, "stream0"):
        assert after.children(name) == anew.children(name)
        assert after.parents_of(name) == anew.parents_of(name)
