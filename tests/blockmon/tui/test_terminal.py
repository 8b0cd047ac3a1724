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
import sys
sys.path.insert(0, {root!r})
from blockmon.tui import main  # sets what Textual reads when it is imported
from tests.blockmon.tui.fake import FakeBackend, busy_graph
from tests.blockmon.tui.screens import FloodedBackend
from blockmon.options import CommonOptions
main.open_backend = lambda options: {backend}(busy_graph())
sys.exit(main.main(CommonOptions(**{options!r})))
"""
SGR = re.compile(rb"\x1b\[([0-9;]*)m")


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

    def read_until(self, words: bytes, piece: float = 0.05) -> None:
        """Read until *words* have come."""
        end = time.monotonic() + 20
        while words not in self.output:
            assert time.monotonic() < end, self.output[-500:]
            self.read(piece)

    def read_until_quiet(self, seconds: float = 0.5) -> None:
        """Read until nothing has come for so long."""
        end = time.monotonic() + 20
        while self.read(seconds):
            assert time.monotonic() < end

    def send(self, keys: bytes) -> None:
        """Type."""
        os.write(self.fd, keys)

    def quit(self) -> None:
        """Ctrl+Q, and again for the question that comes while jobs are under way."""
        self.send(b"\x11\x11")

    def resize(self, columns: int, rows: int) -> None:
        """Make the terminal another size."""
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def hang_up(self) -> None:
        """Close the terminal."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def wait(self, reading: bool = True) -> int:
        """The exit status, at the end; what is written is read meanwhile, or not."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            if self.fd >= 0 and reading:
                self.read(0.05)
            else:
                time.sleep(0.01)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
        raise AssertionError("it did not end")


@contextmanager
def terminal(
    tmp_path: Path, backend: str = "FakeBackend", options: dict[str, Any] | None = None, **environment: str
) -> Iterator[Terminal]:
    """The screen on the fake server, on a pseudo-terminal of 80 by 24."""
    script = tmp_path / "screen.py"
    script.write_text(SCREEN.format(root=str(ROOT), backend=backend, options=options or {}))
    with running([sys.executable, str(script)], XDG_STATE_HOME=str(tmp_path), **environment) as screen:
        yield screen


@contextmanager
def running(command: list[str], **environment: str) -> Iterator[Terminal]:
    """A program on a pseudo-terminal of 80 by 24."""
    pid, fd = pty.fork()
    if not pid:
        os.environ.update(environment)
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        os.execvp(command[0], command)
    screen = Terminal(pid, fd)
    try:
        yield screen
    finally:
        if screen.pid:
            os.kill(screen.pid, signal.SIGKILL)
            os.waitpid(screen.pid, 0)
        screen.hang_up()


def test_an_idle_screen_sends_nothing_and_control_q_ends_it(tmp_path: Path) -> None:
    with terminal(tmp_path) as screen:
        screen.read_until(b"(qmp)")
        # Long enough for the server to be asked again several times. What has just come is marked for a moment before.
        screen.read_until_quiet(2.5)
        screen.quit()
        assert screen.wait() == 0


def test_with_the_focus_in_the_prompt_it_is_idle_too(tmp_path: Path) -> None:
    with terminal(tmp_path) as screen:
        screen.read_until(b"(qmp)")
        screen.send(b"\x1b[15~")
        screen.read_until_quiet(2.5)


def test_sigterm_puts_the_terminal_right(tmp_path: Path) -> None:
    with terminal(tmp_path) as screen:
        screen.read_until(b"(qmp)")
        os.kill(screen.pid, signal.SIGTERM)
        assert screen.wait() == 128 + signal.SIGTERM
        assert b"\x1b[?1049l" in screen.output
        assert b"\x1b[?25h" in screen.output


def colours_of(output: bytes) -> set[bytes]:
    """The codes of colours and attributes that were sent."""
    return {code for sgr in SGR.findall(output) for code in sgr.split(b";")}


ATTRIBUTES_ONLY = {b"", b"0", b"1", b"3", b"4", b"7", b"22", b"23", b"24", b"27"}


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "vt220")])
def test_no_color_means_no_colour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with terminal(tmp_path) as screen:
        screen.read_until(b"(qmp)")
        screen.read_until_quiet()
        screen.send(b"a\x1b[15~block\x1b\x1b")
        screen.read_until_quiet()
        screen.quit()
        screen.wait()
        codes = colours_of(screen.output)
        assert codes <= ATTRIBUTES_ONLY
        assert b"7" in codes


def test_a_theme_that_is_asked_for_has_its_colours_whatever_no_color_says(tmp_path: Path) -> None:
    with terminal(tmp_path, options={"theme": "ansi16"}, NO_COLOR="1") as screen:
        screen.read_until(b"(qmp)")
        screen.read_until_quiet()
        assert b"36" in colours_of(screen.output)


def test_sixteen_colours_are_the_terminals_own(tmp_path: Path) -> None:
    with terminal(tmp_path, TERM="linux", COLORTERM="") as screen:
        screen.read_until(b"(qmp)")
        screen.read_until_quiet()
        screen.quit()
        screen.wait()
        codes = colours_of(screen.output)
        assert not codes & {b"38", b"48"}
        assert b"36" in codes


@pytest.mark.parametrize("term", ["dumb", "unknown", ""])
def test_a_terminal_without_a_cursor_is_one_clear_error(term: str) -> None:
    command = [sys.executable, "-c", "import sys; from blockmon.cli import main; sys.exit(main(['demo']))"]
    with running(command, TERM=term, PYTHONPATH=str(ROOT)) as screen:
        assert screen.wait() == 1
        assert screen.output.startswith(b"blockmon: terminal")
        assert b"repl" in screen.output
        assert screen.output.count(b"\n") == 1
        assert b"\x1b" not in screen.output


@pytest.mark.parametrize(("arguments", "value"), [((), "1"), (("--theme", "mono"), "")], ids=["NO_COLOR", "mono"])
def test_the_prompt_alone_sends_no_colour_either(tmp_path: Path, arguments: tuple[str, ...], value: str) -> None:
    command = [sys.executable, "-m", "blockmon", "repl", *arguments]
    with running(command, PYTHONPATH=str(ROOT), XDG_STATE_HOME=str(tmp_path), NO_COLOR=value) as screen:
        screen.read_until(b"(qmp)")
        screen.send(b"\x1b[2;1R")  # where the cursor is, which the prompt has asked
        screen.read_until_quiet()  # the schema is known by then
        screen.send(b"query-name")
        screen.read_until(b"block-nodes")  # in the menu
        screen.send(b"\x15nonsense\r")
        screen.read_until(b"unknown command")
        screen.read_until_quiet()
        assert colours_of(screen.output) <= ATTRIBUTES_ONLY
        screen.hang_up()
        assert screen.wait() == 128 + signal.SIGHUP


# Less for a slow line.


def test_a_flood_of_events_sends_little_with_low_bandwidth_and_keys_come_at_once(tmp_path: Path) -> None:
    with terminal(tmp_path, "FloodedBackend", {"low_bandwidth": True}, TERM="xterm-256color") as screen:
        screen.read_until(b"(qmp)")
        screen.send(b"\x1bOS")  # the events
        screen.read(2)
        # The log moves all the time, and so do the rates; without a limit that is tens of kilobytes a second.
        assert 0 < screen.read(4) < 4 * 2000
        screen.send(b"\x1b[15~")
        screen.read(0.5)
        waited = []
        for key in b"QWXZQWXZ":
            started = time.monotonic()
            screen.output = b""
            screen.send(bytes([key]))
            screen.read_until(bytes([key]), piece=0.002)
            waited.append(time.monotonic() - started)
        assert sorted(waited)[4] < 0.2  # without waiting for the budget
        screen.quit()
        assert screen.wait() == 0


def test_low_bandwidth_is_silent_when_nothing_happens(tmp_path: Path) -> None:
    with terminal(tmp_path, options={"low_bandwidth": True}) as screen:
        screen.read_until(b"(qmp)")
        screen.read_until_quiet(2.5)
        assert b"\x1b[?1003h" not in screen.output  # a mouse would be told of by every move


# The end of a terminal, and its pauses.


def test_a_lost_terminal_ends_the_program(tmp_path: Path) -> None:
    with terminal(tmp_path) as screen:
        screen.read_until(b"(qmp)")
        screen.hang_up()
        assert screen.wait() == 128 + signal.SIGHUP


def test_a_lost_terminal_is_noticed_without_sighup(tmp_path: Path) -> None:
    script = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    program = tmp_path / "screen.py"
    text = SCREEN.format(root=str(ROOT), backend="FakeBackend", options={})
    program.write_text(text.replace("sys.exit", "main._ENDING_SIGNALS = ()\nsys.exit"))
    with running([sys.executable, "-c", script, sys.executable, str(program)], XDG_STATE_HOME=str(tmp_path)) as screen:
        screen.read_until(b"(qmp)")
        screen.hang_up()
        assert screen.wait() == 128 + signal.SIGHUP


def test_a_terminal_that_takes_nothing_holds_nothing_up(tmp_path: Path) -> None:
    log = tmp_path / "events"
    log.touch()
    with terminal(tmp_path, "FloodedBackend", BLOCKMON_TEST_LOG=str(log)) as screen:
        screen.read_until(b"(qmp)")
        screen.send(b"\x1bOS")
        before = log.stat().st_size
        end = time.monotonic() + 20
        # Nobody reads, so the terminal's buffer is full soon; the server goes on.
        while log.stat().st_size < before + 4000:
            assert time.monotonic() < end
            time.sleep(0.05)
        os.kill(screen.pid, signal.SIGTERM)
        assert screen.wait(reading=False) == 128 + signal.SIGTERM


def test_control_z_gives_the_terminal_back_and_fg_paints_all_anew(tmp_path: Path) -> None:
    with terminal(tmp_path) as screen:
        screen.read_until(b"(qmp)")
        screen.read_until_quiet()
        screen.output = b""
        screen.send(b"\x1a")
        screen.read_until(b"\x1b[?1049l")
        while not os.WIFSTOPPED(os.waitpid(screen.pid, os.WUNTRACED)[1]):
            pass
        assert termios.tcgetattr(screen.fd)[3] & termios.ICANON
        screen.output = b""
        os.kill(screen.pid, signal.SIGCONT)
        screen.read_until(b"(qmp)")
        screen.read_until(b"overlay2")
        assert not termios.tcgetattr(screen.fd)[3] & termios.ICANON
        screen.quit()
        assert screen.wait() == 0


def test_it_survives_every_size(tmp_path: Path) -> None:
    with terminal(tmp_path) as screen:
        screen.read_until(b"(qmp)")
        for columns, rows in ((40, 10), (20, 5), (5, 2), (1, 1), (200, 60)):
            screen.resize(columns, rows)
            screen.read(0.3)
            for key in (b"\x1bOR", b"\x1bOS", b"\x1b[15~", b"\x1b[17~", b"\x1bOQ", b"\x1bOP", b"\x1b"):
                screen.send(key)
                screen.read(0.05)
        screen.read_until_quiet()
        screen.output = b""
        screen.resize(80, 24)
        screen.read_until(b"overlay2")
        screen.read_until(b"(qmp)")
        screen.quit()
        assert screen.wait() == 0


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
