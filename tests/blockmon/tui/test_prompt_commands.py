"""The prompt's own commands, pipes and the configuration on the screen."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockmon.config import load_config
from blockmon.options import CommonOptions
from blockmon.repl.session import ReplSession
from blockmon.repl.settings import settings_of
from blockmon.tui.app import BlockmonApp
from blockmon.tui.help import help_sections
from tests.blockmon.tui.fake import FakeBackend
from tests.blockmon.tui.screens import lines, text, until, unwrapped
from tests.blockmon.tui.test_prompt_pane import Screen, screen

__all__ = ["screen"]


async def test_watch_shows_the_changing_answer_in_its_place(screen: Screen) -> None:
    numbers = iter(range(1, 10_000))
    screen.server.answers["query-version"] = lambda: {"number": next(numbers)}
    await screen.type("\\watch 100ms query-version")
    await screen.pilot.press("enter")
    await screen.until(lambda: screen.server.commands.count("query-version") > 3 and '"number": 4}' in screen.text)
    assert '"number": 1}' not in screen.text
    assert "Ctrl+C or Enter ends it" in screen.text
    await screen.pilot.press("enter")
    await screen.until(lambda: "Ctrl+C or Enter ends it" not in screen.text)
    count = screen.server.commands.count("query-version")
    await screen.run("query-jobs")
    assert screen.server.commands.count("query-version") == count


async def test_a_pipe_shows_its_output_and_ctrl_c_ends_it(screen: Screen) -> None:
    await screen.run("info block | tr a-z A-Z")
    await screen.until(lambda: "VDA: /IMG/O2.QCOW2" in screen.text)
    await screen.type("info block | echo begun; sleep 1000")
    await screen.pilot.press("enter")
    await screen.until(lambda: "begun" in screen.rows)
    await screen.pilot.press("ctrl+c")
    await screen.until(lambda: "stopped" in screen.rows)
    await screen.run("query-version")


async def test_vi_keys_at_run_time(screen: Screen) -> None:
    await screen.type("\\vi")
    await screen.pilot.press("enter")
    await screen.until(lambda: "vi keys" in screen.text)
    await screen.type("query")
    await screen.pilot.press("escape", "0", "i", "X")
    await screen.until(lambda: screen.pane.text == "Xquery")


async def test_errors_are_shown_at_their_place(screen: Screen) -> None:
    await screen.type('{"execute": "query-jobs", "arguments": {]}')
    await screen.pilot.press("enter")
    await screen.until(lambda: "expected '}', found ']'" in screen.text)
    assert screen.pane.buffer.cursor_position == len('{"execute": "query-jobs", "arguments": {')


CONFIG = """
theme = "light"
[prompt]
text = "block> "
keys = "vi"
[screen]
panes = ["graph", "events"]
wide = 90
tall = 20
prompt-rows = 9
[keys]
"pane.events" = "ctrl+g"
"pane.nix" = "f2"
"zoom" = "hyperspace"
"""


@pytest.fixture
def configured(tmp_path: Path) -> BlockmonApp:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    config = load_config(path)
    backend = FakeBackend()
    session = ReplSession(backend, settings=settings_of(config), show_events=False)
    return BlockmonApp(backend, session, CommonOptions(theme=config.theme), config=config)


async def test_the_screen_takes_its_configuration(configured: BlockmonApp) -> None:
    app = configured
    async with app.run_test(size=(100, 24)) as pilot:
        await until(pilot, lambda: "No block nodes yet" in text(app))
        shown = lines(app)
        assert any("Graph" in line and "Events" in line for line in shown), "90 columns are enough for both"
        assert not any("Jobs ─" in line or "Inspector" in line for line in shown)
        assert app.repl.size.height == 9
        assert "block>" in text(app)
        assert "F3" not in shown[-1]
        assert "config.toml:13: keys.pane.nix: nothing on the screen" in shown[0]
        await until(pilot, lambda: "config.toml:14:keys.zoom:" in unwrapped(text(app)))
        assert app.session.settings["keys"] == "vi"
        await pilot.press("f5", *"que", "ctrl+g")
        await until(pilot, lambda: app.log_pane.has_focus)
        assert app.prompt.text == "que"
        helped = dict(help_sections(app.look, app.BINDINGS, "graph", app.keymap))
        assert ("^G", "events") in helped["Everywhere"]
    assert [problem.split(": ")[1] for problem in app.config.problems] == ["keys.pane.nix", "keys.zoom"]


async def test_a_theme_is_taken_by_command(configured: BlockmonApp) -> None:
    app = configured
    async with app.run_test(size=(100, 24)) as pilot:
        await until(pilot, lambda: "No block nodes yet" in text(app))
        app.write_command("\\theme mono")
        await pilot.press("enter")
        await until(pilot, lambda: app.look.theme.name == "mono")
        app.write_command("\\theme nonesuch")
        await pilot.press("enter")
        await until(pilot, lambda: "there is no theme 'nonesuch'" in text(app))
