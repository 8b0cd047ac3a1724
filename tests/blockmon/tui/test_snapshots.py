"""
Pictures of the screen: every pane in three sizes, every theme, everything that opens over the screen.

Look at what changed before running pytest with --snapshot-update.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from textual.pilot import Pilot

from blockmon.tui.app import BlockmonApp
from tests.blockmon.tui.screens import busy_backend, make_app, popup_text, settled, twelve_busy_seconds, until

SIZES = {"40x10": (40, 10), "80x24": (80, 24), "140x40": (140, 40)}
PANES = {"graph": "f2", "jobs": "f3", "events": "f4", "inspector": "f6"}
THEMES = ("ansi16", "colour-blind", "high-contrast", "light", "mono")
"""The dark one is in all other pictures."""
POPUPS = {
    "help": (["f1"], "Esc close"),
    "actions": (["f2", "down", "a"], "overlay2"),
    "palette": (["f2", "colon"], "Esc"),
}


def after(keys: list[str], words: str = "") -> Callable[[Pilot[Any]], Awaitable[None]]:
    """Twelve busy seconds, then *keys*; the picture is taken when *words* are on the screen."""

    async def run(pilot: Pilot[Any]) -> None:
        await twelve_busy_seconds(pilot)
        await pilot.press(*keys)
        app = pilot.app
        assert isinstance(app, BlockmonApp)
        await until(pilot, lambda: words in popup_text(app))
        await settled(pilot)

    return run


@pytest.mark.parametrize("size", SIZES)
def test_the_screen(snap_compare: Callable[..., bool], size: str) -> None:
    assert snap_compare(make_app(busy_backend()), terminal_size=SIZES[size], run_before=after(["down"]))


@pytest.mark.parametrize("theme", THEMES)
def test_a_theme(snap_compare: Callable[..., bool], theme: str) -> None:
    app = make_app(busy_backend(), theme)
    assert snap_compare(app, terminal_size=(112, 26), run_before=after(["down"]))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pane", PANES)
def test_a_pane(snap_compare: Callable[..., bool], size: str, pane: str) -> None:
    # On the large screen each has all the room: side by side they are in the picture of the screen.
    keys = ["f2", "down", "enter"] if pane == "inspector" else [PANES[pane], "down"]
    zoom = ["z"] if size == "140x40" else []
    assert snap_compare(make_app(busy_backend()), terminal_size=SIZES[size], run_before=after([*keys, *zoom]))


@pytest.mark.parametrize("size", SIZES)
def test_the_prompt(snap_compare: Callable[..., bool], size: str) -> None:
    run = after(["f5", *"\\"], "\\")

    async def when_the_menu_is_open(pilot: Pilot[Any]) -> None:
        await run(pilot)
        app = pilot.app
        assert isinstance(app, BlockmonApp)
        await until(pilot, lambda: app.prompt.buffer.complete_state)

    assert snap_compare(make_app(busy_backend()), terminal_size=SIZES[size], run_before=when_the_menu_is_open)


@pytest.mark.parametrize("popup", POPUPS)
def test_what_opens_over_the_screen(snap_compare: Callable[..., bool], popup: str) -> None:
    keys, words = POPUPS[popup]
    assert snap_compare(make_app(busy_backend()), terminal_size=SIZES["80x24"], run_before=after(keys, words))
