"""The screen. Nothing of Textual is imported before it is run."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blockmon.options import CommonOptions


def run(options: CommonOptions) -> int:
    """
    Show the screen until the user leaves; the exit status.

    Errors: StartupError (an option or an image is at fault); the terminal is as before by then.
    """
    from blockmon.tui.main import main

    return main(options)
