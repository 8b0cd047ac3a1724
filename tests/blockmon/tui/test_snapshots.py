"""Pictures of the screen. Look at what changed before running pytest with --snapshot-update."""

from collections.abc import Callable

import pytest

from tests.blockmon.tui.screens import busy_backend, make_app, twelve_busy_seconds

SIZES = {"80x24": (80, 24), "140x40": (140, 40)}


@pytest.mark.parametrize("theme", ["dark", "ansi16"])
@pytest.mark.parametrize("size", SIZES)
def test_the_screen(snap_compare: Callable[..., bool], size: str, theme: str) -> None:
    app = make_app(busy_backend(), theme)
    assert snap_compare(app, press=["down"], terminal_size=SIZES[size], run_before=twelve_busy_seconds)


def test_the_inspector_alone(snap_compare: Callable[..., bool]) -> None:
    app = make_app(busy_backend())
    assert snap_compare(app, press=["down", "enter"], run_before=twelve_busy_seconds)
