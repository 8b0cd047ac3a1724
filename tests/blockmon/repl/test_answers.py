"""Answers of a session: tables and JSON, `$_`, pipes to the shell, timing, the nearest valid name."""

from __future__ import annotations

import asyncio
import gc
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from blockmon.backend import CommandError
from tests.blockmon.repl.fakes import Server
from tests.blockmon.repl.test_session import Run


@pytest.fixture
async def run() -> AsyncIterator[Run]:
    run = Run(Server())
    await run.session.start()
    await run.session.learned()
    run.server.calls.clear()
    yield run
    await run.session.close()


async def test_lists_of_objects_are_tables(run: Run) -> None:
    await run.session.submit("query-jobs")
    lines = run.text.splitlines()
    assert lines[0].split() == ["id", "type", "status", "current-progress", "total-progress"]
    assert lines[1].split() == ["stream0", "stream", "running", "1", "9"]


async def test_json_shows_the_last_answer_or_all(run: Run) -> None:
    await run.session.submit("query-jobs")
    run.text  # noqa: B018
    await run.session.submit("\\json")
    assert json.loads(run.text) == run.server.answers["query-jobs"]
    await run.session.submit("\\json on\nquery-jobs")
    assert '"id": "stream0"' in run.text
    await run.session.submit("\\json off\nquery-jobs")
    assert '"id": "stream0"' not in run.text


async def test_the_last_answer_in_the_next_command(run: Run) -> None:
    run.server.answers["job-pause"] = {}
    assert await run.session.submit("query-jobs\njob-pause id=$_[1].id\njob-pause id=$_[0].id")
    assert run.server.calls[-2:] == [("job-pause", {"id": "mirror0"}), ("job-pause", {"id": "stream0"})]
    assert await run.session.submit('query-jobs\n{"execute": "job-pause", "arguments": {"id": "$_[-1].id"}}')
    assert run.server.calls[-1] == ("job-pause", {"id": "wait0"})
    await run.session.submit("query-jobs\nhmp info $_[0].id")
    assert run.server.calls[-1] == ("human-monitor-command", {"command-line": "info stream0"})


async def test_a_place_in_the_last_answer_is_shown(run: Run) -> None:
    assert await run.session.submit("query-version")
    run.server.calls.clear()
    run.text  # noqa: B018
    assert await run.session.submit("$_.qemu.major")
    assert run.text == "7\n"
    assert await run.session.submit("$_ | grep -c micro")
    assert run.text == "1\n"
    assert await run.session.submit("$_")
    assert run.text.startswith('{"qemu"')
    assert not await run.session.submit("$_.quemu")
    assert run.text == "Answer: $_ has no member 'quemu'; did you mean 'qemu'?\n"
    assert not await run.session.submit("\\watch 1s $_.qemu")
    assert run.server.calls == []


async def test_a_path_that_leads_nowhere_sends_nothing(run: Run) -> None:
    assert not await run.session.submit("job-pause id=$_[0].id")
    assert run.text == "Answer: $_: there is no answer yet\n"
    assert not await run.session.submit("query-jobs\njob-pause id=$_[0].idd")
    assert "did you mean 'id'?" in run.text
    assert run.server.commands == ["query-jobs"]


async def test_answers_go_to_a_shell_command(run: Run) -> None:
    assert await run.session.submit("query-version | grep micro")
    assert run.text.strip() == '"micro": 22,'
    assert await run.session.submit("info block | tr a-z A-Z")
    assert run.text == "VDA: /IMG/O2.QCOW2 (QCOW2)\n"
    assert run.session.last_answer == "VDA: /IMG/O2.QCOW2 (QCOW2)\n"
    assert await run.session.submit('{"execute": "query-version"} | head -1')
    assert run.text == "{\n"
    assert await run.session.submit("info block\nquery-version | cat >/dev/null")
    run.text  # noqa: B018
    await run.session.submit("\\json")
    assert run.text.startswith('{"qemu"')


async def test_a_shell_command_that_fails_says_so(run: Run) -> None:
    assert not await run.session.submit("info block | echo oops >&2; exit 3")
    assert run.text == "oops\nShell: exit status 3\n"
    assert not await run.session.submit("info block | no-such-command-here")
    assert "not found" in run.text


async def test_a_shell_command_that_does_not_read(run: Run) -> None:
    run.server.answers["query-block"] = [{"device": "x" * 100}] * 50_000
    wrong: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: wrong.append(context))
    assert await run.session.submit("query-block | exec <&-; true")
    assert not await run.session.submit("query-block | no-such-command-here")
    gc.collect()
    await asyncio.sleep(0)
    assert wrong == []


async def test_what_a_shell_command_writes_cannot_steer_the_terminal(run: Run) -> None:
    await run.session.submit(r"info block | printf '\033[2Jx\r\ny'")
    assert run.text == "\\x1b[2Jx\ny\n"


async def test_ctrl_c_ends_the_shell_command(run: Run) -> None:
    task = asyncio.create_task(run.session.submit("info block | sleep 1000 & echo $!; wait"))
    shown = ""
    async with asyncio.timeout(10):
        while "\n" not in shown:
            await asyncio.sleep(0.005)
            shown += run.text
    pid = int(shown)
    os.kill(pid, 0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    async with asyncio.timeout(10):
        while _runs(pid):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert await run.session.submit("query-version")


def _runs(pid: int) -> bool:
    try:
        # Nobody may have waited for a process whose parent is gone.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_a_bar_inside_a_value_is_no_pipe(run: Run) -> None:
    run.server.answers["blockdev-del"] = {}
    await run.session.submit("blockdev-del node-name='a | b'")
    await run.session.submit("blockdev-del node-name=a|b")
    names = [arguments["node-name"] for _, arguments in run.server.calls]
    assert names == ["a | b", "a|b"]


async def test_a_pipe_without_a_command_is_an_error_at_its_place(run: Run) -> None:
    error = run.session.check("info block |").error
    assert error is not None
    assert error.column == 12
    error = run.session.check("| wc").error
    assert error is not None
    assert "in front of" in error.message


async def test_timing_is_told_when_asked_for_or_slow(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    await run.session.submit("info block")
    assert "s)" not in run.text
    await run.session.submit("\\set timing on\ninfo block")
    assert run.text.splitlines()[-1].endswith("s)")
    monkeypatch.setattr("blockmon.repl.running.SLOW", 0.0)
    await run.session.submit("\\set timing auto\ninfo block")
    assert run.text.splitlines()[-1].endswith("s)")
    await run.session.submit("\\set timing off\ninfo block")
    assert "s)" not in run.text


@pytest.mark.parametrize(
    ("line", "error", "hint"),
    [
        ("blockdev-dell node-name=x", None, "did you mean 'blockdev-del'?"),
        ("block_strem d", None, "did you mean 'block_stream'?"),
        ("info blck", None, "did you mean 'info block'?"),
        ("exit", None, "\\quit or Ctrl+D leaves the prompt"),
        ("help block-stream", None, "\\help block-stream tells about it"),
        ("qmp block-strem device=d", "CommandNotFound: The command block-strem has not been found", "'block-stream'"),
        ("blockdev-del node-nam=x", "Parameter 'node-name' is missing", "'node-name=' where 'node-nam=' stands"),
        ("blockdev-del", "Parameter 'node-name' is missing", "still needed: node-name="),
        (
            "nbd-server-start addr.type=inet addr.data.host=h",
            "Parameter 'addr.data.port' is missing",
            "still needed: addr.data.port=",
        ),
        ("block-stream device=d spead=1", "Parameter 'spead' is unexpected", "did you mean 'speed='?"),
        (
            "blockdev-add driver=qcow2 node-name=n file.driver=fil file.filename=x",
            "Parameter 'driver' does not accept value 'fil'",
            "did you mean 'file'?",
        ),
        ("blockdev-del node-name=overlay", "Failed to find node with node-name='overlay'", "did you mean 'overlay"),
        (
            "blockdev-del node-name=zzz",
            "Failed to find node with node-name='zzz'",
            "there are 'base', 'overlay1', 'overlay2'",
        ),
        ("job-pause id=stream", "Job not found", "did you mean 'stream0'?"),
        ("block-stream device=overlai2", "Cannot find device='overlai2' nor node-name='overlai2'", "'overlay2'?"),
        (
            "block-job-cancel device=zzz",
            "Block job 'zzz' not found",
            "there are 'held', 'mirror0', 'stream0', 'wait0'",  # create0 is no block job
        ),
        ("block-export-del id=exp", "Export 'exp' is not found", "did you mean 'exp0'?"),
        ("blockdev-del node-name=base", "Node 'base' is busy: node is used as backing hd of 'overlay1'", ""),
    ],
)
async def test_errors_tell_the_nearest_valid_name(run: Run, line: str, error: str | None, hint: str) -> None:
    command = line.removeprefix("qmp ").split()[0]
    if error is not None:
        run.server.answers[command] = CommandError("GenericError", error)
    assert not await run.session.submit(line)
    text = run.text
    if hint:
        assert hint in text.splitlines()[-1]
    else:
        assert len(text.splitlines()) == 1


async def test_names_that_the_server_made_up_are_not_listed(run: Run) -> None:
    nodes = run.session.knowledge.names.graph.nodes
    nodes["#block007"] = nodes["base"]
    run.server.answers["blockdev-del"] = CommandError("GenericError", "Failed to find node with node-name='zzz'")
    await run.session.submit("blockdev-del node-name=zzz")
    assert run.text.splitlines()[-1] == "  there are 'base', 'overlay1', 'overlay2'"
