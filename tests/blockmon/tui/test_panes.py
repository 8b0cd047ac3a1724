"""The single panes: the tree, the inspector, the jobs, the events."""

from blockmon.tui.jobs_pane import draw_bar
from blockmon.tui.line import Line
from tests.blockmon.tui.fake import GIB, MIB, FakeBackend, block_job, busy_graph, edge, event, node
from tests.blockmon.tui.screens import go_on, line_with, lines, shown, text, twelve_busy_seconds, until

# The tree


async def test_columns_stand_in_line() -> None:
    async with shown() as (app, _, _):
        ends = {line.rstrip("▐ ").rindex("20G") for line in lines(app) if line.rstrip("▐ ").endswith("20G")}
        assert len(ends) == 1
        modes = [line.index(" rw ") for line in lines(app) if " rw " in line]
        assert len(set(modes)) == 1


async def test_io_draws_a_sparkline_on_its_row_alone() -> None:
    async with shown() as (app, pilot, _):
        await twelve_busy_seconds(pilot)
        assert any(block in line_with(app, "→ overlay2 ") for block in "▁▂▃▄▅▆▇")
        assert not any(block in line_with(app, "→ snap ") for block in "▁▂▃▄▅▆▇")
        assert "↓  44M/s" in lines(app)[0]
        assert "↑   3M/s" in lines(app)[0]


async def test_a_node_is_called_busy_for_what_the_tree_does_not_show() -> None:
    graph = busy_graph()
    graph["nodes"][-1]["busy"] = ["block device is in use by something"]
    graph["nodes"][4]["busy"] = ["node is used as backing hd of 'overlay1'"]
    async with shown(FakeBackend(graph), size=(140, 40)) as (app, _, _):
        assert "◍ busy" in line_with(app, "scratch")
        assert "busy" not in line_with(app, "→ snap ")


async def test_folding() -> None:
    async with shown() as (app, pilot, _):
        await pilot.press("down", "space")
        await until(pilot, lambda: "→ overlay1" not in text(app))
        assert "▶ root → overlay2" in text(app)
        assert "+7" in line_with(app, "root → overlay2")
        await pilot.press("right")
        await until(pilot, lambda: "→ overlay1" in text(app))
        await pilot.press("minus")
        await until(pilot, lambda: "▶ vda" in text(app))
        await pilot.press("plus")
        await until(pilot, lambda: "→ overlay1" in text(app))


async def test_left_and_right_walk_the_tree() -> None:
    async with shown() as (app, pilot, _):
        await pilot.press("down", "down", "down", "down")
        assert app.graph.row is not None
        assert app.graph.row.key == ("overlay1", "file", "overlay1-file")
        await pilot.press("left")
        assert app.graph.row.node is not None
        assert app.graph.row.node.name == "overlay1"
        await pilot.press("right")
        assert app.graph.row.key == ("overlay1", "file", "overlay1-file")


async def test_from_a_reference_to_the_node_itself() -> None:
    async with shown() as (app, pilot, _):
        place = next(number for number, row in enumerate(app.graph.rows) if row.kind == "reference")
        app.graph.go_to(place)
        await pilot.press("right")
        assert app.graph.row is not None
        assert app.graph.row.key == ("snap", "backing", "base")


async def test_the_filter_is_typed_into_the_pane() -> None:
    async with shown() as (app, pilot, _):
        await pilot.press("slash", *"clone")
        await until(pilot, lambda: "/clone" in text(app))
        assert "→ clone-file" in text(app)
        assert "overlay2" not in text(app)
        # Keys that are bound elsewhere are text here.
        await pilot.press("z", "backspace", "enter")
        await until(pilot, lambda: "▏" not in text(app))
        assert "/clone" in text(app)
        await pilot.press("escape")
        await until(pilot, lambda: "overlay1" in text(app))


async def test_the_cursor_stays_with_its_node_when_the_graph_changes() -> None:
    async with shown() as (app, pilot, backend):
        app.graph.go_to(next(n for n, row in enumerate(app.graph.rows) if row.node and row.node.name == "clone"))
        # A new overlay moves everything one row down.
        backend.graph["nodes"].insert(0, node("overlay3", "qcow2", "/img/overlay3.qcow2", 20 * GIB))
        backend.graph["edges"][0]["child"] = "overlay3"
        backend.graph["edges"].insert(1, edge("overlay3", "backing", "overlay2"))
        backend.change_graph()
        await until(pilot, lambda: "overlay3" in text(app))
        assert app.graph.row is not None
        assert app.graph.row.node is not None
        assert app.graph.row.node.name == "clone"


async def test_a_node_that_goes_takes_the_inspector_along() -> None:
    async with shown(size=(140, 40)) as (app, pilot, backend):
        await pilot.press("end")
        await until(pilot, lambda: "─ scratch · null-co · rw" in text(app))
        backend.graph["nodes"].pop()
        backend.change_graph()
        await until(pilot, lambda: "scratch" not in text(app))


async def test_a_long_chain_does_not_push_the_names_out() -> None:
    depth = 60
    graph = {
        "generation": 1,
        "nodes": [node(f"layer{number}", "qcow2", f"/l{number}.qcow2", GIB, MIB) for number in range(depth)],
        "parents": [],
        "edges": [edge(f"layer{number}", "backing", f"layer{number + 1}") for number in range(depth - 1)],
    }
    async with shown(FakeBackend(graph)) as (app, pilot, _):
        await pilot.press("end")
        last = line_with(app, "layer59")
        assert "backing → layer59  qcow2" in last
        assert last.strip().startswith("59")
        assert "1M" in last


async def test_a_mouse_chooses_and_scrolls() -> None:
    async with shown() as (app, pilot, _):
        await pilot.click("#graph", offset=(20, 3))
        assert app.graph.cursor == 2
        await pilot.click("#graph", offset=(20, 3), times=2)
        await until(pilot, lambda: app.focused is app.inspector)
        await pilot.click("#tabs", offset=(30, 0))
        await until(pilot, lambda: app.focused is app.jobs)


# The inspector


async def test_the_overview_of_a_node() -> None:
    async with shown() as (app, pilot, _):
        await pilot.press("down", "enter")
        await until(pilot, lambda: "overlay2 · qcow2 · rw" in text(app))
        assert "/img/overlay2.qcow2" in line_with(app, "file ")
        assert "qcow2 · clusters of 64 KiB" in text(app)
        assert "1.2 GiB of 20 GiB" in line_with(app, "allocated")
        assert "5 %" in line_with(app, "allocated")
        assert "overlay1  (overlay1.qcow2, qcow2)" in line_with(app, "backing")
        assert "vda (root: rw-s · shares r-u-)" in line_with(app, "parents")
        assert "● stream0 (running): main node" in line_with(app, "busy")
        await pilot.press("escape")
        await until(pilot, lambda: app.focused is app.graph)


async def test_the_permissions_of_a_node() -> None:
    async with shown() as (app, pilot, _):
        await pilot.press("down", "down", "down", "enter", "2")
        await until(pilot, lambda: "used by" in text(app))
        above, below = (" ".join(part.split()) for part in text(app).split("uses ", 1))
        assert "used by read write unchgd resize" in above
        assert "overlay2 backing ⇒ T S - - - S - - cow" in above
        assert "stream0 intermediate node → - S - - - S - -" in above
        assert "together T S - - - S - -" in above
        assert "file → overlay1-file T S T - - S T -" in below


async def test_io_counters() -> None:
    async with shown() as (app, pilot, _):
        await twelve_busy_seconds(pilot)
        await pilot.press("down", "enter", "4")
        await until(pilot, lambda: "requests" in text(app))
        assert "298 MiB    76,288     44M/s" in line_with(app, "read ")
        assert "36 MiB     9,216      3M/s" in line_with(app, "written")


async def test_raw_json_is_asked_for_when_it_is_looked_at() -> None:
    async with shown() as (app, pilot, backend):
        await pilot.press("down", "enter")
        assert "query-named-block-nodes" not in backend.executed
        await pilot.press("6")
        await until(pilot, lambda: '"node-name": "overlay2"' in text(app))
        asked = backend.executed.count("query-named-block-nodes")
        await pilot.press("1", "6")
        assert backend.executed.count("query-named-block-nodes") == asked
        await pilot.press("r")
        await until(pilot, lambda: backend.executed.count("query-named-block-nodes") == asked + 1)


async def test_a_broken_link_tells_why() -> None:
    async with shown() as (app, pilot, _):
        app.graph.go_to(next(number for number, row in enumerate(app.graph.rows) if row.kind == "broken"))
        row = line_with(app, "golden")
        assert "✗ golden.qcow2  Could not open: No such file or directory" in row
        await pilot.press("enter")
        await until(pilot, lambda: "broken link" in text(app))
        assert "/img/golden.qcow2" in line_with(app, "file ")
        assert "Could not open '/img/golden.qcow2': No such file or directory" in line_with(app, "error")
        assert "of #block317" in line_with(app, "link ")


async def test_a_long_reason_leaves_room_for_the_name_of_the_file() -> None:
    graph = busy_graph()
    link = next(item for item in graph["edges"] if "error" in item)
    link |= {"filename": "/img/golden.qcow2", "error": "the reason is long " * 8}
    async with shown(FakeBackend(graph)) as (app, _, _):
        app.graph.go_to(next(number for number, row in enumerate(app.graph.rows) if row.kind == "broken"))
        assert "✗ golden.qcow2  the reason" in line_with(app, "the reason")


async def test_long_values_are_wrapped() -> None:
    graph = busy_graph()
    graph["nodes"][0]["filename"] = "/srv/" + "very-long-folder-name/" * 8 + "disk.qcow2"
    async with shown(FakeBackend(graph)) as (app, pilot, _):
        await pilot.press("down", "enter")
        await until(pilot, lambda: "format" in text(app))
        page = text(app).split("format", 1)[0]
        assert page.count("very-long-folder-name") == 8
        assert "disk.qcow2" in page


async def test_a_job_and_the_nodes_it_holds() -> None:
    async with shown() as (app, pilot, _):
        await pilot.press("f3", "end", "enter")
        await until(pilot, lambda: "nodes it holds" in text(app))
        assert "● running" in line_with(app, "status")
        assert "main node         overlay2  ----   rwus" in text(app)
        assert "cancel, pause, set-speed" in line_with(app, "takes ")


# The jobs


def test_bars_are_filled_to_eighths_and_never_full_before_the_end(surroundings: None) -> None:
    from blockmon.themes import find_theme
    from blockmon.tui.look import Look
    from blockmon.tui.symbols import ASCII, UNICODE

    theme, _ = find_theme("dark")

    def bar(fraction: float, symbols: object = UNICODE) -> str:
        line = Line(Look(theme, symbols), 10)  # type: ignore[arg-type]
        return "".join(segment.text for segment in draw_bar(line, fraction, 10).finish())

    assert bar(0) == "░" * 10
    assert bar(1) == "█" * 10
    assert bar(0.5) == "█████░░░░░"
    assert bar(0.5625) == "█████▋░░░░"
    assert bar(0.999) == "█████████▉"
    assert bar(0.55, ASCII) == "#####....."


async def test_a_job_says_how_far_it_is_and_how_long_it_takes() -> None:
    backend = FakeBackend(busy_graph(), [block_job("stream0", "stream", "running", 10 * GIB, 20 * GIB)])
    async with shown(backend) as (app, pilot, _):
        await pilot.press("f3")
        for _ in range(4):
            backend.now += 1
            backend.jobs[0]["offset"] += 512 * MIB
            await go_on(pilot)
        row = line_with(app, "stream0")
        for word in ("● stream0", "running", "60%", "512M/s", "16s", "███"):
            assert word in row


async def test_an_error_stands_in_the_jobs_row() -> None:
    async with shown() as (app, pilot, _):
        await pilot.press("f3")
        await until(pilot, lambda: "✗ commit1" in text(app))
        assert "No space left on device" in line_with(app, "commit1")


# The events


def deleted(first: int, last: int) -> list[dict[str, object]]:
    return [event("BLOCK_EXPORT_DELETED", number, id=f"job{number}") for number in range(first, last)]


async def test_the_newest_event_is_at_the_top() -> None:
    async with shown() as (app, pilot, backend):
        await pilot.press("f4")
        backend.emit(*deleted(0, 3))
        await until(pilot, lambda: "job2" in text(app))
        rows = [line for line in lines(app) if "BLOCK_EXPORT_DELETED" in line]
        assert rows[0].split() == ["22:13:22.000", "BLOCK_EXPORT_DELETED", "job2"]
        assert rows[2].endswith("job0")


async def test_what_is_looked_at_stays_where_it_is() -> None:
    async with shown() as (app, pilot, backend):
        await pilot.press("f4")
        backend.emit(*deleted(0, 50))
        await until(pilot, lambda: "job49" in text(app))
        await pilot.press("down", "down")
        before = [line for line in lines(app) if "BLOCK_EXPORT_DELETED" in line]
        backend.emit(*deleted(50, 70))
        await until(pilot, lambda: app.state.events.end == 70)
        await pilot.pause()
        assert [line for line in lines(app) if "BLOCK_EXPORT_DELETED" in line] == before
        assert app.log_pane.newer == 20
        await pilot.press("home")
        await until(pilot, lambda: "job69" in text(app))
        assert not app.log_pane.paused


async def test_the_title_counts_what_came_meanwhile() -> None:
    async with shown(size=(140, 40)) as (app, pilot, backend):
        backend.emit(*deleted(0, 5))
        await until(pilot, lambda: "job4" in text(app))
        await pilot.press("f4", "space")
        await until(pilot, lambda: "held" in text(app))
        backend.emit(*deleted(5, 8))
        await until(pilot, lambda: "held, 3 newer" in text(app))
        assert "job7" not in text(app)


async def test_events_are_filtered() -> None:
    async with shown() as (app, pilot, backend):
        backend.emit(*deleted(0, 30))
        await pilot.press("f4", "slash", *"JOB17", "enter")
        await until(pilot, lambda: "job17" in text(app) and "job18" not in text(app))
        backend.emit(*deleted(170, 172))
        await until(pilot, lambda: "job171" in text(app))


async def test_an_event_as_it_was_on_the_wire() -> None:
    async with shown() as (app, pilot, backend):
        backend.emit(event("BLOCK_JOB_ERROR", 1, device="j", operation="read", action="stop"))
        await pilot.press("f4", "enter")
        await until(pilot, lambda: '"operation": "read"' in text(app))
        assert "BLOCK_JOB_ERROR" in text(app)


async def test_a_flood_of_events_leaves_the_screen_usable() -> None:
    async with shown() as (app, pilot, backend):
        await pilot.press("f4")
        for number in range(0, 120_000, 1000):
            backend.emit(*deleted(number, number + 1000))
        await until(pilot, lambda: "job119999" in text(app))
        assert len(app.state.events) == 100_000
        await pilot.press("end")
        await until(pilot, lambda: "job20000" in text(app))
