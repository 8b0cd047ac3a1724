"""What the screen does for one, in a real terminal: the demo's jobs, its palette, and leaving while it works."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.tmux import Tmux

pytestmark = [pytest.mark.interop, pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")]


def test_the_demo_by_keys_alone(tmp_path: Path) -> None:
    terminal = Tmux(
        [sys.executable, "-m", "blockmon", "demo"], columns=80, rows=24, env={"XDG_STATE_HOME": str(tmp_path)}
    )
    try:
        terminal.wait_for("flatten", 30)
        # The palette pauses the throttled job by the action on it.
        terminal.send("F3")
        terminal.wait_for("pause")
        terminal.send("End", ":")
        terminal.wait_for("Commands and views")
        terminal.type("job-pau")
        terminal.wait_for("job-pause")
        terminal.send("Enter")
        terminal.wait_for("(qmp) job-pause")
        terminal.send("C-u")
        terminal.type("job-pause id=flatten")
        terminal.send("Enter")
        terminal.wait_for("(qmp) job-pause id=flatten")
        # From an event to the job that it tells of, and its verbs.
        terminal.send("F4")
        terminal.wait_for("JOB_STATUS_CHANGE")
        terminal.send("/")
        terminal.type("job:merge")
        terminal.send("Enter")
        terminal.wait_for("/job:merge")
        terminal.send("o")
        terminal.wait_for("o complete")
        terminal.send("a")
        terminal.wait_for("K  cancel by force")
        terminal.send("K")
        terminal.wait_for("what it has done is thrown away")
        terminal.press_until("Enter", "(qmp) job-cancel id=merge")
        terminal.send("F3")
        terminal.wait_for("cancelled")
        # Leaving asks, and does not leave unless it is told twice.
        terminal.send("C-q")
        terminal.wait_for("1 job under way: flatten")
        terminal.send("Escape")
        terminal.wait_gone("Quit?")
        terminal.send("C-q")
        terminal.wait_for("Quit?")
        terminal.send("C-q")
        assert terminal.exit_status() == 0
    finally:
        terminal.close()
