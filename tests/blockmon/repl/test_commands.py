"""The prompt's own commands."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from blockmon.backend import CommandError
from blockmon.repl.commands import MODULES, all_commands
from blockmon.repl.printers import plain
from blockmon.replay.directives import NAMES
from tests.blockmon.repl.fakes import CHAIN, Server, event, graph_reply
from tests.blockmon.repl.test_session import Run


@pytest.fixture
async def run() -> AsyncIterator[Run]:
    run = Run(Server())
    await run.session.start()
    await run.session.learned()
    run.server.calls.clear()
    yield run
    await run.session.close()


async def test_help_lists_every_command_and_tells_more_of_each(run: Run) -> None:
    assert await run.session.submit("\\help")
    text = run.text
    for name, command in all_commands().items():
        assert command.name == name
        assert f"\\{name}" in text
        assert command.help in text
        assert await run.session.submit(f"\\help {name}")
        assert run.text.startswith(f"\\{name} {command.usage}".rstrip() + "\n")
    assert sorted(MODULES) == sorted(all_commands())


async def test_help_on_topics_and_the_servers_commands(run: Run) -> None:
    await run.session.submit("\\help block-stream")
    text = run.text
    assert text.startswith("block-stream")
    assert "device" in text
    assert "required" in text
    await run.session.submit("\\help block_stream")
    assert "hmp" in run.text
    for topic, word in (("forms", "HMP"), ("answers", "$_"), ("keys", "Ctrl+R"), ("settings", "pager")):
        assert await run.session.submit(f"\\? {topic}")
        assert word in run.text
    assert not await run.session.submit("\\help block-strem")
    assert run.text == "\\help: there is nothing on 'block-strem'; did you mean 'block-stream'?\n"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("\\jsn", "\\jsn: there is no such command; did you mean \\json?"),
        ("\\xyzzy", "\\help lists them"),
        ("\\", "a name is missing behind the backslash"),
        ("\\json maybe", "takes on or off"),
        ("\\json", "there is no answer yet"),
        ("\\events some", "takes on, off or how many"),
        ("\\watch", "needs an INTERVAL"),
        ("\\watch 2s", "needs a whole COMMAND"),
        ("\\watch 0.01 query-jobs", "between 0.1 s and a day"),
        ("\\watch 1s \\json", "not the prompt's own"),
        ("\\watch 1s block-stream x", "expected key=value, found 'x' (column 14"),
        ('\\watch 1s {"execute":', "needs a whole COMMAND"),
        ("\\record", "needs a FILE"),
        ("\\record x", "this back end cannot record"),
        ("\\source", "needs a FILE"),
        ("\\source /nonexistent/x.bmon", "/nonexistent/x.bmon: "),
        ("\\save", "needs a FILE"),
        ("\\save /tmp/x", "there is no answer yet"),
        ("\\set pagr on", "there is no setting 'pagr'; did you mean 'pager'?"),
        ("\\set timing maybe", "timing can be auto or on or off, not 'maybe'"),
        ("\\theme light", "there are no colours here"),
        ("\\vi now", "takes no argument, not 'now'"),
        ("\\diff", "there is no mark yet"),
        ("\\diff one two", "takes one mark's name"),
        ("\\quit now", "takes no argument"),
    ],
)
async def test_wrong_use_is_told(run: Run, line: str, text: str) -> None:
    assert not await run.session.submit(line)
    assert text in run.text
    assert run.server.calls == []
    assert not run.session.ended


async def test_events_are_listed_and_switched(run: Run) -> None:
    await run.session.submit("\\events off")
    run.server.emit(*[event("BLOCK_IO_ERROR", device=f"d{number}") for number in range(30)])
    assert "BLOCK_IO_ERROR" not in run.text
    await run.session.submit("\\events 2")
    assert [line.split()[-1] for line in run.text.splitlines()] == ["device=d28", "device=d29"]
    await run.session.submit("\\events")
    assert len(run.text.splitlines()) == 20
    await run.session.submit("\\events on")
    run.server.emit(event("BLOCK_IO_ERROR", device="last"))
    assert "device=last" in run.text


async def test_set_shows_and_changes(run: Run) -> None:
    await run.session.submit("\\set")
    assert [line.split()[0] for line in run.text.splitlines()] == [
        "json",
        "pager",
        "timing",
        "events",
        "keys",
        "prompt",
    ]
    await run.session.submit("\\set json yes")
    assert run.text.split()[:2] == ["json", "on"]
    await run.session.submit('\\set prompt "block> "')
    assert run.session.settings["prompt"] == "block> "
    await run.session.submit("\\vi")
    assert run.session.settings["keys"] == "vi"
    await run.session.submit("\\emacs")
    assert run.session.settings["keys"] == "emacs"


async def test_save_writes_the_answer_or_the_session(run: Run, tmp_path: Path) -> None:
    answer, session = tmp_path / "a.json", tmp_path / "session.txt"
    await run.session.submit(f"query-jobs\n\\save {answer}")
    assert json.loads(answer.read_text()) == run.server.answers["query-jobs"]
    assert stat.S_IMODE(answer.stat().st_mode) == 0o600
    assert not await run.session.submit(f"\\save {answer}")
    assert "is there already" in run.text
    await run.session.submit(f"info block\n\\save session {session}")
    text = session.read_text()
    assert text.index("(qmp) query-jobs") < text.index("stream0") < text.index("is there already")
    assert "vda: /img/o2.qcow2 (qcow2)\n" in text
    assert not await run.session.submit("\\save /nonexistent/x")
    assert "/nonexistent/x: No such file" in run.text


async def test_record_begins_and_ends_a_recording(run: Run) -> None:
    files: list[str] = []
    run.server.record = files.append  # type: ignore[attr-defined]
    run.server.stop_recording = lambda: files.pop() if files else None  # type: ignore[attr-defined]
    assert await run.session.submit("\\record /tmp/a b.bmon")
    assert files == ["/tmp/a b.bmon"]
    assert await run.session.submit("\\record off")
    assert "recorded to /tmp/a b.bmon" in run.text
    run.server.recording = "/tmp/one.bmon"  # type: ignore[attr-defined]
    assert await run.session.submit("\\record /tmp/two.bmon")
    assert "recording to /tmp/two.bmon, no more to /tmp/one.bmon;" in run.text
    files.clear()
    assert not await run.session.submit("\\record off")
    assert run.text == "\\record: nothing is being recorded\n"

    def fail(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    run.server.record = fail  # type: ignore[attr-defined]
    assert not await run.session.submit("\\record /x")
    assert run.text == "\\record: /x: Permission denied\n"
    assert not run.session.ended


async def test_help_on_directives(run: Run) -> None:
    await run.session.submit("\\help @wait-job")
    assert run.text.startswith("@wait-job ID STATUS[|STATUS...]")
    await run.session.submit("\\help files")
    told = run.text
    assert all(f"  @{name}" in told for name in NAMES)
    await run.session.submit("\\help @expct")
    assert run.text.strip() == "\\help: there is nothing on '@expct'; did you mean '@expect'?"
    run.server.answers["human-monitor-command"] = "unknown command: '@echo'\r\n"
    await run.session.submit("@echo hi")
    assert "\\source FILE runs; \\help @echo tells" in run.text


async def test_source_runs_a_command_file(run: Run, tmp_path: Path) -> None:
    script = tmp_path / "a.bmon"
    script.write_text("query-version\n@echo hello\ninfo block\n")
    assert await run.session.submit(f"\\source {script}")
    text = run.text
    for part in ("(qmp) query-version\n", '"micro": 22', "hello\n", "vda: ", ": 3 statements, all well\n"):
        assert part in text
    run.server.answers["blockdev-del"] = CommandError("GenericError", "in use")
    script.write_text("blockdev-del node-name=a\nquery-version\n")
    assert not await run.session.submit(f"\\source {script}")
    text = run.text
    assert f"{script}:1:1: blockdev-del: GenericError: in use" in text
    assert "query-version" not in text
    script.write_text("query-jobs\nquit\n")
    await run.session.submit(f"\\source {script}")
    assert run.session.ended


async def test_source_gives_variables(run: Run, tmp_path: Path) -> None:
    script = tmp_path / "a b.bmon"
    script.write_text("@echo <${A}> <${B}>\n")
    assert await run.session.submit(f"\\source {script} A=/x=y B=")
    assert "</x=y> <>\n" in run.text
    assert not await run.session.submit(f"\\source {script}")
    assert "the variable 'A' is not set" in run.text


async def test_source_knows_that_the_server_is_elsewhere(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "a"
    script.write_text("@require remote\n@echo here\n")
    assert not await run.session.submit(f"\\source {script}")
    monkeypatch.setattr("blockmon.repl.commands.source.connection_of", lambda _backend: object())
    assert await run.session.submit(f"\\source {script}")
    assert "here\n" in run.text


async def test_watch_repeats_until_it_is_cancelled(run: Run) -> None:
    count = 0

    def version() -> dict[str, int]:
        nonlocal count
        count += 1
        return {"count": count}

    run.server.answers["query-version"] = version
    task = asyncio.create_task(run.session.submit("\\watch 100ms query-version"))
    async with asyncio.timeout(10):
        while count < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    text = run.text
    assert text.index('{"count": 1}') < text.index('{"count": 2}')
    assert "every 0.1 s: query-version" in text
    assert await run.session.submit("query-jobs")


async def test_watch_ends_when_the_command_fails(run: Run) -> None:
    assert await asyncio.wait_for(run.session.submit("\\watch 0.1 blockdev-del node-name=x"), 10)
    assert "has not been found" in run.text


async def test_watch_keeps_what_the_last_answer_was(run: Run) -> None:
    run.server.answers["job-pause"] = {"done": 1}
    task = asyncio.create_task(run.session.submit("query-jobs\n\\watch 0.1 job-pause id=$_[1].id"))
    async with asyncio.timeout(10):
        while run.server.commands.count("job-pause") < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert {arguments["id"] for name, arguments in run.server.calls if name == "job-pause"} == {"mirror0"}


async def test_diff_tells_what_has_changed_since_a_mark(run: Run) -> None:
    await run.session.submit("\\diff mark")
    assert run.text == "marked the graph: 3 nodes; \\diff compares with it\n"
    await run.session.submit("\\diff")
    assert run.text == "no difference\n"
    reply = graph_reply([("snap", "qcow2", "/img/s.qcow2"), *CHAIN[1:]])
    reply["nodes"][2]["read-only"] = False
    reply["edges"][1]["perm"] = ["consistent-read"]
    run.server.answers["x-blockmon-query-graph"] = reply
    await run.session.submit("\\diff")
    assert run.text.splitlines() == [
        "+ node snap  qcow2 8G rw /img/s.qcow2",
        "- node overlay2  qcow2 8G rw /img/o2.qcow2",
        "~ node base  read-only: on → off",
        "+ edge snap ─backing→ overlay1",
        "- edge overlay2 ─backing→ overlay1",
        "~ edge overlay1 ─backing→ base  takes +consistent-read",
    ]
    await run.session.submit("\\diff mark after\n\\diff after")
    assert run.text.endswith("no difference\n")
    assert not await run.session.submit("\\diff afte")
    assert "did you mean 'after'?" in run.text


async def test_quit_leaves_without_a_word_to_the_server(run: Run) -> None:
    assert await run.session.submit("\\quit\nquery-version")
    assert run.session.ended
    assert run.server.calls == []


async def completions(run: Run, text: str) -> list[str]:
    document = Document(text, len(text))
    found = run.session.completer.get_completions_async(document, CompleteEvent(completion_requested=True))
    return [completion.display_text async for completion in found]


async def test_completion_of_commands_settings_and_references(run: Run, tmp_path: Path) -> None:
    assert await completions(run, "\\s") == ["\\save", "\\set", "\\source"]
    assert await completions(run, "\\set t") == ["timing "]
    assert await completions(run, "\\set timing a") == ["auto"]
    assert "light" in await completions(run, "\\theme l")
    assert await completions(run, "\\diff m") == ["mark"]
    (tmp_path / "a.bmon").write_text("")
    assert await completions(run, f"\\source {tmp_path}/a") == [f"{tmp_path}/a.bmon"]
    assert "query-jobs" in await completions(run, "\\watch 1s query-jo")
    assert await completions(run, "query-jobs | gr") == []
    await run.session.submit("query-jobs")
    assert await completions(run, "job-pause id=$_[") == ["[0]", "[1]", "[2]", "[3]", "[4]"]
    assert ".status" in await completions(run, "job-pause id=$_[0].s")
    run.session.runner.remember({"on": True, "none": None, "text": "a"})
    found = [c async for c in run.session.completer.get_completions_async(Document("$_."), CompleteEvent())]
    assert [c.display_meta_text for c in found] == ["true", "null", "a"]


async def test_hints_show_the_usage(run: Run) -> None:
    def hint(text: str) -> str:
        return plain([(style, part) for style, part, *_ in run.session.hint(text, len(text), 100)])

    assert hint("\\watch ") == "\\watch INTERVAL COMMAND — run a command every so often until Ctrl+C or Enter"
    assert hint("\\watch 1s block-stream ").startswith("block-stream")
    assert "\\help" in hint("\\nope")
