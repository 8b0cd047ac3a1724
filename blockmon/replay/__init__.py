"""Command files: the lines of a monitor session, replayed without a screen."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blockmon.options import CommonOptions


def run(options: "CommonOptions", scripts: list[str]) -> int:
    """Replay *scripts* ("-" is standard input) one after the other on one backend; returns the exit status.

    0: everything succeeded. 1: a command or a wait failed. 2: a script could not be parsed. The first error ends it and
    is told on stderr as FILE:LINE: TEXT. Raises StartupError when there is nothing to run on.
    """
    from blockmon.replay.program import main

    return main(options, scripts)
