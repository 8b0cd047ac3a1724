"""The event log: filters, search, holding still, going to what an event is about, saving, copying."""

import json
from pathlib import Path
from typing import Any

from textual.events import Key, Paste
from textual.pilot import Pilot

from blockmon.tui.app import BlockmonApp
from blockmon.tui.events_pane import COPIED_AT_ONCE
from blockmon.tui.subject import NodeSubject
from tests.blockmon.tui.fake import event
from tests.blockmon.tui.screens import line_with, lines, shown, text, until


def numbered(first: int, last: int, name: str = "BLOCK_EXPORT_DELETED") -> list[dict[str, Any]]:
    return [event(name, number / 1000, id=f"exp{number}") for number in range(first, last)]


def listed(app: BlockmonApp) -> list[str]:
    """The ids of the events in the pane's rows."""
    pane = app.log_pane
    last = min(pane.count(), pane.top + pane.visible_rows)
    return [str(pane.event_at(index).data.get("id")) for index in range(pane.top, last)]


async def paste(pilot: Pilot[Any], words: str) -> None:
    """Paste into the focused pane."""
    assert pilot.app.focused is not None
    pilot.app.focused.post_message(Paste(words))
    await pilot.pause()


async def test_a_filter_takes_several_words_and_members() -> None:
    async with shown() as (app, pilot, backend):
        backend.emit(
            event("JOB_STATUS_CHANGE", 1, id="stream0", status="running"),
            event("JOB_STATUS_CHANGE", 2, id="stream00", status="paused"),
            event("BLOCK_IO_ERROR", 3, device="", node_name="overlay2", operation="write", action="report"),
        )
        await pilot.press("f4", "slash", *"job:stream0")
        await until(pilot, lambda: app.log_pane.count() == 1)
        assert "running" in text(app)
        await pilot.press("ctrl+u", *"node:overlay2 event:io_err !read")
        await until(pilot, lambda: app.log_pane.count() == 1)
        assert "BLOCK_IO_ERROR" in text(app)
        await pilot.press("ctrl+u", *"!status")
        await until(pilot, lambda: app.log_pane.count() == 1)


async def test_only_the_events_of_this_job() -> None:
    async with shown() as (app, pilot, backend):
        backend.emit(*numbered(0, 5), event("JOB_STATUS_CHANGE", 1, id="stream0", status="running"))
        await until(pilot, lambda: app.state.events.end == 6)
        await pilot.press("f4", "f")
        await until(pilot, lambda: app.log_pane.count() == 1)
        assert "/job:stream0" in text(app)
        await pilot.press("escape")
        await until(pilot, lambda: app.log_pane.count() == 6)


async def test_search_goes_from_match_to_match() -> None:
    async with shown() as (app, pilot, backend):
        backend.emit(*numbered(0, 400), event("RESUME", 1), *numbered(400, 800))
        await until(pilot, lambda: app.state.events.end == 801)
        await pilot.press("f4", "s", *"exp39")
        await until(
            pilot, lambda: app.log_pane.subject() and app.log_pane.event_at(app.log_pane.cursor).data["id"] == "exp399"
        )
        await pilot.press("enter", "n")
        pane = app.log_pane
        await until(pilot, lambda: pane.event_at(pane.cursor).data["id"] == "exp398")
        await pilot.press("N")
        await until(pilot, lambda: pane.event_at(pane.cursor).data["id"] == "exp399")
        await pilot.press("N")
        await until(pilot, lambda: "none further up" in lines(app)[0])
        # A filter leaves out what a search only passes over.
        assert pane.count() == 801


async def test_a_search_without_a_match_says_so_and_can_be_left() -> None:
    async with shown() as (app, pilot, backend):
        backend.emit(*numbered(0, 30))
        await until(pilot, lambda: app.state.events.end == 30)
        await pilot.press("f4", "s", *"nothing like it")
        await until(pilot, lambda: "none further down" in text(app))
        await pilot.press("escape")
        await until(pilot, lambda: "search" not in line_with(app, "nothing like it"))
        # Letters are keys again.
        await pilot.press("z")
        await until(pilot, lambda: "F2 Graph" not in text(app))


async def test_what_is_held_outlives_the_ring() -> None:
    async with shown() as (app, pilot, backend):
        backend.emit(*numbered(0, 50))
        await pilot.press("f4")
        await until(pilot, lambda: "exp49" in text(app))
        await pilot.press("down", "down")
        before = listed(app)
        for first in range(50, 150_050, 10_000):
            backend.emit(*numbered(first, first + 10_000))
        await until(pilot, lambda: app.state.events.end == 150_050)
        await until(pilot, lambda: app.log_pane.newer == 100_000)
        assert listed(app) == before
        assert app.state.events.first == 50_050
        await pilot.press("enter")
        await until(pilot, lambda: '"id": "exp47"' in text(app))
        await pilot.press("f4", "space")
        await until(pilot, lambda: "exp150049" in text(app))


async def test_from_an_event_to_its_job_and_its_node() -> None:
    async with shown() as (app, pilot, backend):
        backend.emit(
            event("BLOCK_IO_ERROR", 3, device="", node_name="snap-file", operation="write", action="report"),
            event("JOB_STATUS_CHANGE", 1, id="stream0", status="running"),
        )
        app.graph.folded.add("overlay2")
        app.graph.action_fold_all()
        await until(pilot, lambda: app.state.events.end == 2)
        await pilot.press("f4", "o")
        await until(pilot, lambda: app.focused is app.jobs)
        assert app.jobs.job is not None
        assert app.jobs.job.id == "stream0"
        await pilot.press("f4", "down", "o")
        await until(pilot, lambda: app.focused is app.graph)
        # It was folded away.
        assert isinstance(app.graph.subject(), NodeSubject)
        assert app.graph.subject().name == "snap-file"  # type: ignore[union-attr]


async def test_keys_typed_right_after_a_jump_go_where_it_leads() -> None:
    async with shown() as (app, pilot, backend):
        backend.emit(event("JOB_STATUS_CHANGE", 1, id="stream0", status="running"))
        await until(pilot, lambda: app.state.events.end == 1)
        await pilot.press("f4")
        for key in ("o", "up"):
            app.post_message(Key(key, key if len(key) == 1 else None))
        await until(pilot, lambda: app.focused is app.jobs and app.jobs.job is not None)
        assert app.jobs.job is not None
        assert app.jobs.job.id != "stream0"
        assert not app.log_pane.paused


async def test_an_event_of_what_is_gone_says_so() -> None:
    async with shown() as (app, pilot, backend):
        backend.emit(event("JOB_STATUS_CHANGE", 1, id="old", status="null"), event("RESUME", 2))
        await until(pilot, lambda: app.state.events.end == 2)
        await pilot.press("f4")
        await until(pilot, lambda: "RESUME" in text(app))
        assert not app.log_pane.check_action("jump", ())  # It tells of nothing.
        await pilot.press("down", "o")
        await until(pilot, lambda: "old is not there any more" in lines(app)[0])


async def test_saving_asks_for_a_name_and_overwrites_only_when_told(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    async with shown() as (app, pilot, backend):
        backend.emit(*numbered(0, 12))
        await until(pilot, lambda: app.state.events.end == 12)
        await pilot.press("f4", "slash", *"exp1", "enter", "w", "ctrl+u")
        await paste(pilot, str(path))
        await pilot.press("enter")
        await until(pilot, lambda: "3 events written" in lines(app)[0])
        assert [json.loads(line)["data"]["id"] for line in path.read_text().splitlines()] == ["exp1", "exp10", "exp11"]
        path.write_text("precious\n")
        await pilot.press("w", "ctrl+u")
        await paste(pilot, str(path))
        await pilot.press("enter")
        await until(pilot, lambda: "it exists: Enter overwrites it" in text(app))
        assert path.read_text() == "precious\n"
        await pilot.press("enter")
        await until(pilot, lambda: path.read_text() != "precious\n")
        await pilot.press("w", "ctrl+u")
        await paste(pilot, str(tmp_path / "no" / "log"))
        await pilot.press("enter")
        await until(pilot, lambda: "No such file or directory" in text(app))
        await pilot.press("escape")
        await until(pilot, lambda: "save to" not in text(app))


async def test_copying_all_is_bounded() -> None:
    async with shown() as (app, pilot, backend):
        copied: list[str] = []
        app.copy_to_clipboard = copied.append  # type: ignore[method-assign]
        backend.emit(*numbered(0, 3))
        await until(pilot, lambda: app.state.events.end == 3)
        await pilot.press("f4", "Y")
        await until(pilot, lambda: "copied 3 events" in lines(app)[0])
        assert [json.loads(line)["data"]["id"] for line in copied[0].splitlines()] == ["exp0", "exp1", "exp2"]
        backend.emit(*numbered(3, 5000))
        await until(pilot, lambda: app.state.events.end == 5000)
        await pilot.press("Y")
        await until(pilot, lambda: "of 5000 events" in lines(app)[0])
        assert len(copied[1].encode()) <= COPIED_AT_ONCE
        assert json.loads(copied[1].splitlines()[-1])["data"]["id"] == "exp4999"


async def test_a_filter_over_a_full_log_lets_keys_through() -> None:
    async with shown() as (app, pilot, backend):
        for first in range(0, 100_000, 10_000):
            backend.emit(*numbered(first, first + 10_000))
        await until(pilot, lambda: app.state.events.end == 100_000)
        await pilot.press("f4", "slash", "x")
        # The newest are there at once, the others follow.
        assert app.log_pane.count() > 0
        await pilot.press(*"p7777")
        await until(pilot, lambda: not app.log_pane.view.behind)
        assert app.log_pane.count() == 11
