"""The prompt through its pipe input, its history file, and the prompt without a terminal."""

from __future__ import annotations

import asyncio
import base64
import contextvars
import errno
import io
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.data_structures import Size
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output.vt100 import Vt100_Output

from blockmon.backend import CommandError
from blockmon.repl.batch import run_lines
from blockmon.repl.history import LONGEST_ENTRY, PrivateFileHistory, open_history
from blockmon.repl.terminal import TerminalPrompt
from tests.blockmon.repl.fakes import Server, event


class Screen(Vt100_Output):
    """A terminal that knows where its cursor is."""

    def get_rows_below_cursor_position(self) -> int:
        return 20


class Terminal:
    """A prompt on a pipe, running."""

    def __init__(self, server: Server, pipe: PipeInput, screen: io.StringIO) -> None:
        self.server = server
        self._pipe = pipe
        self._screen = screen
        self.prompt = TerminalPrompt(server, {}, {}, history=InMemoryHistory())
        self.task = asyncio.create_task(self.prompt.run())

    @property
    def screen(self) -> str:
        """All that was written to the terminal, without its escape sequences."""
        return re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", self._screen.getvalue())

    @property
    def drawn(self) -> str:
        """The prompt with what is around it, as it stands."""
        screen = self.prompt.prompt.app.renderer.last_rendered_screen
        if screen is None:
            return ""
        rows = (screen.data_buffer[y] for y in range(screen.height))
        return "\n".join("".join(row[x].char for x in range(80)).rstrip() for row in rows)

    @property
    def text(self) -> str:
        """What stands at the prompt."""
        return self.prompt.prompt.default_buffer.text

    def type(self, text: str) -> None:
        self._pipe.send_text(text)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until *holds*."""
        async with asyncio.timeout(10):
            while not holds():  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    async def run(self, text: str) -> None:
        """Type a command, and wait until it has run and the prompt is back."""
        count = len(self.server.calls)
        await self.until(lambda: self.prompt.prompt.app.is_running)
        self.type(text + "\r")
        await self.until(lambda: len(self.server.calls) > count and self.prompt.prompt.app.is_running)

    async def leave(self) -> int:
        """Press Ctrl+D and return the exit status."""
        await self.until(lambda: self.prompt.prompt.app.is_running or self.task.done())
        self.type("\x04")
        return await asyncio.wait_for(self.task, 10)


@pytest.fixture
async def terminal() -> AsyncIterator[Terminal]:
    screen = io.StringIO()
    output = Screen(screen, lambda: Size(rows=24, columns=80), term="xterm-256color", enable_cpr=False)
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=output):
        terminal = Terminal(Server(), pipe, screen)
        await terminal.prompt.session.learned()
        await terminal.until(lambda: terminal.prompt.prompt.app.is_running)
        await terminal.prompt.session.learned()
        terminal.server.calls.clear()
        yield terminal
        terminal.task.cancel()
        await asyncio.gather(terminal.task, return_exceptions=True)


async def test_a_command_and_its_answer(terminal: Terminal) -> None:
    await terminal.run("query-version")
    await terminal.until(lambda: '"package"' in terminal.screen)
    assert await terminal.leave() == 0


async def test_tab_completes_from_the_live_graph(terminal: Terminal) -> None:
    terminal.server.answers["blockdev-del"] = {}
    buffer = terminal.prompt.prompt.default_buffer
    terminal.type("blockdev-del node-name=over")
    await terminal.until(lambda: buffer.complete_state is not None)
    terminal.type("\t\t")
    await terminal.until(lambda: terminal.text == "blockdev-del node-name=overlay2")
    terminal.type("\r")  # takes the completion
    await terminal.until(lambda: buffer.complete_state is None)
    assert terminal.server.calls == []
    await terminal.run("")
    assert terminal.server.calls[0] == ("blockdev-del", {"node-name": "overlay2"})


async def test_one_completion_leads_to_the_next(terminal: Terminal) -> None:
    buffer = terminal.prompt.prompt.default_buffer
    terminal.type("blockdev-d")
    await terminal.until(lambda: buffer.complete_state is not None)
    for text, menu in (("blockdev-del ", 1), ("blockdev-del node-name=", 3)):
        terminal.type("\t")
        await terminal.until(lambda text=text: terminal.text == text)  # type: ignore[misc]
        await terminal.until(
            lambda menu=menu: buffer.complete_state is not None and len(buffer.complete_state.completions) == menu  # type: ignore[misc]
        )


async def test_the_menu_follows_what_happens_in_the_server(terminal: Terminal) -> None:
    buffer = terminal.prompt.prompt.default_buffer

    def menu() -> list[str]:
        state = buffer.complete_state
        return [c.display_text for c in state.completions] if state is not None else []

    terminal.type("job-complete id=")
    await terminal.until(lambda: menu() == ["mirror0"])
    terminal.server.emit(event("JOB_STATUS_CHANGE", id="stream0", status="ready"))
    await terminal.until(lambda: menu() == ["stream0", "mirror0"] or menu() == ["mirror0", "stream0"])
    terminal.type("\x03")
    await terminal.until(lambda: buffer.text == "")
    terminal.type("job-complete id=new")
    await terminal.until(lambda: buffer.text.endswith("new") and not menu())
    terminal.server.answers["query-jobs"] = [{"id": "newest", "type": "mirror", "status": "ready"}]
    terminal.server.emit(event("JOB_STATUS_CHANGE", id="newest", status="ready"))
    await terminal.until(lambda: menu() == ["newest"])


async def test_tab_writes_what_all_have_in_common(terminal: Terminal) -> None:
    buffer = terminal.prompt.prompt.default_buffer
    terminal.prompt.session.knowledge.names.touch()
    terminal.type("blockdev-del node-name=o")
    await terminal.until(lambda: buffer.complete_state is not None)
    terminal.type("\x1b")
    await terminal.until(lambda: buffer.complete_state is None)
    terminal.type("\t")
    await terminal.until(lambda: terminal.text == "blockdev-del node-name=overlay")


async def test_json_goes_on_until_its_bracket_is_closed(terminal: Terminal) -> None:
    terminal.type('{"execute":\r')
    await terminal.until(lambda: "\n" in terminal.text)
    assert terminal.server.calls == []
    assert terminal.text == '{"execute":\n  '
    await terminal.run('"query-version"}')
    assert terminal.server.commands == ["query-version"]


async def test_alt_enter_always_begins_a_line(terminal: Terminal) -> None:
    terminal.type("query-version\x1b\rquery-jobs")
    await terminal.until(lambda: terminal.text == "query-version\nquery-jobs")
    await terminal.run("")
    await terminal.until(lambda: terminal.server.commands == ["query-version", "query-jobs"])


async def test_wrong_text_stays_with_the_cursor_at_the_place(terminal: Terminal) -> None:
    terminal.type("block-stream device speed=1\r")
    buffer = terminal.prompt.prompt.default_buffer
    await terminal.until(lambda: buffer.validation_error is not None)
    assert terminal.text == "block-stream device speed=1"
    assert buffer.cursor_position == len("block-stream ")
    assert terminal.server.calls == []


async def test_history_and_reverse_search(terminal: Terminal) -> None:
    await terminal.run("query-version")
    await terminal.run("query-jobs")
    terminal.type("\x12version")
    await terminal.until(lambda: "I-search" in terminal.screen)
    terminal.type("\r")
    await terminal.until(lambda: terminal.text == "query-version")
    await terminal.run("")
    assert terminal.server.commands[-1] == "query-version"


async def test_ctrl_c_clears_the_line(terminal: Terminal) -> None:
    terminal.type("query-ver")
    await terminal.until(lambda: terminal.text == "query-ver")
    terminal.type("\x03")
    await terminal.until(lambda: terminal.text == "")
    await terminal.run("query-jobs")
    assert terminal.server.commands == ["query-jobs"]


async def test_events_appear_while_typing(terminal: Terminal) -> None:
    terminal.type("query-ver")
    await terminal.until(lambda: terminal.text == "query-ver")
    # As the embedded engine delivers them: in a context that knows nothing of this prompt.
    contextvars.Context().run(terminal.server.emit, event("BLOCK_IO_ERROR", device="vda"))
    await terminal.until(lambda: "BLOCK_IO_ERROR" in terminal.screen)
    assert terminal.text == "query-ver"
    await terminal.run("sion")
    assert terminal.server.commands == ["query-version"]


async def test_the_hint_shows_the_signature(terminal: Terminal) -> None:
    terminal.type("block-stream device=")
    await terminal.until(
        lambda: "block-stream device: device or node — the device or node to stream into" in terminal.drawn
    )


async def test_the_answer_is_copied_to_the_terminals_clipboard(terminal: Terminal) -> None:
    await terminal.run("info block")
    terminal.type("\x1bw")
    await terminal.until(lambda: "copied the last answer" in terminal.screen)
    coded = base64.b64encode(b"vda: /img/o2.qcow2 (qcow2)\n").decode()
    assert f"\x1b]52;c;{coded}\a" in terminal.screen


async def test_quit_ends_with_status_0(terminal: Terminal) -> None:
    terminal.type("quit\r")
    assert await asyncio.wait_for(terminal.task, 10) == 0


async def test_a_lost_server_ends_with_status_1(terminal: Terminal) -> None:
    terminal.server.answers["query-jobs"] = ConnectionResetError("gone")
    terminal.type("query-jobs\r")
    assert await asyncio.wait_for(terminal.task, 10) == 1
    assert "Disconnected: gone" in terminal.screen


async def test_a_signal_ends_in_order(terminal: Terminal) -> None:
    terminal.type("query-ver")
    await terminal.until(lambda: terminal.text == "query-ver")
    os.kill(os.getpid(), signal.SIGTERM)
    assert await asyncio.wait_for(terminal.task, 10) == 128 + signal.SIGTERM


async def test_ctrl_c_stops_waiting_for_an_answer(terminal: Terminal) -> None:
    terminal.server.answers["query-jobs"] = asyncio.Event().wait
    terminal.type("query-jobs\r")
    await terminal.until(lambda: "query-jobs" in terminal.server.commands)
    os.kill(os.getpid(), signal.SIGINT)  # outside the prompt the terminal sends the signal
    await terminal.until(lambda: "stopped waiting" in terminal.screen)
    await terminal.run("query-version")
    assert await terminal.leave() == 0


async def test_a_long_answer_goes_to_the_pager(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PAGER", f"cat > {tmp_path}/paged")
    terminal.server.answers["query-jobs"] = [{"id": f"job{number}", "type": "stream"} for number in range(100)]
    await terminal.run("query-jobs")
    await terminal.until(lambda: "101 lines by cat" in terminal.screen)
    paged = (tmp_path / "paged").read_text()
    assert "job99" in paged
    assert "\x1b[" in paged
    assert set(re.findall(r"\x1b\[[\d;]*(.)", paged)) == {"m"}
    assert "job99" not in terminal.screen
    terminal.type("\\set pager off\r")
    await terminal.run("query-jobs")
    await terminal.until(lambda: "job99" in terminal.screen)


async def test_a_pager_that_cannot_be_run_costs_no_answer(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGER", "/nonexistent/pager")
    terminal.server.answers["query-jobs"] = [{"id": f"job{number}", "type": "stream"} for number in range(100)]
    await terminal.run("query-jobs")
    await terminal.until(lambda: "job99" in terminal.screen)
    assert "/nonexistent/pager: cannot be run" in terminal.screen


async def test_events_wait_for_the_pager(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    monkeypatch.setenv("PAGER", f"touch {tmp_path}/there; cat >/dev/null; read x < {tmp_path}/gate")
    terminal.server.answers["query-jobs"] = [{"id": f"job{number}", "type": "stream"} for number in range(100)]
    await terminal.until(lambda: terminal.prompt.prompt.app.is_running)
    terminal.type("query-jobs\r")
    await terminal.until((tmp_path / "there").exists)
    terminal.server.emit(event("BLOCK_IO_ERROR", device="vda"))
    os.kill(os.getpid(), signal.SIGINT)  # the pager's business
    await asyncio.sleep(0)
    assert "BLOCK_IO_ERROR" not in terminal.screen
    # The pager opens its end when it has been sent the whole answer, which takes this loop.
    with await asyncio.to_thread(open, tmp_path / "gate", "w") as gate:
        gate.write("on\n")
    await terminal.until(lambda: "BLOCK_IO_ERROR" in terminal.screen)
    assert "stopped waiting" not in terminal.screen


@pytest.mark.parametrize("key", ["\r", "\x03"])
async def test_watch_changes_in_place_until_a_key(terminal: Terminal, key: str) -> None:
    answers = iter(range(1, 10_000))
    terminal.server.answers["query-version"] = lambda: {"number": next(answers)}
    await terminal.until(lambda: terminal.prompt.prompt.app.is_running)
    terminal.type("\\watch 100ms query-version\r")
    await terminal.until(lambda: terminal.server.commands.count("query-version") > 2)
    await terminal.until(lambda: '"number": 1}' in terminal.screen)
    assert not terminal.prompt.prompt.app.is_running
    terminal.type(key)
    await terminal.run("query-jobs")
    count = terminal.server.commands.count("query-version")
    await terminal.run("query-jobs")
    assert terminal.server.commands.count("query-version") == count


async def test_vi_and_emacs_keys_by_command(terminal: Terminal) -> None:
    terminal.type("\\vi\r")
    await terminal.until(lambda: "vi keys" in terminal.screen and terminal.prompt.prompt.app.is_running)
    terminal.type("query-jobs\x1b0iX")
    await terminal.until(lambda: terminal.text == "Xquery-jobs")
    terminal.type("\x03\\emacs\r")
    await terminal.until(lambda: "emacs keys" in terminal.screen and terminal.prompt.prompt.app.is_running)
    terminal.type("query\x01X")
    await terminal.until(lambda: terminal.text == "Xquery")


async def test_the_prompt_and_the_theme_can_be_changed(terminal: Terminal) -> None:
    terminal.type('\\set prompt "block> "\r')
    await terminal.until(lambda: "block>" in terminal.drawn)
    terminal.type("\\theme nonesuch\r")
    await terminal.until(lambda: "\\theme: there is no theme 'nonesuch'" in terminal.screen)
    await terminal.until(lambda: terminal.prompt.prompt.app.is_running)
    terminal.type("\\theme light\r")
    await terminal.until(lambda: terminal.prompt.prompt.app.is_running and terminal.text == "")
    assert await terminal.leave() == 0


async def test_json_errors_show_their_place_and_brackets_match(terminal: Terminal) -> None:
    text = '{"execute": "query-jobs", "arguments": {]}'
    terminal.type(text + "\r")
    buffer = terminal.prompt.prompt.default_buffer
    await terminal.until(lambda: buffer.validation_error is not None)
    assert buffer.cursor_position == text.index("]")
    await terminal.until(lambda: "expected '}', found ']'" in terminal.drawn)
    terminal.type("\x03")
    await terminal.until(lambda: terminal.text == "")
    terminal.type('{"execute": [1]\x01')
    await terminal.until(lambda: buffer.cursor_position == 0 and terminal.text.startswith("{"))
    terminal.type("\x05}\x01")
    screen = lambda: terminal.prompt.prompt.app.renderer.last_rendered_screen  # noqa: E731

    def marked() -> list[str]:
        found = screen()
        assert found is not None
        row = found.data_buffer[0]
        return [row[x].char for x in range(40) if "matching-bracket" in row[x].style]

    await terminal.until(lambda: marked() == ["{", "}"])


# History -------------------------------------------------------------------------------------------------------------


def test_history_is_private_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "state" / "history"
    history = open_history(path)
    for text in ("query-jobs", '{"execute":\n "quit"}', "query-jobs"):
        history.append_string(text)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(open_history(path).load_history_strings()) == ["query-jobs", '{"execute":\n "quit"}', "query-jobs"]


def test_history_is_private_when_it_was_deleted_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "history"
    history = open_history(path)
    path.unlink()
    history.append_string("query-jobs")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_history_tightens_a_file_others_can_read(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_text("")
    path.chmod(0o644)
    open_history(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_history_leaves_out_repetitions_secrets_and_pastes(tmp_path: Path) -> None:
    history = open_history(tmp_path / "history")
    for text in ("a", "a", " object-add secret", "x" * (LONGEST_ENTRY + 1), "b"):
        history.append_string(text)
    assert list(history.load_history_strings()) == ["b", "a"]
    assert history.get_strings() == ["a", "b"]


def test_history_never_writes_secrets(tmp_path: Path) -> None:
    history = open_history(tmp_path / "history")
    secret = '{"execute": "object-add",\n "arguments": {"id": "s", "data": "hunter2", "qom-type": "secret"}}'
    others = ["object-add qom-type=secret id=s data=hunter2", "object_add secret,id=s,data=hunter2"]
    for text in (secret, *others, "set_password vnc hunter2", "object-add qom-type=secret id=s file=/etc/s"):
        history.append_string(text)
    assert "hunter2" not in (tmp_path / "history").read_text()
    assert "file=/etc/s" in (tmp_path / "history").read_text()
    assert others[0] in history.get_strings()  # until the session ends


def test_history_is_cut_when_it_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockmon.repl.history.LARGEST_FILE", 2000)
    path = tmp_path / "history"
    history = open_history(path)
    for number in range(100):
        history.append_string(f"command {number}")
    kept = list(open_history(path).load_history_strings())
    assert path.stat().st_size <= 1000
    assert kept[0] == "command 99"
    assert kept == [f"command {number}" for number in range(99, 99 - len(kept), -1)]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["history"]


def test_without_a_place_to_write_history_is_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    history = open_history(tmp_path / "file" / "history")
    assert isinstance(history, InMemoryHistory)
    assert not isinstance(history, PrivateFileHistory)


async def test_what_fails_beside_is_told_in_a_line(terminal: Terminal) -> None:
    loop = asyncio.get_running_loop()
    loop.call_exception_handler({"message": "oops", "exception": ValueError("wrong")})
    await terminal.until(lambda: "internal error: ValueError('wrong')" in terminal.screen)
    assert "Traceback" not in terminal.screen
    assert await terminal.leave() == 0


async def test_a_terminal_that_is_gone_ends_it_without_a_word(terminal: Terminal) -> None:
    gone = OSError(errno.EIO, "Input/output error")
    asyncio.get_running_loop().call_exception_handler({"message": "write failed", "exception": gone})
    assert await asyncio.wait_for(terminal.task, 10) == 128 + signal.SIGHUP
    assert "rror" not in terminal.screen


# Without a terminal --------------------------------------------------------------------------------------------------


async def batch(text: str, server: Server | None = None) -> tuple[int, str, str]:
    async def lines() -> AsyncIterator[str]:
        for line in text.splitlines(keepends=True):
            yield line

    out, err = io.StringIO(), io.StringIO()
    status = await run_lines(server or Server(), lines(), out, err)
    return status, out.getvalue(), err.getvalue()


async def test_batch_prints_answers() -> None:
    status, out, err = await batch('query-version\n# comment\n\ninfo block\n{"execute":\n "query-version"}')
    version = '{"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}\n'
    assert (status, out, err) == (0, version + "vda: /img/o2.qcow2 (qcow2)\n" + version, "")


async def test_batch_goes_on_after_errors_and_tells_by_its_status() -> None:
    server = Server({"blockdev-del": CommandError("GenericError", "in use")})
    status, out, err = await batch("blockdev-del node-name=a\nblock-stream x\nnope\nquery-version\n", server)
    assert status == 1
    assert out.startswith('{"qemu"')
    assert err.splitlines() == [
        "blockmon: line 1: GenericError: in use",
        "blockmon: line 2, column 14: Syntax: expected key=value, found 'x'",
        "blockmon: line 3: HMP: unknown command: 'nope'",
    ]


async def test_batch_tells_the_nearest_name_of_what_the_server_has() -> None:
    missing = {"blockdev-del": "Failed to find node with node-name='overlai2'", "job-pause": "Job not found"}
    server = Server({name: CommandError("GenericError", text) for name, text in missing.items()})
    _, _, err = await batch("blockdev-del node-name=overlai2\njob-pause id=strem0\ninfo blok\nblock_strem d\n", server)
    hints = ["did you mean 'overlay2'?", "did you mean 'stream0'?", "did you mean 'info block'?", "'block_stream'?"]
    assert all(hint in line for hint, line in zip(hints, err.splitlines()[1::2], strict=True)), err


async def test_batch_knows_pipes_the_last_answer_and_the_prompts_commands() -> None:
    server = Server({"job-pause": {}})
    status, out, err = await batch("query-jobs | grep -c id\njob-pause id=$_[0].id\n\\json off\nquery-jobs\n", server)
    assert (status, err) == (0, "")
    assert out.startswith("5\n{}\n")
    assert "id       type    status" in out
    assert ("job-pause", {"id": "stream0"}) in server.calls
    status, out, err = await batch("\\theme light\n\\jsn\nblockdev-dell node-name=x\n")
    assert status == 1
    assert err.splitlines() == [
        "blockmon: line 1: \\theme: there are no colours here",
        "blockmon: line 2: \\jsn: there is no such command; did you mean \\json?",
        "blockmon: line 3: HMP: unknown command: 'blockdev-dell node-name=x'",
        "  did you mean 'blockdev-del'?",
    ]


async def test_batch_ends_at_quit() -> None:
    assert await batch("quit\nnope\n") == (0, "{}\n", "")
    assert (await batch("nope\nquit\n"))[0] == 1


async def test_batch_on_a_server_without_human_monitor() -> None:
    status, _, err = await batch("info block\n", Server(hmp=False))
    assert status == 1
    assert "'info' is no QMP command, and this server has no human monitor" in err


async def test_batch_that_ends_within_a_command() -> None:
    status, _, err = await batch('query-version\n\n{"execute": "quit"\n')
    assert status == 1
    assert err == "blockmon: line 3: Syntax: the input ends within a command\n"


READER = """
import asyncio, os, sys
from blockmon.repl.batch import read_lines
async def main():
    async for line in read_lines(0):
        print(repr(line), flush=True)
asyncio.run(main())
"""


def test_lines_come_as_they_are_written_and_bad_bytes_do_no_harm() -> None:
    with subprocess.Popen([sys.executable, "-c", READER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        reader.stdin.write("ä\n".encode()[:1])
        reader.stdin.flush()
        reader.stdin.write("ä\n".encode()[1:])
        reader.stdin.flush()
        assert reader.stdout.readline() == "'ä\\n'\n".encode()
        reader.stdin.write(b"\xff\nlast")
        reader.stdin.close()
        assert reader.stdout.read().decode() == "'\ufffd\\n'\n'last'\n"
        assert reader.wait(10) == 0
