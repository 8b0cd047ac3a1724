"""`blockmon repl` as a user starts it: in a terminal, and fed by a pipe, on the embedded engine."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from blockmon.options import CommonOptions, StartupError
from blockmon.repl.standalone import main
from tests.tmux import Tmux

REPL = [sys.executable, "-m", "blockmon", "repl"]


def test_in_a_terminal(tmux: Callable[..., Tmux], tmp_path: Path) -> None:
    state = {"XDG_STATE_HOME": str(tmp_path)}
    terminal = tmux(REPL, env=state)
    terminal.wait_for("(qmp)")
    terminal.type("query-version")
    terminal.send("Enter")
    terminal.wait_for('"package": "blockmon"')
    terminal.type("blockdev-add driver=null-co node-name=n0 size=1M")
    terminal.send("Enter")
    terminal.wait_for("{}\n(qmp)")
    terminal.type("blockdev-del node-name=n")
    terminal.wait_for(re.compile("n0 +null-co 1M rw"))
    screen = terminal.wait_for("blockdev-del node-name: node")
    assert "(qmp) blockdev-del node-name=n" in screen
    terminal.send("Tab", "Enter")
    terminal.wait_for("node-name=n0\n{}\n(qmp)")
    terminal.type("quit")
    terminal.send("Enter")
    assert terminal.exit_status() == 0
    again = tmux(REPL, env=state)
    again.wait_for("(qmp)")
    again.send("Up", "Up")
    again.wait_for("(qmp) blockdev-del node-name=n0")
    again.send("C-c", "C-d")
    assert again.exit_status() == 0


def test_a_terminal_that_hangs_up_ends_it_in_order(tmux: Callable[..., Tmux], tmp_path: Path) -> None:
    terminal = tmux(REPL, env={"XDG_STATE_HOME": str(tmp_path)})
    terminal.wait_for("(qmp)")
    os.kill(int(terminal._tmux("display-message", "-t", "t", "-p", "#{pane_pid}")), signal.SIGHUP)
    assert terminal.exit_status() == 128 + signal.SIGHUP


def test_fed_by_a_pipe() -> None:
    text = 'query-version\n{"execute":\n "query-jobs"}\nblockdev-del node-name=nope\nquit\n'
    done = subprocess.run(REPL, input=text, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stdout.splitlines()[0].startswith('{"qemu": {"major": 7')
    assert done.stdout.splitlines()[1:] == ["[]", "{}"]
    assert done.stderr == "blockmon: line 4: GenericError: Failed to find node with node-name='nope'\n"


def test_a_theme_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    with pytest.raises(StartupError, match="--theme: there is no theme 'nope'"):
        main(CommonOptions(theme="nope"))
