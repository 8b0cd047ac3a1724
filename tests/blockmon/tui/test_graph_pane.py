"""The tree: permissions on demand, filters folded, searching, badges, marks of change, a place kept across changes."""

from __future__ import annotations

from typing import Any

import pytest

from blockmon.model.marks import SECONDS, ChangeMarks
from blockmon.tui.app import BlockmonApp
from blockmon.tui.graph_badges import Badge, fitted
from tests.blockmon.tui.fake import GIB, FakeBackend, busy_graph, edge, node
from tests.blockmon.tui.screens import line_with, lines, shown, text, until


def place_of(app: BlockmonApp, name: str) -> int:
    rows = app.graph.rows
    return next(n for n, row in enumerate(rows) if row.kind != "reference" and row.node and row.node.name == name)


def filtered_graph() -> dict[str, Any]:
    """A device on two filters on a qcow2 node that is exported as well."""
    return {
        "generation": 1,
        "nodes": [
            node("thr", "throttle", "", GIB, filter=True, read_only=False),
            node("cor", "copy-on-read", "", GIB, filter=True, read_only=False),
            node("disk", "qcow2", "/img/disk.qcow2", GIB, 4096, read_only=False, bitmaps=2),
            node("disk-file", "file", "/img/disk.qcow2", 4096, 4096, read_only=False),
        ],
        "parents": [
            {"id": "vda", "kind": "device", "name": "vda", "model": "virtio-blk"},
            {"id": "exp0", "kind": "export", "name": "exp0", "model": "nbd"},
        ],
        "edges": [
            edge("vda", "root", "thr", ["consistent-read", "write"], parent_kind="device"),
            edge("thr", "file", "cor", roles=["filtered", "primary"]),
            edge("cor", "file", "disk", roles=["filtered", "primary"]),
            edge("disk", "file", "disk-file"),
            edge("exp0", "root", "disk", parent_kind="export"),
        ],
    }


async def test_permissions_are_shown_on_demand() -> None:
    async with shown() as (app, pilot, _):
        assert "rw-s r-u-" not in text(app)
        await pilot.press("v")
        await until(pilot, lambda: "has  lets" in text(app))
        assert "rw-s r-u-" in line_with(app, "root → overlay2")
        assert "cow" in line_with(app, "backing ⇒ overlay1")
        assert "data, metadata" in line_with(app, "file → snap-file")
        assert "r--- r-u-" in line_with(app, "base  raw  ↑")
        await pilot.press("v")
        await until(pilot, lambda: "has  lets" not in text(app))


async def test_filters_are_folded_into_the_link() -> None:
    async with shown(FakeBackend(filtered_graph())) as (app, pilot, _):
        assert "root → thr" in text(app)
        app.graph.go_to(place_of(app, "disk"))
        await pilot.press("F")
        await until(pilot, lambda: "root → [2 filters] → disk" in text(app))
        assert "thr " not in text(app)
        assert app.graph.row is not None
        assert app.graph.row.node is not None
        assert app.graph.row.node.name == "disk"
        await pilot.press("F")
        await until(pilot, lambda: "root → thr" in text(app))


async def test_one_folded_filter_is_named() -> None:
    graph = filtered_graph()
    graph["nodes"] = [item for item in graph["nodes"] if item["node-name"] != "thr"]
    graph["edges"] = [
        {**item, "child": "cor"} if item["parent"] == "vda" else item
        for item in graph["edges"]
        if item["parent"] != "thr"
    ]
    async with shown(FakeBackend(graph)) as (app, pilot, _):
        await pilot.press("F")
        await until(pilot, lambda: "root → [copy-on-read] → disk" in text(app))


async def test_a_broken_filter_is_not_folded() -> None:
    graph = filtered_graph()
    graph["edges"][1].pop("child")
    async with shown(FakeBackend(graph)) as (app, pilot, _):
        await pilot.press("F")
        await until(pilot, lambda: "filters folded" in text(app) or app.graph.filters_folded)
        assert "root → thr" in text(app)


async def test_space_on_a_reference_leads_to_the_node_itself() -> None:
    async with shown() as (app, pilot, _):
        app.graph.go_to(next(number for number, row in enumerate(app.graph.rows) if row.kind == "reference"))
        await pilot.press("space")
        assert app.graph.cursor == place_of(app, "base")


async def test_searching_goes_from_match_to_match() -> None:
    async with shown() as (app, pilot, _):
        await pilot.press("slash", *"-file", "enter")
        await until(pilot, lambda: "n N next" in text(app))

        def at() -> str:
            row = app.graph.row
            assert row is not None
            return row.node.name if row.node is not None else ""

        first = at()
        assert first.endswith("-file")
        await pilot.press("n")
        second = at()
        assert second.endswith("-file")
        assert second != first
        await pilot.press("N")
        assert at() == first
        # It is not taken for the action of the same key.
        assert not app.prompt.has_focus
        await pilot.press("escape")
        await until(pilot, lambda: "/-file" not in text(app))
        assert at() == first


async def test_a_device_without_a_medium_says_so() -> None:
    graph = filtered_graph()
    graph["parents"].append({"id": "cd0", "kind": "device", "name": "cd0", "model": "ide-cd"})
    async with shown(FakeBackend(graph)) as (app, _, _):
        assert "no medium" in line_with(app, "cd0  ide-cd")
        assert "no medium" not in line_with(app, "vda  virtio-blk")


async def test_badges() -> None:
    graph = filtered_graph()
    graph["nodes"][2]["error"] = "the image is corrupt"
    async with shown(FakeBackend(graph), size=(140, 40)) as (app, pilot, _):
        await pilot.press("z")
        await until(pilot, lambda: "2 bitmaps" in text(app))
        row = line_with(app, "→ disk ")
        assert "✗ error » exp0 ≡ 2 bitmaps" in row


async def test_badges_are_short_where_there_is_little_room() -> None:
    async with shown(FakeBackend(filtered_graph()), size=(60, 24)) as (app, _, _):
        row = line_with(app, "→ disk ")
        assert "≡2" in row
        assert "disk" in row


def test_badges_go_by_their_weight() -> None:
    found = [Badge("✗ error", "✗", "a"), Badge("» exp0", "»1", "b"), Badge("≡ 2 bitmaps", "≡2", "c")]
    assert [part for part, _ in fitted(found, 30)] == ["✗ error", "» exp0", "≡ 2 bitmaps"]
    assert [part for part, _ in fitted(found, 19)] == ["✗ error", "» exp0", "≡2"]
    assert [part for part, _ in fitted(found, 14)] == ["✗ error", "»1", "≡2"]
    assert [part for part, _ in fitted(found, 9)] == ["✗", "»1", "≡2"]
    assert [part for part, _ in fitted(found, 5)] == ["✗", "»1"]


async def test_what_changed_is_marked_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockmon.model.marks.SECONDS", 0.3)
    async with shown(size=(80, 40)) as (app, pilot, backend):
        assert not any(line.startswith(("+", "~", "-")) for line in lines(app)[2:27])
        backend.graph["nodes"].append(node("extra", "null-co", "", GIB))
        backend.graph["nodes"][0]["backing-file"] = "another.qcow2"
        backend.change_graph()
        await until(pilot, lambda: line_with(app, "extra").startswith("+"))
        assert line_with(app, "→ overlay2 ").startswith("~")
        assert not line_with(app, "→ snap ").startswith(("+", "~"))
        await until(pilot, lambda: not line_with(app, "extra").startswith("+"))
        assert not line_with(app, "→ overlay2 ").startswith("~")
        assert app.graph.marks.next_fade is None


async def test_an_export_or_a_device_that_goes_is_shown_for_a_moment() -> None:
    async with shown(size=(80, 60)) as (app, pilot, backend):
        for key in ("exp0", "/machine/vda"):
            backend.graph["parents"] = [item for item in backend.graph["parents"] if item["id"] != key]
            backend.graph["edges"] = [item for item in backend.graph["edges"] if item["parent"] != key]
            backend.change_graph()
            name = key.rpartition("/")[2]
            await until(pilot, lambda name=name: line_with(app, f"{name}  ").endswith("  gone"))  # type: ignore[misc]
            assert line_with(app, f"{name}  ").startswith("-")


async def test_what_is_gone_is_shown_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockmon.model.marks.SECONDS", 0.5)
    async with shown(size=(80, 30)) as (app, pilot, backend):
        backend.graph["nodes"] = [item for item in backend.graph["nodes"] if item["node-name"] != "scratch"]
        backend.change_graph()
        await until(pilot, lambda: line_with(app, "scratch").startswith("-"))
        assert "gone" in line_with(app, "scratch")
        await until(pilot, lambda: "scratch" not in text(app))


async def test_growing_files_are_no_news() -> None:
    async with shown() as (app, pilot, backend):
        backend.graph["nodes"][0]["allocated"] += 65536
        backend.graph["nodes"][1]["size"] += 65536
        backend.change_graph()
        await until(
            pilot, lambda: app.state.graph.nodes["overlay2"].allocated == backend.graph["nodes"][0]["allocated"]
        )
        assert app.graph.marks.next_fade is None


async def test_marks_wait_until_somebody_looks() -> None:
    async with shown(size=(80, 40)) as (app, pilot, backend):
        await pilot.press("f4")
        backend.graph["nodes"].append(node("extra", "null-co", "", GIB))
        backend.change_graph()
        await until(pilot, lambda: "extra" in app.state.graph.nodes)
        assert app.graph.marks.next_fade is None
        await pilot.press("f2")
        await until(pilot, lambda: line_with(app, "extra").startswith("+"))
        await until(pilot, lambda: app.graph.marks.next_fade is not None)


async def test_the_cursor_goes_to_the_nearest_when_its_node_goes() -> None:
    async with shown(size=(80, 40)) as (app, pilot, backend):
        app.graph.go_to(place_of(app, "overlay1-file"))
        graph = backend.graph
        graph["nodes"] = [item for item in graph["nodes"] if item["node-name"] != "overlay1-file"]
        graph["edges"] = [item for item in graph["edges"] if item.get("child") != "overlay1-file"]
        backend.change_graph()
        await until(pilot, lambda: "overlay1-file" not in app.state.graph.nodes)
        row = app.graph.row
        assert row is not None
        # Its sibling, and not whatever stands in the same line now.
        assert row.key == ("overlay1", "backing", "snap")


async def test_folds_and_the_line_of_the_cursor_survive_a_change() -> None:
    async with shown(size=(80, 18)) as (app, pilot, backend):
        app.graph.go_to(place_of(app, "snap"))
        await pilot.press("space")
        app.graph.go_to(place_of(app, "overlay1-file"))
        await until(pilot, lambda: "▶ backing ⇒ snap" in text(app))
        number = next(n for n, line in enumerate(lines(app)) if "→ overlay1-file " in line)
        backend.graph["nodes"].insert(0, node("new", "null-co", "", GIB))
        backend.graph["edges"].insert(1, edge("overlay2", "extra", "new"))
        backend.change_graph()
        await until(pilot, lambda: "new" in app.state.graph.nodes)
        await until(pilot, lambda: "▶ backing ⇒ snap" in text(app))
        assert app.graph.row is not None
        assert app.graph.row.key == ("overlay1", "file", "overlay1-file")
        assert "→ overlay1-file " in lines(app)[number]


def test_what_was_there_from_the_start_is_no_news() -> None:
    from blockmon.model.graph import GraphModel, diff, from_query_graph

    marks = ChangeMarks()
    graph = from_query_graph(busy_graph())
    marks.update(graph, diff(GraphModel(), graph), [], 1.0, seen=True)
    assert marks.next_fade is None
    later = from_query_graph({**busy_graph(), "nodes": [*busy_graph()["nodes"], node("x", "null-co", "", 1)]})
    marks.update(later, diff(graph, later), [], 2.0, seen=True)
    assert marks.next_fade == 2.0 + SECONDS
    assert not marks.fade(3.0)
    assert marks.fade(2.0 + SECONDS)
    assert marks.next_fade is None


def big_graph(count: int) -> dict[str, Any]:
    """So many nodes in chains of ten under a device each."""
    nodes, edges, parents = [], [], []
    for disk in range(count // 10):
        parents.append({"id": f"v{disk}", "kind": "device", "name": f"v{disk}", "model": "virtio-blk"})
        edges.append(edge(f"v{disk}", "root", f"n{disk}-0", parent_kind="device"))
        for layer in range(10):
            nodes.append(node(f"n{disk}-{layer}", "qcow2", f"/i/{disk}-{layer}.qcow2", GIB, 4096))
            if layer < 9:
                edges.append(edge(f"n{disk}-{layer}", "backing", f"n{disk}-{layer + 1}"))
    return {"generation": 1, "nodes": nodes, "parents": parents, "edges": edges}


async def test_ten_thousand_nodes_are_drawn_by_the_screenful(monkeypatch: pytest.MonkeyPatch) -> None:
    async with shown(FakeBackend(big_graph(10_000))) as (app, pilot, _):
        drawn = 0
        draw = app.graph.draw

        def counting(*arguments: object) -> object:
            nonlocal drawn
            drawn += 1
            return draw(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(app.graph, "draw", counting)
        await pilot.press("end")
        await until(pilot, lambda: "n999-9" in text(app))
        await pilot.press("pageup")
        assert drawn <= 4 * app.graph.visible_rows


async def test_sizes_that_change_do_not_lay_the_tree_out_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    from blockmon.tui import graph_pane

    async with shown() as (app, pilot, backend):
        monkeypatch.setattr(graph_pane, "flatten", lambda *arguments, **options: pytest.fail("laid out anew"))
        backend.graph["nodes"][0]["allocated"] = 5 * GIB
        backend.graph["edges"][2]["frozen"] = False
        backend.change_graph()
        await until(pilot, lambda: "rw    5G   20G" in text(app) and "backing → overlay1" in text(app))
