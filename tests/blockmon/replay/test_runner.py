"""Scripts: the three forms in one file, what is printed, where an error stops it, what the waits wait for."""

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pytest

from blockmon.backend import CommandError
from blockmon.exitcodes import ExitStatus
from blockmon.options import RunOptions
from blockmon.replay.errors import ScriptError
from blockmon.replay.output import TextOutput
from blockmon.replay.runner import Runner
from tests.blockmon.fakes import FakeBackend, event, job_status

SCHEMA = json.loads((Path(__file__).parents[2] / "data/schema-7.2.json").read_text())


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(
        {"query-block": [], "block-stream": {}, "query-jobs": [], "quit": {}, "blockdev-del": {}}, SCHEMA
    )


async def run(backend: FakeBackend, script: str, tmp_path: Path, **options: Any) -> str:
    """Run *script* as the file "s" and return what it printed."""
    path = tmp_path / "s"
    path.write_text(script)
    out = io.StringIO()
    runner = Runner(backend, TextOutput(out), RunOptions(**options))
    try:
        async with asyncio.timeout(10):
            await runner.run(str(path))
    finally:
        runner.close()
    if runner.failures:
        error = runner.failures[0]
        error.args = (str(error).replace(f"{tmp_path}/", ""),)
        raise error
    return out.getvalue()


async def fails(backend: FakeBackend, script: str, tmp_path: Path) -> tuple[str, int]:
    with pytest.raises(ScriptError) as caught:
        await run(backend, script, tmp_path)
    return str(caught.value), caught.value.status


def sent(backend: FakeBackend) -> list[tuple[str, dict[str, Any]]]:
    """What was executed for the script itself."""
    return [call for call in backend.calls if call[0] not in ("query-commands", "query-qmp-schema", "query-jobs")]


class TestCommands:
    async def test_an_error_needs_a_command(self, backend: FakeBackend, tmp_path: Path) -> None:
        assert await fails(backend, "@error GenericError /x/\n", tmp_path) == ("s:1:1: there is no answer yet", 1)

    async def test_nothing_runs_after_quit(self, backend: FakeBackend, tmp_path: Path) -> None:
        backend.answers["human-monitor-command"] = ""
        for text in ("quit", '{"execute": "quit"}', "q"):
            backend.calls.clear()
            await run(backend, f"{text}\nblock-stream device=a\nnonsense (\n", tmp_path)
            assert [name for name, _ in sent(backend)] in (["quit"], ["human-monitor-command"])

    async def test_three_forms_comments_and_continuation(self, backend: FakeBackend, tmp_path: Path) -> None:
        backend.answers["human-monitor-command"] = "one\r\ntwo\r\n"
        backend.answers["query-block"] = [{"device": "é"}]
        printed = await run(
            backend,
            "# a comment\n"
            '{"execute": "block-stream",\n'
            '   "arguments": {"device": "a"}}\n'
            "\n"
            "block-stream device=b \\\n"
            "    speed=1M   \n"
            "  # another\n"
            "info block \\\n"
            "  -n\n"
            "query-block",
            tmp_path,
        )
        assert sent(backend) == [
            ("block-stream", {"device": "a"}),
            ("block-stream", {"device": "b", "speed": 1 << 20}),
            ("human-monitor-command", {"command-line": "info block -n"}),
            ("query-block", {}),
        ]
        assert printed == '{}\n{}\none\ntwo\n[{"device": "\\u00e9"}]\n'

    async def test_crlf_and_byte_order_mark(self, backend: FakeBackend, tmp_path: Path) -> None:
        assert await run(backend, "\ufeffquery-block\r\nquery-block \\\r\n\r\n", tmp_path) == "[]\n[]\n"

    async def test_json_alone_costs_no_query(self, backend: FakeBackend, tmp_path: Path) -> None:
        await run(backend, '{"execute": "quit"}\n', tmp_path)
        assert backend.calls == [("quit", {})]

    async def test_server_without_introspection(self, tmp_path: Path) -> None:
        backend = FakeBackend({"block-stream": {}})
        await run(backend, "block-stream device=1 speed=2\n", tmp_path)
        assert sent(backend) == [("block-stream", {"device": 1, "speed": 2})]

    async def test_first_error_stops(self, backend: FakeBackend, tmp_path: Path) -> None:
        backend.answers["block-stream"] = CommandError("GenericError", "Cannot find device='a' nor node-name=''")
        error = await fails(backend, "\nquery-block\n\nblock-stream \\\n device=a\nquit\n", tmp_path)
        assert error == ("s:4:1: block-stream: GenericError: Cannot find device='a' nor node-name=''", 1)
        assert ("quit", {}) not in backend.calls

    async def test_hmp_error_stops(self, backend: FakeBackend, tmp_path: Path) -> None:
        backend.answers["human-monitor-command"] = "Error: Block job 'x' not found\r\n"
        assert await fails(backend, "block_job_cancel x\n", tmp_path) == (
            "s:1:1: block_job_cancel: GenericError: Block job 'x' not found",
            1,
        )

    @pytest.mark.parametrize(
        ("script", "error"),
        [
            ("query-block\n@wiat-job x ready\n", "s:2:1: unknown directive '@wiat-job'"),
            ("block-stream device\n", "s:1:14: expected key=value, found 'device'"),
            ('\n{"execute": "quit",\n"arguments": nil}', "s:3:14: invalid JSON: Expecting value"),
            (
                'query-block\n{"execute": "quit"\nquery-block\n',
                "s:2:1: the file ends, but the JSON object is not closed",
            ),
            ("query-block \\", "s:1:1: the file ends, but the line is continued by \\"),
            ("\n@wait-job x\n", "s:2:1: usage: @wait-job ID STATUS[|STATUS...] [timeout=5s]"),
            ("@wait-job x done\n", "s:1:13: 'done' is not a job status"),
            ("@wait-job x ready timeout=5x\n", "s:1:19: '5x' is not a duration such as 5s, 500ms or 2m"),
            ("@wait-event\n", "s:1:1: usage: @wait-event NAME"),
            ("@wait-event X y\n", "s:1:15: usage: @wait-event NAME"),
            ("@wait-event X \\\n  a='b\n", "s:2:5: the quoted value that begins here does not end"),
        ],
    )
    async def test_what_cannot_be_parsed(self, backend: FakeBackend, tmp_path: Path, script: str, error: str) -> None:
        message, status = await fails(backend, script, tmp_path)
        assert message.startswith(error)
        assert status == 2

    async def test_not_utf8(self, backend: FakeBackend, tmp_path: Path) -> None:
        path = tmp_path / "latin1"
        path.write_bytes(b"query-block\n# caf\xe9\n")
        runner = Runner(backend, TextOutput(io.StringIO()))
        assert await runner.run(str(path)) == ExitStatus.USAGE
        assert [str(error) for error in runner.failures] == [f"{path}:2:6: the text is not UTF-8"]
        assert sent(backend) == [("query-block", {})]

    async def test_long_script_is_streamed(self, backend: FakeBackend, tmp_path: Path) -> None:
        lines = 20_000
        printed = await run(backend, '{"execute": "query-block"}\n' * lines, tmp_path)
        assert printed == "[]\n" * lines


class TestAdvice:
    async def test_nearest_name(self, backend: FakeBackend, tmp_path: Path) -> None:
        backend.answers["query-named-block-nodes"] = [{"node-name": name, "drv": "raw"} for name in ("alpha", "beta")]
        backend.answers["query-block-jobs"] = backend.answers["query-block"] = []
        backend.answers["blockdev-del"] = CommandError("GenericError", "Failed to find node with node-name='alfa'")
        said = "s:1:1: blockdev-del: GenericError: Failed to find node with node-name='alfa'; did you mean 'alpha'?"
        assert await fails(backend, "blockdev-del node-name=alfa\n", tmp_path) == (said, 1)

    async def test_nearest_command(self, backend: FakeBackend, tmp_path: Path) -> None:
        said = "The command query-jos has not been found; did you mean 'query-jobs'?"
        assert (await fails(backend, '{"execute": "query-jos"}', tmp_path))[0].endswith(said)

    async def test_a_server_without_a_human_monitor(self, backend: FakeBackend, tmp_path: Path) -> None:
        told, _ = await fails(backend, "info block\n", tmp_path)
        assert told == "s:1:1: info: CommandNotFound: 'info' is no QMP command, and this server has no human monitor"
        with pytest.raises(ScriptError, match="'info' is no QMP command, and this server has no human monitor"):
            await run(backend, "info block\n", tmp_path, dry_run=True)

    async def test_nothing_is_asked_for_a_failure_that_is_wanted(self, backend: FakeBackend, tmp_path: Path) -> None:
        backend.answers["blockdev-del"] = CommandError("GenericError", "Failed to find node with node-name='x'")
        await run(backend, "blockdev-del node-name=x\n@error GenericError /x/\n", tmp_path)
        assert {name for name, _ in backend.calls} <= {"blockdev-del", "query-commands", "query-qmp-schema"}


class TestWaitEvent:
    async def test_an_event_that_cannot_come_is_not_waited_for(self, backend: FakeBackend, tmp_path: Path) -> None:
        told, status = await fails(backend, "@wait-event BLOCK_JOB_REDY\n", tmp_path)
        assert (status, told[:7]) == (2, "s:1:13:")
        assert told.endswith("the server has no event 'BLOCK_JOB_REDY'; did you mean 'BLOCK_JOB_READY'?")
        told, status = await fails(backend, "@wait-event BLOCK_JOB_READY devise=a\n", tmp_path)
        assert (status, told) == (2, "s:1:29: BLOCK_JOB_READY has no 'devise'; did you mean 'device'?")

    async def test_what_came_is_told_without_what_is_internal(self, backend: FakeBackend, tmp_path: Path) -> None:
        come = event("X_BLOCKMON_GRAPH_CHANGE", generation=1), event("BLOCK_JOB_READY", device="a")
        backend.answers["block-stream"] = lambda device: backend.emit(*come) or {}
        told, _ = await fails(backend, "block-stream device=a\n@wait-event BLOCK_JOB_ERROR timeout=1ms\n", tmp_path)
        assert told == "s:2:1: BLOCK_JOB_ERROR did not come within 0.001 s; came: BLOCK_JOB_READY"

    async def test_event_that_came_with_the_command(self, backend: FakeBackend, tmp_path: Path) -> None:
        backend.answers["block-stream"] = lambda device: backend.emit(event("BLOCK_JOB_READY", device=device)) or {}
        await run(backend, "block-stream device=a\nquery-block\n@wait-event BLOCK_JOB_READY device=a\n", tmp_path)

    async def test_event_that_comes_later(self, backend: FakeBackend, tmp_path: Path) -> None:
        backend.answers["block-stream"] = lambda device: (
            backend.emit_later(event("X_BLOCKMON_X", len=5, on=True, no=None)) or {}
        )
        await run(backend, "block-stream device=a\n@wait-event X_BLOCKMON_X len=5 on=true no=null\n", tmp_path)

    async def test_event_of_an_earlier_command_does_not_count(self, backend: FakeBackend, tmp_path: Path) -> None:
        backend.answers["block-stream"] = lambda device: backend.emit(event("X_BLOCKMON_X")) or {}
        script = "block-stream device=a\nblockdev-del node-name=b\n@wait-event X_BLOCKMON_X timeout=20ms\n"
        assert await fails(backend, script, tmp_path) == (
            "s:3:1: X_BLOCKMON_X did not come within 0.02 s; came: no event",
            4,
        )

    async def test_event_counts_once_and_in_any_order(self, backend: FakeBackend, tmp_path: Path) -> None:
        backend.answers["block-stream"] = lambda device: (
            backend.emit(event("X_BLOCKMON_A"), event("X_BLOCKMON_B"), event("X_BLOCKMON_A")) or {}
        )
        start = "block-stream device=a\n@wait-event X_BLOCKMON_B\n@wait-event X_BLOCKMON_A\n@wait-event X_BLOCKMON_A\n"
        await run(backend, start, tmp_path)
        message, _ = await fails(backend, start + "@wait-event X_BLOCKMON_A timeout=20ms\n", tmp_path)
        assert message == "s:5:1: X_BLOCKMON_A did not come within 0.02 s; came: no event"

    @pytest.mark.parametrize(
        "field", ["len=6", "len=5b", "on=1", "on=false", "text=yes", "in.side=2", "none=1", "len.x=5"]
    )
    async def test_other_values_do_not_match(self, backend: FakeBackend, tmp_path: Path, field: str) -> None:
        data: dict[str, Any] = {"len": 5, "on": True, "text": "no", "in": {"side": 1}}
        backend.answers["block-stream"] = lambda device: backend.emit(event("X_BLOCKMON_X", **data)) or {}
        message, status = await fails(
            backend, f"block-stream device=a\n@wait-event X_BLOCKMON_X {field} timeout=20ms\n", tmp_path
        )
        assert message == f"s:2:1: X_BLOCKMON_X {field} did not come within 0.02 s; came: X_BLOCKMON_X"
        assert status == 4

    async def test_values_inside_and_in_quotes(self, backend: FakeBackend, tmp_path: Path) -> None:
        data: dict[str, Any] = {"text": "5", "other": "a b", "in": {"side": 1}}
        backend.answers["block-stream"] = lambda device: backend.emit(event("X_BLOCKMON_X", **data)) or {}
        await run(backend, "block-stream device=a\n@wait-event X_BLOCKMON_X text=5 other='a b' in.side=1\n", tmp_path)


class TestWaitJob:
    def stream(self, backend: FakeBackend, *events: dict[str, Any], later: bool = True) -> None:
        """block-stream makes the job j, which causes *events*."""
        backend.answers["block-stream"] = lambda **_: (
            (backend.emit_later(*events, turns=20 if later else 0) if events else None) or {}
        )

    @pytest.mark.parametrize("later", [True, False])
    @pytest.mark.parametrize("wanted", ["concluded", "success", "ready|concluded", "null", "running"])
    async def test_job_that_succeeds_and_goes(
        self, backend: FakeBackend, tmp_path: Path, wanted: str, later: bool
    ) -> None:
        self.stream(
            backend,
            *job_status("j", "created", "running", "waiting", "pending"),
            event("BLOCK_JOB_COMPLETED", device="j", len=1, offset=1),
            *job_status("j", "concluded", "null"),
            later=later,
        )
        await run(backend, f"block-stream job-id=j device=a\n@wait-job j {wanted}\n", tmp_path)

    @pytest.mark.parametrize("wanted", ["concluded", "success", "ready"])
    async def test_job_that_fails_tells_its_error(self, backend: FakeBackend, tmp_path: Path, wanted: str) -> None:
        self.stream(
            backend,
            *job_status("j", "created", "running", "aborting"),
            event("BLOCK_JOB_COMPLETED", device="j", error="Input/output error"),
            *job_status("j", "concluded", "null"),
        )
        message, status = await fails(backend, f"block-stream device=a\n@wait-job j {wanted}\n", tmp_path)
        how = "ended without becoming ready" if wanted == "ready" else "failed"
        assert message == f"s:2:1: job 'j' {how}: Input/output error"
        assert status == 1

    async def test_error_of_a_job_that_stays_is_asked_for(self, backend: FakeBackend, tmp_path: Path) -> None:
        self.stream(backend, *job_status("j", "created", "running", "aborting", "concluded"))
        backend.answers["query-jobs"] = [{"id": "j", "status": "concluded", "error": "No space left on device"}]
        message, _ = await fails(backend, "block-stream device=a\n@wait-job j concluded\n", tmp_path)
        assert message == "s:2:1: job 'j' failed: No space left on device"

    async def test_failing_can_be_waited_for(self, backend: FakeBackend, tmp_path: Path) -> None:
        self.stream(backend, *job_status("j", "created", "running", "aborting", "concluded", "null"))
        await run(backend, "block-stream device=a\n@wait-job j aborting\n@wait-job j null\n", tmp_path)

    async def test_cancelled_job_is_concluded_but_no_success(self, backend: FakeBackend, tmp_path: Path) -> None:
        self.stream(
            backend,
            *job_status("j", "created", "running", "aborting"),
            event("BLOCK_JOB_CANCELLED", device="j"),
            *job_status("j", "concluded"),
        )
        backend.answers["query-jobs"] = [{"id": "j", "status": "concluded", "error": "Operation canceled"}]
        await run(backend, "block-stream device=a\n@wait-job j concluded\n", tmp_path)
        message, _ = await fails(backend, "block-stream device=a\n@wait-job j success\n", tmp_path)
        assert message == "s:2:1: job 'j' was cancelled"

    async def test_cancelled_job_that_is_gone(self, backend: FakeBackend, tmp_path: Path) -> None:
        self.stream(
            backend,
            *job_status("j", "created", "running", "aborting"),
            event("BLOCK_JOB_CANCELLED", device="j"),
            *job_status("j", "concluded", "null"),
        )
        await run(backend, "block-stream device=a\n@wait-job j concluded\n", tmp_path)
        message, _ = await fails(backend, "block-stream device=a\n@wait-job j success\n", tmp_path)
        assert message == "s:2:1: job 'j' was cancelled"

    async def test_first_wanted_state_decides(self, backend: FakeBackend, tmp_path: Path) -> None:
        """However late the wait looks: the job was ready first, and failed then."""
        self.stream(backend, *job_status("j", "created", "running", "ready", "aborting", "concluded"), later=False)
        await run(backend, "block-stream device=a\n@wait-job j ready|concluded\n", tmp_path)

    async def test_job_concluded_before_an_earlier_command(self, backend: FakeBackend, tmp_path: Path) -> None:
        self.stream(backend, *job_status("j", "created", "running", "concluded", "null"), later=False)
        await run(backend, "block-stream device=a\nblockdev-del node-name=b\n@wait-job j concluded\n", tmp_path)
        message, _ = await fails(
            backend, "block-stream device=a\nblockdev-del node-name=b\n@wait-job j running\n", tmp_path
        )
        assert message == "s:3:1: job 'j' ended without becoming running"

    async def test_second_job_of_the_same_name(self, backend: FakeBackend, tmp_path: Path) -> None:
        rounds = iter(
            [
                [*job_status("j", "created", "running", "concluded", "null")],
                [*job_status("j", "created", "running")],
            ]
        )
        backend.answers["block-stream"] = lambda **_: backend.emit(*next(rounds)) or {}
        start = "block-stream device=a\n@wait-job j concluded\nblock-stream device=a\n"
        message, _ = await fails(backend, start + "@wait-job j concluded timeout=20ms\n", tmp_path)
        assert message == "s:4:1: job 'j' did not become concluded within 0.02 s; it is running"

    async def test_job_older_than_the_script(self, backend: FakeBackend, tmp_path: Path) -> None:
        backend.answers["query-jobs"] = [{"id": "other", "status": "ready"}, {"id": "old", "status": "ready"}]
        await run(backend, "@wait-job old ready\n", tmp_path)

    async def test_no_such_job(self, backend: FakeBackend, tmp_path: Path) -> None:
        assert await fails(backend, "@wait-job nope ready\n", tmp_path) == ("s:1:1: there is no job 'nope'", 1)
