"""The prompt: a session that knows QMP and HMP (`ReplSession`), alone on a terminal (`run`) or inside the TUI."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blockmon.options import CommonOptions


def run(options: CommonOptions) -> int:
    """Run `blockmon repl`; returns the exit status: 0 after quit or Ctrl+D. Where standard input is no terminal, its
    lines are run one after another, and the status is 1 when one of them failed.

    Raises StartupError when there is nothing to run on.
    """
    from blockmon.repl.standalone import main

    return main(options)
