"""The prompt inside Textual: a small application around the pane, keys and pastes as a terminal gives them."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from prompt_toolkit.application import get_app
from rich.segment import Segment
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.pilot import Pilot
from textual.strip import Strip

from blockmon.repl.session import ReplSession
from blockmon.themes import find_theme
from blockmon.tui.prompt_cells import difference
from blockmon.tui.prompt_keys import key_sequence
from blockmon.tui.prompt_pane import PromptPane
from tests.blockmon.repl.fakes import Server, event


class PaneApp(App[None]):
    """Nothing but a pane."""

    BINDINGS = (Binding("f2", "note('f2')", "graph"), Binding("ctrl+q", "note('quit')", "quit", priority=True))

    def __init__(self, server: Server, theme: str = "dark") -> None:
        super().__init__()
        self.server = server
        self.session = ReplSession(server)
        self.file, _ = find_theme(theme)
        self.pane = PromptPane(self.session, prompt_table=self.file.prompt, syntax_table=self.file.syntax)
        self.notes: list[str] = []
        self.messages: list[object] = []

    def compose(self) -> ComposeResult:
        yield self.pane

    async def on_mount(self) -> None:
        await self.session.start()
        self.pane.focus()

    async def on_unmount(self) -> None:
        await self.session.close()

    def action_note(self, text: str) -> None:
        self.notes.append(text)

    def on_prompt_pane_quit(self, message: PromptPane.Quit) -> None:
        self.messages.append(message)

    def on_prompt_pane_submitted(self, message: PromptPane.Submitted) -> None:
        self.messages.append(message)

    def on_prompt_pane_answered(self, message: PromptPane.Answered) -> None:
        self.messages.append(message)


class Screen:
    """The application under Pilot."""

    def __init__(self, app: PaneApp, pilot: Pilot[None]) -> None:
        self.app = app
        self.pane = app.pane
        self.server = app.server
        self.pilot = pilot

    @property
    def rows(self) -> list[str]:
        """What the terminal shows."""
        return [strip.text.rstrip() for strip in self.app.screen._compositor.render_strips()]

    @property
    def text(self) -> str:
        return "\n".join(self.rows)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until *holds*."""
        try:
            async with asyncio.timeout(10):
                while not holds():
                    await self.pilot.pause(0.005)
        except TimeoutError:
            raise AssertionError(f"waited in vain; the screen is:\n{self.text}") from None

    async def type(self, text: str) -> None:
        names = {" ": "space", "\n": "enter"}
        await self.pilot.press(*(names.get(char, char) for char in text))
        await self.until(lambda: "\n" in text or self.pane.text.endswith(text))

    async def run(self, text: str) -> None:
        """Put a command at the prompt, run it, and wait for its answer."""
        self.pane.set_input(text)
        count = sum(isinstance(m, PromptPane.Answered) for m in self.app.messages)
        await self.pilot.press("enter")
        await self.until(lambda: sum(isinstance(m, PromptPane.Answered) for m in self.app.messages) > count)


@asynccontextmanager
async def running(size: tuple[int, int] = (80, 12), theme: str = "dark", server: Server | None = None):  # type: ignore[no-untyped-def]
    app = PaneApp(server or Server(), theme)
    async with app.run_test(size=size) as pilot:
        await app.session.learned()
        screen = Screen(app, pilot)
        await screen.until(lambda: "(qmp)" in screen.text)
        app.server.calls.clear()
        yield screen


@pytest.fixture
async def screen() -> AsyncIterator[Screen]:
    async with running() as screen:
        yield screen


async def test_typing_completing_submitting_and_the_answer(screen: Screen) -> None:
    screen.server.answers["blockdev-del"] = {"gone": True}
    await screen.type("blockdev-del node-name=b")
    await screen.until(lambda: "raw 8G ro base.raw" in screen.text)
    assert screen.rows[-1].startswith("blockdev-del node-name: node")
    await screen.pilot.press("tab")
    await screen.until(lambda: screen.pane.text == "blockdev-del node-name=base")
    await screen.until(lambda: "raw 8G" not in screen.text)
    assert screen.server.calls == []
    await screen.pilot.press("enter")
    await screen.until(lambda: '{"gone": true}' in screen.text)
    assert screen.server.calls[0] == ("blockdev-del", {"node-name": "base"})
    assert screen.rows[:3] == ["(qmp) blockdev-del node-name=base", '{"gone": true}', "(qmp)"]
    submitted, answered = screen.app.messages
    assert isinstance(submitted, PromptPane.Submitted)
    assert submitted.text == "blockdev-del node-name=base"
    assert isinstance(answered, PromptPane.Answered)
    assert answered.succeeded


async def test_errors_are_shown(screen: Screen) -> None:
    await screen.run("blockdev-del node-name=x")
    await screen.until(lambda: "CommandNotFound: The command blockdev-del" in screen.text)
    assert not screen.app.messages[-1].succeeded  # type: ignore[attr-defined]


async def test_json_over_several_lines(screen: Screen) -> None:
    await screen.type('{"execute":')
    await screen.pilot.press("enter")
    await screen.until(lambda: screen.pane.text == '{"execute":\n  ')
    assert screen.server.calls == []
    await screen.type('"query-version"}')
    await screen.pilot.press("enter")
    await screen.until(lambda: '"package"' in screen.text)
    assert screen.rows[:2] == ['(qmp) {"execute":', '  ...   "query-version"}']


async def test_wrong_text_stays_and_the_cursor_goes_to_the_place(screen: Screen) -> None:
    screen.pane.set_input("block-stream device speed=1")
    await screen.pilot.press("enter")
    await screen.until(lambda: "expected key=value" in screen.text)
    assert screen.pane.text == "block-stream device speed=1"
    assert screen.pane.buffer.cursor_position == len("block-stream ")


async def test_set_input_is_ready_to_edit(screen: Screen) -> None:
    await screen.type("left over")
    screen.pane.set_input("block-commit device=overlay2")
    await screen.until(lambda: "(qmp) block-commit device=overlay2" in screen.text)
    assert screen.app.cursor_position == (len("(qmp) block-commit device=overlay2"), 0)
    await screen.pilot.press("backspace")
    await screen.until(lambda: screen.pane.text == "block-commit device=overlay")


async def test_history_and_reverse_search(screen: Screen) -> None:
    await screen.run("query-version")
    await screen.run("query-jobs")
    await screen.pilot.press("up", "up")
    await screen.until(lambda: screen.pane.text == "query-version")
    await screen.pilot.press("ctrl+c")
    await screen.until(lambda: screen.pane.text == "")
    await screen.pilot.press("ctrl+r", "j", "o", "b")
    await screen.until(lambda: "(reverse" in screen.text or "I-search" in screen.text)
    await screen.until(lambda: "query-jobs" in screen.rows[-4:][0] or "query-jobs" in screen.text)
    await screen.pilot.press("enter")
    await screen.until(lambda: screen.pane.text == "query-jobs")


async def test_emacs_keys_and_alt_keys(screen: Screen) -> None:
    await screen.type("one two three")
    await screen.pilot.press("alt+b", "alt+b", "ctrl+k")
    await screen.until(lambda: screen.pane.text == "one ")
    await screen.pilot.press("ctrl+a", "X")
    await screen.until(lambda: screen.pane.text == "Xone ")
    await screen.pilot.press("alt+enter", "y")
    await screen.until(lambda: screen.pane.text == "X\nyone ")


async def test_the_keys_of_the_application_are_left_to_it(screen: Screen) -> None:
    await screen.type("text")
    await screen.pilot.press("f2", "ctrl+q")
    await screen.until(lambda: screen.app.notes == ["f2", "quit"])
    assert screen.pane.text == "text"
    assert not screen.pane.check_consume_key("f2", None)
    assert not screen.pane.check_consume_key("ctrl+q", None)
    assert screen.pane.check_consume_key("tab", "\t")
    assert screen.pane.check_consume_key("x", "x")


async def test_ctrl_d_and_quit_ask_to_leave(screen: Screen) -> None:
    await screen.type("x")
    await screen.pilot.press("ctrl+d")
    assert screen.app.messages == []
    await screen.pilot.press("backspace", "ctrl+d")
    await screen.until(lambda: len(screen.app.messages) == 1)
    await screen.run("quit")
    assert sum(isinstance(m, PromptPane.Quit) for m in screen.app.messages) == 2


async def test_a_paste_of_200_kilobytes(screen: Screen) -> None:
    text = '{"execute": "query-version", "arguments": {"pad": "' + "x" * 200_000 + '"}}'
    screen.pane.post_message(events.Paste(text))
    await screen.until(lambda: len(screen.pane.text) == len(text))
    screen.server.answers["query-version"] = lambda pad: {"got": len(pad)}
    await screen.pilot.press("enter")
    await screen.until(lambda: '{"got": 200000}' in screen.text)
    assert f"({len(text)} characters)" in screen.pane.transcript.text()


async def test_a_paste_of_several_lines_waits_for_enter(screen: Screen) -> None:
    screen.pane.post_message(events.Paste("query-version\r\nquery-jobs\r\n"))
    await screen.until(lambda: screen.pane.text == "query-version\nquery-jobs\n")
    assert screen.server.calls == []
    await screen.pilot.press("enter")
    await screen.until(lambda: screen.server.commands == ["query-version", "query-jobs"])


async def test_resizing(screen: Screen) -> None:
    await screen.run("query-version")
    await screen.type("block-stream device=overlay2 speed=0")
    await screen.pilot.resize_terminal(30, 8)
    await screen.until(lambda: "(qmp) block-stream device=over" in screen.rows)
    assert screen.rows[screen.rows.index("(qmp) block-stream device=over") + 1] == "lay2 speed=0"
    assert screen.rows[1:3] == ['{"qemu": {"micro": 22, "minor"', ': 2, "major": 7}, "package": "']
    await screen.pilot.resize_terminal(100, 20)
    await screen.until(lambda: "(qmp) block-stream device=overlay2 speed=0" in screen.rows)
    assert len(screen.rows) == 20


async def test_a_pane_of_two_rows_still_works() -> None:
    async with running((40, 2)) as screen:
        await screen.run("query-version")
        await screen.type("query-jobs")
        await screen.until(lambda: screen.rows[-1] == "(qmp) query-jobs")


async def test_a_large_answer_scrolls(screen: Screen) -> None:
    screen.server.answers["query-jobs"] = [{"id": f"job{number}", "pad": "x" * 60} for number in range(3000)]
    await screen.run("query-jobs")
    await screen.until(lambda: "job2999" in screen.text)
    assert screen.rows[-2] == "(qmp)"
    await screen.pilot.press("pageup")
    await screen.until(lambda: "more rows below" in screen.rows[-1])
    before = screen.rows[:5]
    screen.server.emit(event("BLOCK_JOB_READY", device="m"))
    await screen.until(lambda: "10 more rows below" in screen.rows[-1])
    assert screen.rows[:5] == before
    await screen.pilot.press("pagedown", "pagedown")
    await screen.until(lambda: "BLOCK_JOB_READY" in screen.text and "more rows" not in screen.text)
    await screen.pilot.press("pageup", "x")
    await screen.until(lambda: "(qmp) x" in screen.text and "more rows" not in screen.text)


async def test_the_menu_covers_the_transcript_and_goes_again(screen: Screen) -> None:
    screen.server.answers["query-jobs"] = [{"id": f"job{number}", "pad": "x" * 50} for number in range(15)]
    screen.app.session.settings.set("json", "on")
    await screen.run("query-jobs")
    await screen.until(lambda: screen.rows[-2] == "(qmp)")
    under = screen.rows[:-2]
    await screen.type("blockdev-del node-name=")
    await screen.until(lambda: any("overlay2" in row for row in screen.rows[:-2]))
    covered = next(row for row in screen.rows if "raw 8G" in row)
    assert covered.startswith('  {"id": "job13", "pad": "xxx')
    assert covered.endswith('xxx"},')
    await screen.pilot.press("ctrl+c")
    await screen.until(lambda: screen.rows[:-2] == under)


async def test_an_idle_prompt_sends_nothing(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    await screen.type("query")
    await screen.until(lambda: screen.pane.buffer.complete_state is not None)
    renders = screen.pane.prompt_app.render_counter  # type: ignore[union-attr]
    for _ in range(3):  # what typing has left to do
        await screen.pilot.pause(0.1)
        renders = screen.pane.prompt_app.render_counter  # type: ignore[union-attr]
    drawn: list[object] = []
    monkeypatch.setattr(screen.pane, "refresh", lambda *regions, **_: drawn.append(regions))
    await screen.pilot.pause(0.6)
    assert drawn == []
    assert screen.pane.prompt_app.render_counter == renders  # type: ignore[union-attr]


async def test_a_keystroke_redraws_only_what_it_changes(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    await screen.run("query-version")
    await screen.type("zz")
    await screen.until(lambda: screen.rows[2] == "(qmp) zz")
    regions = []
    refresh = screen.pane.refresh
    monkeypatch.setattr(screen.pane, "refresh", lambda *r, **k: (regions.extend(r), refresh(*r, **k))[1])
    await screen.type("z")
    await screen.until(lambda: screen.rows[2] == "(qmp) zzz")
    assert {(region.y, region.height) for region in regions} == {(2, 1)}
    assert max(region.width for region in regions) <= len("zzz") + 1


async def test_the_theme_can_change(screen: Screen) -> None:
    def keyword() -> object:
        for segment in screen.pane.render_line(0):
            if segment.text == "query-version":
                return segment.style.color.name if segment.style and segment.style.color else None
        return None

    await screen.run("query-version")
    await screen.until(lambda: keyword() is not None)
    screen.pane.apply_theme({}, {"k": "ansibrightred"})
    await screen.until(lambda: keyword() == "bright_red")


@pytest.mark.parametrize("theme", ["dark", "ansi16"])
async def test_the_chosen_completion_is_told_without_colour(theme: str) -> None:
    async with running(theme=theme) as screen:
        await screen.type("blockdev-del node-name=over")
        await screen.until(lambda: "overlay2" in screen.text)
        await screen.pilot.press("tab", "tab")
        await screen.until(lambda: screen.pane.text.endswith(("overlay1", "overlay2")))
        chosen = screen.pane.text[-8:]
        segments = [s for y in range(1, 5) for s in screen.pane.render_line(y) if s.text.strip().startswith("overlay")]
        marked = {s.text.strip()[:8]: bool(s.style and (s.style.bold or s.style.reverse)) for s in segments}
        assert marked[chosen]
        assert not all(marked.values())


async def test_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    async with running() as screen:
        await screen.run("query-version")
        await screen.until(lambda: '"package"' in screen.text)


async def test_ctrl_c_stops_waiting(screen: Screen) -> None:
    screen.server.answers["query-jobs"] = asyncio.Event().wait
    screen.pane.set_input("query-jobs")
    await screen.pilot.press("enter")
    await screen.until(lambda: "waiting for the answer" in screen.text)
    await screen.pilot.press("ctrl+c")
    await screen.until(lambda: "stopped waiting" in screen.text)
    await screen.run("query-version")


async def test_textual_keeps_its_signal_handler() -> None:
    def handler(number: int, frame: object) -> None:
        pass

    before = signal.signal(signal.SIGWINCH, handler)
    try:
        async with running():
            assert signal.getsignal(signal.SIGWINCH) is handler
        assert signal.getsignal(signal.SIGWINCH) is handler
    finally:
        signal.signal(signal.SIGWINCH, before)


async def test_two_applications_one_after_the_other() -> None:
    for _ in range(2):
        async with running() as screen:
            await screen.run("query-version")
            await screen.until(lambda: '"package"' in screen.text)
    assert get_app().is_running is False


async def test_events_and_clearing(screen: Screen) -> None:
    screen.server.emit(event("BLOCK_JOB_READY", device="mirror0"))
    await screen.until(lambda: "BLOCK_JOB_READY device=mirror0" in screen.text)
    await screen.pilot.press("ctrl+l")
    await screen.until(lambda: screen.rows[0] == "(qmp)")
    await screen.pilot.press("alt+e")
    await screen.until(lambda: "events are hidden" in screen.text)


async def test_the_answer_can_be_copied(screen: Screen) -> None:
    await screen.run("query-version")
    await screen.pilot.press("alt+w")
    await screen.until(lambda: "copied the last answer" in screen.text)
    assert screen.app.clipboard == '{"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}\n'


@pytest.mark.parametrize(
    ("key", "character", "sequence"),
    [
        ("a", "a", "a"),
        ("upper_a", "A", "A"),
        ("ctrl+a", "\x01", "\x01"),
        ("ctrl+left", None, "\x1b[1;5D"),
        ("alt+f", None, "\x1bf"),
        ("alt+left", None, "\x1b\x1b[D"),
        ("up", None, "\x1b[A"),
        ("home", None, "\x1b[1~"),
        ("delete", None, "\x1b[3~"),
        ("shift+tab", None, "\x1b[Z"),
        ("ctrl+space", None, "\x00"),
        ("escape", "\x1b", "\x1b"),
        ("é", "é", "é"),
        ("ctrl+shift+hyper+x", None, None),
    ],
)
def test_key_sequences(key: str, character: str | None, sequence: str | None) -> None:
    assert key_sequence(key, character) == sequence


def test_differences_of_rows() -> None:
    def strip(*texts: str) -> Strip:
        return Strip([Segment(text) for text in texts])

    assert difference(strip("abc"), strip("a", "bc")) is None
    assert difference(strip("abcdef"), strip("abXdYf")) == (2, 5)
    assert difference(strip("a世b"), strip("a界b")) == (1, 3)
    assert difference(strip("axxb"), strip("a世b")) == (1, 3)
    assert difference(strip("ab"), strip("abc")) == (0, 3)


async def test_escape_closes_the_menu_only(screen: Screen) -> None:
    await screen.type("blockdev-del node-name=")
    await screen.until(lambda: "raw 8G" in screen.text)
    await screen.pilot.press("escape")
    await screen.until(lambda: "raw 8G" not in screen.text)
    assert screen.pane.text == "blockdev-del node-name="


async def test_vi_keys(screen: Screen) -> None:
    await screen.pilot.press("alt+m")
    await screen.until(lambda: "vi keys" in screen.text)
    await screen.type("one two")
    await screen.pilot.press("escape", "0", "x")
    await screen.until(lambda: screen.pane.text == "ne two")
