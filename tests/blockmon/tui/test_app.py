"""The screen as its user sees it: layouts, keys, the start and the end."""

import asyncio
import json
import re

import pytest
from textual.events import Key

from blockmon.backend import CommandError
from blockmon.options import CommonOptions, StartupError
from blockmon.repl.session import ReplSession
from blockmon.tui.actions import node_choices
from blockmon.tui.app import BlockmonApp
from tests.blockmon.tui.fake import FakeBackend, block_job, busy_graph, event, node
from tests.blockmon.tui.screens import (
    go_on,
    line_with,
    lines,
    make_app,
    popup_text,
    settled,
    shown,
    text,
    until,
    widest,
)


async def test_at_80_by_24_the_tree_can_be_read_and_the_prompt_seen() -> None:
    async with shown() as (app, _, _):
        overlay = line_with(app, "root → overlay2")
        for word in ("qcow2", "● stream0", "rw", "1.2G", "20G"):
            assert word in overlay
        assert "base.raw" in line_with(app, "file → base-file")
        assert "(qmp)" in text(app)
        assert "13 nodes" in lines(app)[0]
        assert "3 jobs" in lines(app)[0]
        assert "1 broken" in lines(app)[0]
        assert widest(app) <= 80


async def test_when_wide_all_panes_stand_side_by_side() -> None:
    async with shown(size=(140, 40)) as (app, _, _):
        for title in ("─ Graph ─", "┬─ vda · virtio-blk ─", "─ Jobs ─", "┼─ Events ─", "─ REPL ─"):
            assert title in text(app)
        assert "No such file or directory" in line_with(app, "golden.qcow2")
        assert "4 layers: overlay2 → overlay1 → snap → base" in text(app)
        # The rules meet.
        columns = {line.index(mark) for line in lines(app) for mark in "┬┼┴" if mark in line}
        assert len(columns) == 1


@pytest.mark.parametrize(
    ("key", "expected"),
    [("f2", "snap.qcow2"), ("f3", "No space left on device"), ("f4", "No events yet"), ("f6", "1 Overview")],
)
async def test_when_narrow_panes_are_tabs(key: str, expected: str) -> None:
    async with shown() as (app, pilot, _):
        await pilot.press("f3" if key == "f2" else "f2", key)
        await pilot.pause()
        assert expected in text(app)
        assert ("snap.qcow2" in text(app)) == (key == "f2")
        assert "(qmp)" in text(app)


async def test_typing_goes_to_the_prompt_only_when_it_has_the_focus() -> None:
    async with shown() as (app, pilot, _):
        await pilot.press("q", "f5", *"query-version")
        await until(pilot, lambda: "(qmp) query-version" in text(app))
        await pilot.press("f2", "down")
        assert app.prompt.text == "query-version"
        assert app.graph.cursor == 1


async def test_keys_typed_ahead_go_where_the_one_before_leads() -> None:
    async with shown() as (app, pilot, _):
        await pilot.press("f4")
        for key, character in (("f2", None), ("down", None), ("enter", "\r")):
            app.post_message(Key(key, character))
        await until(pilot, lambda: app.focused is app.inspector)
        await until(pilot, lambda: "overlay2 · qcow2 · rw" in text(app))
        for key in ("f2", "f5", *"system"):
            app.post_message(Key(key, key if len(key) == 1 else None))
        await until(pilot, lambda: app.prompt.text == "system")


async def test_keys_typed_right_after_a_choice_go_where_it_leads() -> None:
    async with shown() as (app, pilot, _):
        await pilot.press("f2", "down")
        for key, character in (("enter", "\r"), ("2", "2")):
            app.post_message(Key(key, character))
        await until(pilot, lambda: app.focused is app.inspector and app.inspector.section == "Permissions")
        await pilot.press("f3", "down", "down", "down")
        for key in "px":
            app.post_message(Key(key, key))
        await until(pilot, lambda: app.prompt.text == "job-pause id=stream0x")


async def test_the_prompt_has_more_room_while_one_types() -> None:
    async with shown() as (app, pilot, _):
        before = app.prompt.size.height
        await pilot.press("f5")
        await until(pilot, lambda: app.prompt.size.height > before)
        await pilot.press("f2")
        await until(pilot, lambda: app.prompt.size.height == before)


async def test_resizing_keeps_place_and_focus() -> None:
    async with shown(size=(140, 40)) as (app, pilot, _):
        await pilot.press("f3", "down")
        await pilot.resize_terminal(80, 24)
        await until(pilot, lambda: "F3 Jobs 3" in text(app))
        assert app.focused is app.jobs
        assert app.jobs.cursor == 1
        assert widest(app) <= 80
        await pilot.resize_terminal(140, 40)
        await until(pilot, lambda: "─ Graph ─" in text(app))
        assert app.focused is app.jobs


async def test_zoom_gives_all_the_room_and_takes_it_back() -> None:
    async with shown(size=(140, 40)) as (app, pilot, _):
        await pilot.press("z")
        await until(pilot, lambda: "(qmp)" not in text(app) and "Jobs" not in text(app))
        assert app.graph.size == (140, 38)
        await pilot.press("f3")
        await until(pilot, lambda: "─ Jobs ─" in text(app) and "Graph" not in text(app))
        await pilot.press("escape")
        await until(pilot, lambda: "─ Graph ─" in text(app) and "(qmp)" in text(app))


async def test_the_prompt_zooms_too() -> None:
    async with shown() as (app, pilot, _):
        await pilot.press("f5", "f8")
        await until(pilot, lambda: app.prompt.size.height == 21)
        await pilot.press("f8")
        await until(pilot, lambda: "root → overlay2" in text(app))


async def test_the_footer_has_the_keys_that_work() -> None:
    async with shown() as (app, pilot, _):
        await pilot.press("f4")
        await until(pilot, lambda: " a actions" not in lines(app)[-1])  # No command takes an event.
        await pilot.press("f2", "down")
        await until(pilot, lambda: " a actions" in lines(app)[-1])
        await pilot.press("f3")
        await until(pilot, lambda: "f finalize" in lines(app)[-1])
        assert "c cancel" in lines(app)[-1]
        assert "pause" not in lines(app)[-1]
        await pilot.press("down")
        await until(pilot, lambda: "d dismiss" in lines(app)[-1])
        await pilot.press("f5")
        await until(pilot, lambda: "d dismiss" not in lines(app)[-1])
        # Where letters are typed as text, the F-keys that do the same are told.
        assert lines(app)[-1].split()[:4] == ["F1", "help", "F8", "zoom"]
        assert lines(app)[-1].endswith("^Q quit")
        assert "F5 REPL" in line_with(app, "REPL")


async def test_the_footer_keeps_the_panes_own_keys_where_there_is_little_room() -> None:
    async with shown() as (app, pilot, _):
        await pilot.press("down")
        await until(pilot, lambda: "z zoom" in lines(app)[-1])
        for words in ("F1 help", "Enter inspect", "Space fold", "/ filter", "a actions", ": commands", "^Q quit"):
            assert words in lines(app)[-1]
        await pilot.press("z")
        await until(pilot, lambda: "Esc back" in lines(app)[-1])
        for words in ("F1 help", "Enter inspect", "Space fold", "/ filter", "^Q quit"):
            assert words in lines(app)[-1]
        await pilot.press("escape", "f4", "z")
        backend = app.backend
        assert isinstance(backend, FakeBackend)
        backend.emit(event("BLOCK_JOB_ERROR", 3.75, device="commit1", operation="write", action="report"))
        await until(pilot, lambda: "o jump" in lines(app)[-1])
        for words in ("Enter inspect", "Space pause", "/ filter", "s search", "y copy", "^Q quit"):
            assert words in lines(app)[-1]


async def test_while_a_text_is_typed_the_footer_offers_no_keys_that_would_be_text() -> None:
    async with shown() as (app, pilot, backend):
        backend.emit(event("BLOCK_JOB_ERROR", 3.75, device="commit1", operation="write", action="report"))
        for pane, key in (("f2", "slash"), ("f4", "slash"), ("f4", "s"), ("f4", "w")):
            await pilot.press(pane)
            await until(pilot, lambda: "Enter inspect" in lines(app)[-1])
            await pilot.press(key)
            await until(pilot, lambda: "Enter inspect" not in lines(app)[-1])
            assert "z zoom" not in lines(app)[-1]
            assert "F1 help" in lines(app)[-1]
            await pilot.press("escape")
            await until(pilot, lambda: "Enter inspect" in lines(app)[-1])


async def test_help_is_made_from_the_bindings() -> None:
    async with shown(size=(140, 100)) as (app, pilot, _):
        await pilot.press("f1")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        await until(pilot, lambda: "Everywhere" in popup_text(app))
        page = popup_text(app)
        for binding in [*app.BINDINGS, *app.graph.BINDINGS, *app.jobs.BINDINGS]:
            assert binding.description in page  # type: ignore[union-attr]
        assert re.search(r"Ctrl\+R +searches the history", page)
        await pilot.press("escape")
        await until(pilot, lambda: len(app.screen_stack) == 1)
        assert app.focused is app.graph


async def test_a_key_on_a_node_writes_the_command_and_runs_nothing() -> None:
    async with shown() as (app, pilot, backend):
        backend.executed.clear()
        await pilot.press("down", "s")
        await until(pilot, lambda: app.prompt.text)
        assert app.prompt.text == "block-stream job-id=stream1 device=overlay2"
        assert app.focused is app.prompt
        assert "block-stream" not in backend.executed


async def test_committing_a_middle_layer_names_it_and_the_active_one() -> None:
    async with shown() as (app, pilot, _):
        await pilot.press("down", "down", "down", "c")
        await until(pilot, lambda: len(app.screen_stack) == 2)  # It asks, for the base is written to.
        await pilot.press("e")
        await until(pilot, lambda: app.prompt.text)
        assert app.prompt.text == "block-commit job-id=commit0 device=overlay2 top-node=overlay1 base-node=snap"


async def test_an_overlay_is_offered_only_where_someone_uses_the_node() -> None:
    async with shown() as (app, _, _):
        offered = {
            name: {choice.key: choice.command for choice in node_choices(app.state, name)}
            for name in ("overlay2", "overlay1", "overlay2-file", "scratch")
        }
    assert offered["overlay2"]["n"].startswith("blockdev-snapshot-sync node-name=overlay2 ")
    # Backing nodes and what a format lies in are held by their parent; a node that nobody uses would lose its overlay.
    assert all("n" not in offered[name] for name in ("overlay1", "overlay2-file", "scratch"))
    assert "r" in offered["scratch"]
    assert "r" not in offered["overlay2-file"]


async def test_what_the_server_cannot_do_is_not_offered() -> None:
    backend = FakeBackend(busy_graph())
    backend.commands.remove("block-stream")
    async with shown(backend) as (app, pilot, _):
        await pilot.press("down", "s")
        await pilot.press("a")
        await until(pilot, lambda: "commit:" in popup_text(app))
        assert "stream: copy" not in popup_text(app)
        assert app.prompt.text == ""


async def test_the_menu_of_actions() -> None:
    async with shown() as (app, pilot, _):
        await pilot.press("down", "a")
        await until(pilot, lambda: "block-stream job-id=stream1 device=overlay2" in popup_text(app))
        await pilot.press("down")
        await until(pilot, lambda: "block-commit job-id=commit0 device=overlay2 base-node=overlay1" in popup_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: "Run this?" in popup_text(app))
        await pilot.press("e")
        await until(pilot, lambda: app.prompt.text.startswith("block-commit"))
        await pilot.press("f2", "a")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        await pilot.press("r")
        await until(pilot, lambda: app.prompt.text == "block_resize node-name=overlay2 size=21474836480")


async def test_keys_on_jobs_follow_their_status() -> None:
    async with shown() as (app, pilot, _):
        await pilot.press("f3", "p")
        await pilot.pause()
        assert app.prompt.text == ""  # A pending job cannot be paused.
        await pilot.press("f")
        await until(pilot, lambda: app.prompt.text == "job-finalize id=backup7")
        await pilot.press("f3", "down", "down", "o")
        await until(pilot, lambda: app.prompt.text == "job-complete id=mirror0")
        await pilot.press("f3", "c")
        await until(pilot, lambda: app.prompt.text == "block-job-cancel device=mirror0")
        await pilot.press("f3", "down", "p")
        await until(pilot, lambda: app.prompt.text == "job-pause id=stream0")


async def test_a_finished_job_stays_until_it_is_put_away() -> None:
    backend = FakeBackend(busy_graph(), [block_job("stream0", "stream", "running", 1, 2)])
    async with shown(backend) as (app, pilot, _):
        await pilot.press("f3")
        backend.jobs.clear()
        backend.emit(event("BLOCK_JOB_COMPLETED", device="stream0", type="stream", len=2, offset=2, speed=0))
        await until(pilot, lambda: "completed" in line_with(app, "stream0"))
        assert "100%" in line_with(app, "stream0")
        await pilot.press("x")
        await until(pilot, lambda: "No jobs." in text(app))


async def test_copying_goes_by_the_terminal_and_says_so() -> None:
    async with shown() as (app, pilot, backend):
        copied: list[str] = []
        app.copy_to_clipboard = copied.append  # type: ignore[method-assign]
        await pilot.press("down", "y")
        await until(pilot, lambda: "copied overlay2" in lines(app)[0])
        await pilot.press("enter", "6")
        await until(pilot, lambda: '"node-name"' in text(app))
        await pilot.press("y", "f4")
        backend.emit(event("BLOCK_EXPORT_DELETED", 1, id="exp0"))
        await until(pilot, lambda: "exp0" in text(app))
        await pilot.press("y")
        await until(pilot, lambda: len(copied) == 3)
        assert copied[0] == "overlay2"
        assert json.loads(copied[1])["drv"] == "qcow2"
        assert json.loads(copied[2])["data"] == {"id": "exp0"}


async def test_the_first_frame_does_not_wait_for_the_backend() -> None:
    backend = FakeBackend(busy_graph())
    gate = asyncio.Event()
    start = backend.start

    async def held() -> None:
        await gate.wait()
        await start()

    backend.start = held  # type: ignore[method-assign]
    app = make_app(backend)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "F2 Graph" in text(app) and "starting" in text(app))
        assert not backend.started
        gate.set()
        await settled(pilot)
    await app.session.close()


async def test_control_q_ends_with_status_0() -> None:
    async with shown(FakeBackend()) as (app, pilot, _):
        await pilot.press("f5", *"query-", "ctrl+q")
        await until(pilot, lambda: not app.is_running)
        assert app.return_value == 0


@pytest.mark.parametrize("error", [StartupError("/img/x.qcow2", "no such file"), CommandError("GenericError", "no")])
async def test_a_backend_that_does_not_start_ends_the_screen(error: Exception) -> None:
    backend = FakeBackend()

    async def fail() -> None:
        raise error

    backend.start = fail  # type: ignore[method-assign]
    app = make_app(backend)
    async with app.run_test() as pilot:
        await until(pilot, lambda: not app.is_running)
    assert app.return_value == 1
    assert app.start_error is error


async def test_an_empty_graph_says_how_to_begin() -> None:
    async with shown(FakeBackend()) as (app, _, _):
        assert "No block nodes yet." in text(app)
        assert "blockmon IMAGE" in text(app)


async def test_a_server_without_the_graph_query_says_so() -> None:
    backend = FakeBackend(busy_graph(), [block_job("j", "stream", "running", 1, 2)])
    for command in ("x-blockmon-query-graph", "query-named-block-nodes"):
        backend.commands.remove(command)
    app = make_app(backend)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "No graph: this server has no command that tells its block graph" in text(app))
    await app.session.close()


async def test_a_lost_connection_is_told() -> None:
    async with shown() as (app, pilot, backend):

        async def fail(command: str, arguments: object = None) -> object:
            raise ConnectionResetError("connection reset by peer")

        backend.execute = fail  # type: ignore[method-assign, assignment]
        backend.change_graph()
        await until(pilot, lambda: "connection lost: connection reset by peer" in lines(app)[0])


async def test_names_cannot_drive_the_terminal() -> None:
    graph = busy_graph()
    graph["nodes"].append(node("evil", "raw", "/img/\x1b]0;owned\x07[red]\u202ename.raw", 512))
    async with shown(FakeBackend(graph), size=(140, 60)) as (app, pilot, _):
        await pilot.press("end")
        await until(pilot, lambda: "\\x1b]0;owned\\x07[red]\\u202ename.raw" in text(app))
        assert "\x1b" not in text(app)
        assert "\u202e" not in text(app)


async def test_themes_change_while_it_runs() -> None:
    async with shown() as (app, pilot, _):
        before = text(app)
        await pilot.press("f7")
        await until(pilot, lambda: app.look.theme.name == "high-contrast")
        app.use_theme_called("ansi16")
        await pilot.pause()
        assert text(app) == before
        strips = app.screen_stack[0]._compositor.render_strips()
        colours = {segment.style.color for strip in strips for segment in strip if segment.style is not None}
        assert all(colour is None or colour.triplet is None for colour in colours)
        await pilot.press("f7", "f7")
        await until(pilot, lambda: app.look.theme.name == "dark")


async def test_without_utf8_there_are_no_other_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    backend = FakeBackend(busy_graph(), [block_job("j", "stream", "running", 1, 3)])
    async with shown(backend, size=(140, 40)) as (app, pilot, _):
        backend.count_io("overlay2", read=10**6)
        backend.now += 1
        await go_on(pilot)
        await pilot.press("down")
        await pilot.pause()
        assert text(app).isascii()
        assert "`-v root -> overlay2" in text(app)


async def test_a_theme_that_cannot_be_read_is_told(tmp_path: object) -> None:
    from blockmon.themes import theme_directories

    folder = theme_directories()[-1]
    folder.mkdir(parents=True)
    (folder / "mine.toml").write_text("[textual]\n")
    async with shown(size=(140, 40)) as (app, _, _):
        assert "theme mine: table [state] is missing" in lines(app)[0]


async def test_an_unknown_theme_is_refused() -> None:
    from blockmon.themes import ThemeError

    backend = FakeBackend()
    with pytest.raises(ThemeError, match=r"there is no theme 'pink'.*ansi16, colour-blind, dark"):
        BlockmonApp(backend, ReplSession(backend), CommonOptions(theme="pink"))
