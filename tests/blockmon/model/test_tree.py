"""The graph as a tree of nodes and edges."""

from typing import Any

from blockmon.model.graph import diff, from_query_graph
from blockmon.model.tree import BROKEN, NODE, PARENT, REFERENCE, TreeRow, flatten, renewed
from tests.blockmon.tui.fake import busy_graph, edge, node


def tree(reply: dict[str, Any], **options: Any) -> list[TreeRow]:
    return flatten(from_query_graph(reply), **options)


def names(rows: list[TreeRow]) -> list[str]:
    """Every row as its depth, edge and node."""
    return [
        f"{row.depth} {row.edge.name + '>' if row.edge else ''}"
        f"{row.node.name if row.node else row.parent.name if row.parent else '!'}"
        for row in rows
    ]


def test_roots_are_what_uses_the_graph_and_then_what_nobody_uses() -> None:
    rows = [row for row in tree(busy_graph()) if row.depth == 0]
    assert [row.kind for row in rows] == [PARENT, PARENT, NODE, NODE]
    assert [row.parent.name if row.parent else row.node.name if row.node else "" for row in rows] == [
        "vda", "exp0", "#block317", "scratch",
    ]  # fmt: skip
    # What the monitor holds says so.
    assert rows[2].edge is not None
    assert rows[2].edge.parent_kind == "monitor"


def test_a_chain_reads_downwards_with_the_backing_link_last() -> None:
    assert names(tree(busy_graph()))[:9] == [
        "0 vda", "1 root>overlay2", "2 file>overlay2-file", "2 backing>overlay1", "3 file>overlay1-file",
        "3 backing>snap", "4 file>snap-file", "4 backing>base", "5 file>base-file",
    ]  # fmt: skip


def test_the_backing_link_is_last_whatever_the_server_says_first() -> None:
    reply = busy_graph()
    reply["edges"].reverse()
    below = [row.edge.name for row in tree(reply) if row.edge is not None and row.edge.parent == "overlay2"]
    assert below == ["file", "backing"]


def test_a_shared_node_is_shown_in_full_once() -> None:
    rows = [row for row in tree(busy_graph()) if row.node is not None and row.node.name == "base"]
    assert [row.kind for row in rows] == [NODE, REFERENCE]
    assert rows[0].expandable
    assert not rows[1].expandable


def test_a_shared_node_in_a_folded_chain_is_shown_where_it_can_be_seen() -> None:
    rows = tree(busy_graph(), folded={"device:/machine/vda"})
    base = [row for row in rows if row.node is not None and row.node.name == "base"]
    assert [row.kind for row in base] == [NODE]
    assert rows[0].hidden == 8
    assert not rows[0].expanded


def test_a_broken_edge_stands_in_its_place() -> None:
    rows = tree(busy_graph())
    broken = next(row for row in rows if row.kind == BROKEN)
    assert broken.depth == 1
    assert broken.last
    assert broken.edge is not None
    assert broken.edge.name == "backing"


def test_jobs_take_no_rows() -> None:
    assert not [row for row in tree(busy_graph()) if row.edge is not None and row.edge.parent_kind == "job"]


def test_a_node_that_only_a_job_holds_is_still_there() -> None:
    reply = {
        "generation": 1,
        "nodes": [node("target", "raw", "/t.raw", 1)],
        "parents": [{"id": "m", "kind": "job", "name": "m"}],
        "edges": [edge("m", "target", "target", parent_kind="job")],
    }
    assert names(tree(reply)) == ["0 target"]


def test_guides_run_beside_what_follows() -> None:
    rows = {row.node.name: row for row in tree(busy_graph()) if row.node is not None and row.kind == NODE}
    assert rows["overlay2-file"].guides == (False,)
    assert not rows["overlay2-file"].last
    assert rows["overlay1"].last


def test_the_filter_keeps_what_leads_to_a_match() -> None:
    assert names(tree(busy_graph(), filter_text="SNAP-file")) == [
        "0 vda", "1 root>overlay2", "2 backing>overlay1", "3 backing>snap", "4 file>snap-file",
    ]  # fmt: skip
    assert names(tree(busy_graph(), filter_text="no such file")) == ["0 >#block317", "1 backing>!"]
    assert tree(busy_graph(), filter_text="nowhere") == []


def test_the_filter_looks_into_folded_chains() -> None:
    rows = tree(busy_graph(), folded={"overlay2"}, filter_text="base-file")
    assert "base-file" in [row.node.name for row in rows if row.node is not None]


def test_a_very_long_chain() -> None:
    depth = 3000
    reply = {
        "generation": 1,
        "nodes": [node(f"n{number}", "qcow2", "", 1) for number in range(depth)],
        "parents": [],
        "edges": [edge(f"n{number}", "backing", f"n{number + 1}") for number in range(depth - 1)],
    }
    rows = tree(reply)
    assert len(rows) == depth
    assert rows[-1].depth == depth - 1


def test_a_server_that_claims_a_cycle_still_gets_its_nodes_listed() -> None:
    reply = {
        "generation": 1,
        "nodes": [node("a", "raw", "", 1), node("b", "raw", "", 1)],
        "parents": [],
        "edges": [edge("a", "backing", "b"), edge("b", "backing", "a")],
    }
    assert names(tree(reply)) == ["0 a", "1 backing>b", "2 backing>a"]


def test_rows_keep_their_keys_when_the_graph_changes() -> None:
    reply = busy_graph()
    before = {row.key for row in tree(reply)}
    reply["nodes"].append(node("late", "null-co", "", 1))
    after = {row.key for row in tree(reply)}
    assert before < after


def test_rows_are_renewed_without_being_laid_out_anew() -> None:
    before, reply = from_query_graph(busy_graph()), busy_graph()
    reply["nodes"][0]["allocated"] = 99
    for item in reply["edges"]:
        item["frozen"] = False
    after = from_query_graph(reply, before)
    for options in ({}, {"folded": {"overlay1"}}):
        rows = flatten(before, **options)  # type: ignore[arg-type]
        assert renewed(rows, after, diff(before, after)) == flatten(after, **options)  # type: ignore[arg-type]
        assert flatten(after, **options) != rows  # type: ignore[arg-type]
