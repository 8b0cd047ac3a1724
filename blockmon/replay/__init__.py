"""Command files: the lines of a monitor session, replayed without a screen."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blockmon.options import CommonOptions


def run(options: "CommonOptions", scripts: list[str]) -> int:
    """Replay *scripts* ("-" is standard input) one after the other on one backend; returns the exit status.

    The status is one of `blockmon.exitcodes.ExitStatus`. What goes wrong is told on stderr as FILE:LINE:COLUMN: TEXT;
    the first failure ends the run unless it is told to keep going. Raises StartupError when there is nothing to run
    on.
    """
    from blockmon.replay.program import main

    return main(options, scripts)
