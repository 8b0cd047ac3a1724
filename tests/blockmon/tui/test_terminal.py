"""What goes to the terminal: nothing when nothing changes, little when little does, no colour where none is wanted."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from textual._compositor import CompositorUpdate
from textual.screen import Screen

from blockmon.themes import SIXTEEN_COLOURS_THEME
from blockmon.tui.app import BlockmonApp
from tests.blockmon.tui.fake import MIB
from tests.blockmon.tui.screens import go_on, shown, until

ROOT = Path(__file__).resolve().parents[3]

SCREEN = """
import asyncio, sys
sys.path.insert(0, {root!r})
from blockmon.tui import main  # sets what Textual reads when it is imported
from tests.blockmon.tui.fake import FakeBackend, busy_graph
from blockmon.options import CommonOptions
main.open_backend = lambda options: FakeBackend(busy_graph())
sys.exit(main.main(CommonOptions()))
"""


class Terminal:
    """A program on a pseudo-terminal, and all that it has written."""

    def __init__(self, pid: int, fd: int) -> None:
        self.pid, self.fd = pid, fd
        self.output = b""

    def read(self, seconds: float) -> int:
        """Read for that long; how many bytes came."""
        before = len(self.output)
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([self.fd], [], [], left)[0]:
                try:
                    self.output += os.read(self.fd, 65536)
                except OSError:
                    break
        return len(self.output) - before

    def read_until(self, words: bytes) -> None:
        """Read until *words* have come."""
        end = time.monotonic() + 20
        while words not in self.output:
            assert time.monotonic() < end, self.output[-500:]
            self.read(0.05)

    def read_until_quiet(self) -> None:
        """Read until nothing has come for half a second."""
        end = time.monotonic() + 20
        while self.read(0.5):
            assert time.monotonic() < end

    def send(self, keys: bytes) -> None:
        """Type."""
        os.write(self.fd, keys)

    def wait(self) -> int:
        """Read to the end; the exit status."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            self.read(0.05)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
        raise AssertionError("it did not end")


@contextmanager
def terminal(tmp_path: Path, **environment: str) -> Iterator[Terminal]:
    """The screen on the fake server, on a pseudo-terminal of 80 by 24."""
    script = tmp_path / "screen.py"
    script.write_text(SCREEN.format(root=str(ROOT)))
    pid, fd = pty.fork()
    if not pid:
        os.environ.update({"XDG_STATE_HOME": str(tmp_path), **environment})
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        os.execv(sys.executable, [sys.executable, str(script)])
    screen = Terminal(pid, fd)
    try:
        yield screen
    finally:
        if screen.pid:
            os.kill(screen.pid, signal.SIGKILL)
            os.waitpid(screen.pid, 0)
        os.close(fd)


def test_an_idle_screen_sends_nothing_and_control_q_ends_it(tmp_path: Path) -> None:
    with terminal(tmp_path) as screen:
        screen.read_until(b"(qmp)")
        screen.read_until_quiet()
        # Long enough for the server to be asked again several times.
        assert screen.read(2.5) == 0
        screen.send(b"\x11")
        assert screen.wait() == 0


def test_with_the_focus_in_the_prompt_it_is_idle_too(tmp_path: Path) -> None:
    with terminal(tmp_path) as screen:
        screen.read_until(b"(qmp)")
        screen.send(b"\x1b[15~")
        screen.read_until_quiet()
        assert screen.read(1.5) == 0


def test_sigterm_puts_the_terminal_right(tmp_path: Path) -> None:
    with terminal(tmp_path) as screen:
        screen.read_until(b"(qmp)")
        os.kill(screen.pid, signal.SIGTERM)
        assert screen.wait() == 128 + signal.SIGTERM
        assert b"\x1b[?1049l" in screen.output
        assert b"\x1b[?25h" in screen.output


def test_no_color_means_no_colour(tmp_path: Path) -> None:
    with terminal(tmp_path, NO_COLOR="1") as screen:
        screen.read_until(b"(qmp)")
        screen.read_until_quiet()
        screen.send(b"\x11")
        screen.wait()
        codes = {code for sgr in re.findall(rb"\x1b\[([0-9;]*)m", screen.output) for code in sgr.split(b";")}
        # Bold, italic, underlined, reversed, and the default colours.
        assert codes <= {b"", b"0", b"1", b"3", b"4", b"7", b"39", b"49"}
        assert b"7" in codes


def test_sixteen_colours_are_the_terminals_own(tmp_path: Path) -> None:
    with terminal(tmp_path, TERM="xterm", COLORTERM="") as screen:
        screen.read_until(b"(qmp)")
        screen.read_until_quiet()
        screen.send(b"\x11")
        screen.wait()
        codes = {code for sgr in re.findall(rb"\x1b\[([0-9;]*)m", screen.output) for code in sgr.split(b";")}
        assert not codes & {b"38", b"48"}
        assert b"36" in codes


def listen(app: BlockmonApp) -> list[str]:
    """What is sent to the terminal from now on."""
    sent: list[str] = []

    def display(screen: Screen[Any], update: CompositorUpdate | None) -> None:
        if update is not None:
            sent.append(update.render_segments(app.console))

    app._display = display  # type: ignore[method-assign, assignment]
    return sent


@pytest.mark.parametrize("theme", ["dark", SIXTEEN_COLOURS_THEME])
async def test_one_changed_row_sends_one_row(theme: str) -> None:
    async with shown(size=(140, 40), theme=theme) as (app, pilot, backend):
        sent = listen(app)
        backend.graph["nodes"][0]["allocated"] += 100 * MIB
        backend.change_graph()
        await until(pilot, lambda: "1.3G" in "".join(sent))
        output = "".join(sent)
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)
        assert "overlay2" in plain
        assert "overlay1-file" not in plain
        assert cell_len(plain) < 400  # the row, the inspector's line, the event
        assert len(output) < 2500


async def test_nothing_new_is_nothing_sent() -> None:
    async with shown(size=(140, 40)) as (app, pilot, backend):
        sent = listen(app)
        for _ in range(5):
            backend.now += 1
            await go_on(pilot)
        assert sent == []
