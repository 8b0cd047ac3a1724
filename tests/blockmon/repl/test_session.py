"""A session without a terminal: what submitting does, and what comes out of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from blockmon.backend import CommandError
from blockmon.backend.connection import Connection, ConnectionLost, ConnectionState
from blockmon.repl.printers import Fragments, plain
from blockmon.repl.session import MOST_EVENTS, PIECE, ReplSession
from tests.blockmon.repl.fakes import Server, event


class Run:
    """A started session with what it has printed."""

    def __init__(self, server: Server, **options: bool) -> None:
        self.server = server
        self.pieces: list[Fragments] = []
        self.ends = 0
        self.session = ReplSession(server, self.pieces.append, on_end=self.end, **options)

    def end(self) -> None:
        self.ends += 1

    @property
    def text(self) -> str:
        """Everything printed, which is then forgotten."""
        text = "".join(plain(piece) for piece in self.pieces)
        self.pieces.clear()
        return text


@pytest.fixture
async def run() -> AsyncIterator[Run]:
    run = Run(Server())
    await run.session.start()
    await run.session.learned()
    run.server.calls.clear()
    yield run
    await run.session.close()


async def test_the_three_forms(run: Run) -> None:
    assert await run.session.submit("query-version")
    assert run.text == '{"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}\n'
    run.server.answers["block-stream"] = lambda **arguments: {}
    assert await run.session.submit("block-stream device=overlay2 speed=1M auto-dismiss=off")
    assert run.server.calls[-1] == ("block-stream", {"device": "overlay2", "speed": 1 << 20, "auto-dismiss": False})
    assert run.text == "{}\n"
    assert await run.session.submit('{"execute": "block-stream",\n "arguments": {"device": "base"}}')
    assert run.server.calls[-1] == ("block-stream", {"device": "base"})
    run.text  # noqa: B018
    assert await run.session.submit("info block")
    assert run.server.calls[-1] == ("human-monitor-command", {"command-line": "info block"})
    assert run.text == "vda: /img/o2.qcow2 (qcow2)\n"


async def test_errors_show_class_and_text(run: Run) -> None:
    run.server.answers["blockdev-del"] = CommandError("GenericError", "Node 'base' is busy: in use")
    assert not await run.session.submit("blockdev-del node-name=base")
    assert run.text == "GenericError: Node 'base' is busy: in use\n"


async def test_hmp_errors_count_as_failures(run: Run) -> None:
    assert not await run.session.submit("frobnicate")
    assert run.text == "unknown command: 'frobnicate'\n"


async def test_syntax_errors_show_the_place_and_run_nothing(run: Run) -> None:
    assert not await run.session.submit("query-version\nblock-stream device")
    assert run.server.commands == []
    assert run.text == "  block-stream device\n               ^\nSyntax: expected key=value, found 'device' (line 2)\n"


async def test_several_pasted_commands_run_in_their_order(run: Run) -> None:
    text = '# a comment\nquery-version\n\n{"execute":\n  "query-jobs"}\ninfo block\n'
    assert await run.session.submit(text)
    assert run.server.commands == ["query-version", "query-jobs", "human-monitor-command"]


async def test_what_is_behind_a_json_object_is_an_error(run: Run) -> None:
    assert not await run.session.submit('{"execute": "query-jobs"} x')
    assert run.server.commands == []


@pytest.mark.parametrize(
    ("text", "complete", "wrong"),
    [
        ("query-version", True, False),
        ("", True, False),
        ('{"execute": "query-jobs"', False, False),
        ('{"execute": "query-jobs"}', True, False),
        ('query-version\n{"execute":', False, False),
        ('blockdev-add file={"driver":', False, False),
        ('blockdev-add file={"driver":\n "file"}', True, False),
        ("block-stream \\", False, False),
        ("block-stream device", True, True),
        ('{"execute": ]', True, True),
    ],
)
async def test_what_enter_does(run: Run, text: str, complete: bool, wrong: bool) -> None:
    verdict = run.session.check(text)
    assert (verdict.complete, verdict.error is not None) == (complete, wrong)


async def test_the_place_of_an_error_counts_from_the_whole_text(run: Run) -> None:
    error = run.session.check('query-version\n{"execute": 1,\n "arguments" 2}').error
    assert error is not None
    assert error.line == 3


async def test_a_command_waits_for_the_one_before(run: Run) -> None:
    gate = asyncio.Event()

    async def slow() -> dict[str, str]:
        await gate.wait()
        return {"slow": "done"}

    run.server.answers["query-jobs"] = slow
    first = asyncio.create_task(run.session.submit("query-jobs"))
    second = asyncio.create_task(run.session.submit("query-version"))
    while "query-jobs" not in run.server.commands:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert "query-version" not in run.server.commands
    gate.set()
    await asyncio.gather(first, second)
    assert run.text.startswith('{"slow": "done"}\n{"qemu"')


async def test_giving_up_waiting_lets_the_next_one_run(run: Run) -> None:
    run.server.answers["query-jobs"] = asyncio.Event().wait
    task = asyncio.create_task(run.session.submit("query-jobs"))
    while "query-jobs" not in run.server.commands:  # noqa: ASYNC110
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await run.session.submit("query-version")


async def test_events_are_printed_and_can_be_switched_off(run: Run) -> None:
    run.server.emit(
        event("JOB_STATUS_CHANGE", id="j", status="running"), event("X_BLOCKMON_GRAPH_CHANGE", generation=2)
    )
    text = run.text
    assert "JOB_STATUS_CHANGE id=j status=running\n" in text
    assert "GRAPH_CHANGE" not in text
    run.session.toggle_events()
    assert run.text == "events are hidden\n"
    run.server.emit(event("JOB_STATUS_CHANGE", id="j", status="ready"))
    assert run.text == ""
    assert run.session.knowledge.names.jobs["j"].status == "ready"


async def test_a_flood_of_events_is_counted_not_printed(run: Run) -> None:
    run.server.emit(*[event("BLOCK_IO_ERROR", device=f"d{number}") for number in range(5000)])
    lines = run.text.splitlines()
    assert len(lines) == MOST_EVENTS + 1
    assert lines[-1] == f"… and {5000 - MOST_EVENTS} more events at the same time"


async def test_a_large_answer_comes_in_pieces_and_lets_others_run(run: Run) -> None:
    run.server.answers["query-jobs"] = [{"id": f"job{number}", "type": "stream"} for number in range(5000)]
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    await run.session.submit("query-jobs")
    task.cancel()
    assert max(len(piece) for piece in run.pieces) <= PIECE + 20
    assert turns > 20
    assert run.text.count("job4999") == 1


@pytest.mark.parametrize("text", ["quit", '{"execute": "quit"}', "hmp quit", "q"])
async def test_quit_ends_the_session(run: Run, text: str) -> None:
    run.server.answers["human-monitor-command"] = lambda command_line: ""
    await run.session.submit(text + "\nquery-version")
    assert run.session.ended
    assert not run.session.lost
    assert run.ends == 1
    assert "query-version" not in run.server.commands


async def test_a_quit_of_another_client_ends_the_session(run: Run) -> None:
    run.server.emit(event("SHUTDOWN", guest=True, reason="guest-shutdown"))
    assert not run.session.ended
    run.server.emit(event("SHUTDOWN", guest=False, reason="host-qmp-quit"))
    assert run.session.ended
    assert run.ends == 1


async def test_a_refused_quit_does_not(run: Run) -> None:
    run.server.answers["quit"] = CommandError("GenericError", "no")
    await run.session.submit("quit")
    assert not run.session.ended


async def test_a_lost_server_is_told_once(run: Run) -> None:
    run.server.answers["query-jobs"] = ConnectionResetError("gone")
    assert not await run.session.submit("query-jobs\nquery-jobs")
    assert run.text == "Disconnected: gone\n"
    assert run.session.lost
    assert run.ends == 1


async def test_writing_to_an_image_opened_for_reading_tells_the_option(run: Run) -> None:
    refusal = "force-share=on can only be used with read-only images"
    run.server.answers["block-stream"] = CommandError("GenericError", refusal)
    assert not await run.session.submit("block-stream device=top")
    shown = run.text
    assert shown.startswith(f"GenericError: {refusal}\n")
    assert "--rw" in shown


async def test_a_server_without_human_monitor_says_so() -> None:
    run = Run(Server(hmp=False))
    await run.session.start()
    assert not await run.session.submit("info block")
    assert run.text == "CommandNotFound: 'info' is no QMP command, and this server has no human monitor\n"
    await run.session.close()


async def test_a_server_without_introspection_still_knows_its_commands() -> None:
    server = Server({"query-qmp-schema": CommandError("CommandNotFound", "no")})
    run = Run(server)
    await run.session.start()
    await run.session.learned()
    assert await run.session.submit("query-version")
    assert "7" in run.text
    await run.session.close()


async def test_out_of_band_is_refused(run: Run) -> None:
    assert not await run.session.submit('{"exec-oob": "query-jobs"}')
    assert run.server.commands == []


async def test_the_last_answer_is_kept_for_copying(run: Run) -> None:
    await run.session.submit("query-version")
    assert run.session.last_answer.startswith('{"qemu"')
    await run.session.submit("info block")
    assert run.session.last_answer == "vda: /img/o2.qcow2 (qcow2)\n"


async def test_names_are_asked_for_anew_after_a_command(run: Run) -> None:
    run.server.answers["blockdev-del"] = {}
    await run.session.submit("blockdev-del node-name=base")
    await run.session.knowledge.names.refresh()
    assert "x-blockmon-query-graph" in run.server.commands


async def test_a_connection_that_is_tried_again_does_not_end_the_session() -> None:
    server = Server()
    server.connection = Connection()  # type: ignore[attr-defined]
    server.connection.change(ConnectionState(True))  # type: ignore[attr-defined]
    run = Run(server)
    await run.session.start()
    await run.session.learned()
    server.answers["query-version"] = ConnectionLost("no route", True)
    server.connection.change(ConnectionState(False, "no route"))  # type: ignore[attr-defined]
    assert not await run.session.submit("query-version")
    assert run.text == "connection lost: no route; trying to get it back …\nDisconnected: no route\n"
    assert not run.session.ended
    server.answers["query-version"] = {"again": 1}
    server.connection.change(ConnectionState(True))  # type: ignore[attr-defined]
    await run.session.learned()
    assert await run.session.submit("query-version")
    assert run.text == 'connected again\n{"again": 1}\n'
    await run.session.close()
