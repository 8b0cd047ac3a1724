"""`blockmon run --tui`: a script runs on the screen, is held, stepped through, aborted."""

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from blockmon.backend import open_backend
from blockmon.options import CommonOptions
from blockmon.repl.session import ReplSession
from blockmon.tui.script_app import ScriptApp
from tests.blockmon.tui.screens import line_with, lines, text, until, unwrapped, widest
from tests.tmux import Tmux


class Show:
    """The screen with a script, and what it ended with."""

    def __init__(self, app: ScriptApp, pilot: Pilot[Any]) -> None:
        self.app = app
        self.pilot = pilot

    async def until(self, words: str) -> None:
        await until(self.pilot, lambda: words in text(self.app))

    async def nodes(self) -> list[str]:
        return sorted(node["node-name"] for node in await self.app.backend.execute("query-named-block-nodes"))


@asynccontextmanager
async def running(
    folder: Path, script: str, *, step: bool = False, size: tuple[int, int] = (80, 24)
) -> AsyncIterator[Show]:
    path = folder / "script.bmon"
    path.write_text(script)
    options = CommonOptions(theme="dark")
    options.run.step = step
    backend = open_backend(options)
    session = ReplSession(backend, show_events=False)
    app = ScriptApp(backend, session, options, scripts=[str(path)])
    try:
        async with app.run_test(size=size) as pilot:
            yield Show(app, pilot)
    finally:
        await app.finish(0)
        await session.close()
        await backend.close()


ADD = "blockdev-add driver=null-co node-name={}\n"


@pytest.mark.parametrize("size", [(80, 24), (140, 40), (100, 30)])
async def test_a_script_runs_and_the_screen_stays(tmp_path: Path, size: tuple[int, int]) -> None:
    async with running(
        tmp_path, f"# first\n{ADD.format('a0')}frobnicate\n@error CommandNotFound /./\n", size=size
    ) as show:
        await show.until("ended")
        await show.until("# first")
        await show.until("→ a0")
        printed = "".join(show.app.session.printed)
        assert f"2> {ADD.format('a0')}{{}}\n3> frobnicate\nCommandNotFound: " in printed
        assert "exit status 0" in text(show.app)
        assert widest(show.app) <= size[0]
        assert show.app.script.has_focus


async def test_steps_pauses_and_what_is_left_out(tmp_path: Path) -> None:
    script = "".join(ADD.format(name) for name in ("a0", "a1", "a2", "a3", "a4"))
    async with running(tmp_path, script, step=True) as show:
        press = show.pilot.press
        await show.until("paused before line 1")
        assert await show.nodes() == []
        await press("s")
        await show.until("paused before line 2")
        assert "▶2" in line_with(show.app, "node-name=a1")
        await press("o")
        await show.until("paused before line 3")
        assert await show.nodes() == ["a0"]
        await press("space")
        await show.until("ended well")
        assert await show.nodes() == ["a0", "a2", "a3", "a4"]
        assert await show.app.finish(0) == 0


async def test_it_is_aborted_while_it_waits_and_what_is_deferred_runs(tmp_path: Path) -> None:
    script = f"@defer {ADD.format('last')}@wait-event STOP timeout=1h\n{ADD.format('never')}"
    async with running(tmp_path, script) as show:
        await show.until("line 2 of 3")
        await show.pilot.press("x")
        await show.until("aborted")
        assert await show.nodes() == ["last"]
        assert await show.app.finish(0) == 130


async def test_what_failed_is_marked_and_told_behind_the_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running(tmp_path, f"{ADD.format('a0')}blockdev-del node-name=none\n{ADD.format('a1')}") as show:
        await show.until("─ failed ─")
        assert line_with(show.app, "2 blockdev-del").startswith("✗")
        told = unwrapped("Failed to find node with node-name='none'")
        await until(show.pilot, lambda: told in unwrapped(text(show.app)))
        assert await show.nodes() == ["a0"]
        assert await show.app.finish(0) == 1
    assert "script.bmon:2:1: blockdev-del: GenericError: Failed to find node" in capsys.readouterr().err


async def test_leaving_before_the_end_asks(tmp_path: Path) -> None:
    async with running(tmp_path, "@wait-event STOP timeout=1h\n") as show:
        await show.until("line 1 of 1")
        await show.pilot.press("ctrl+q")
        await until(show.pilot, lambda: len(show.app.screen_stack) > 1)
        await show.pilot.press("escape")
        await until(show.pilot, lambda: len(show.app.screen_stack) == 1)
        assert show.app.is_running


async def test_looking_around_does_not_take_the_line_away_for_good(tmp_path: Path) -> None:
    script = "# a long beginning\n" * 60 + "@wait-event STOP timeout=1h\n"
    async with running(tmp_path, script) as show:
        await show.until("61 @wait-event")
        await show.pilot.press("home")
        await show.until(" 1 # a long")
        await show.pilot.press("f")
        await show.until("61 @wait-event")


async def test_help_and_the_keys_of_the_screen(tmp_path: Path) -> None:
    async with running(tmp_path, "@wait-event STOP timeout=1h\n") as show:
        await show.until("line 1 of 1")
        await show.pilot.press("f5")
        await until(show.pilot, lambda: show.app.prompt.has_focus)
        await show.pilot.press("f10")
        await until(show.pilot, lambda: show.app.script.has_focus)
        assert "Space pause/go on" in lines(show.app)[-1]


def test_a_terminal(tmux: Callable[..., Tmux], tmp_path: Path) -> None:
    script = tmp_path / "script.bmon"
    script.write_text(f"{ADD.format('a0')}blockdev-del node-name=a0\n@echo all done\n")
    terminal = tmux([sys.executable, "-m", "blockmon", "run", "--tui", str(script)])
    terminal.wait_for("ended well")
    terminal.send("C-q")
    assert terminal.exit_status() == 0
