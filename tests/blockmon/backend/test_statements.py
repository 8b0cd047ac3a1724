"""Commands as lines of a command file, read back by the real language and the real schema."""

import asyncio
from typing import Any

import pytest

from blockmon.backend.embedded import EmbeddedBackend
from blockmon.backend.statements import error_pattern, fails_again, statement, with_variables, without_secrets
from blockmon.lang import ParsedHMP, ParsedQMP, Schema, parse_input
from blockmon.options import CommonOptions
from blockmon.replay.variables import expand

HMP = "human-monitor-command"

COMMANDS: list[tuple[str, dict[str, Any], str | None]] = [
    ("stop", {}, "stop"),
    ("job-cancel", {"id": "j0"}, "job-cancel id=j0"),
    (
        "blockdev-add",
        {"driver": "qcow2", "node-name": "n0", "file": {"driver": "file", "filename": "/a.qcow2"}, "backing": None},
        "blockdev-add driver=qcow2 node-name=n0 file.driver=file file.filename=/a.qcow2 backing=null",
    ),
    (
        "blockdev-add",
        {"driver": "file", "filename": "/with blanks/'and\"quotes.raw", "locking": "off", "node-name": "f"},
        'blockdev-add driver=file filename="/with blanks/\'and\\"quotes.raw" locking="off" node-name=f',
    ),
    # What looks like a number, a word of another type or a variable stays a string.
    (
        "nbd-server-start",
        {"addr": {"type": "inet", "data": {"host": "0.0.0.0", "port": "10809"}}},
        'nbd-server-start addr.type=inet addr.data.host="0.0.0.0" addr.data.port="10809"',
    ),
    ("block-export-del", {"id": "true", "mode": "hard"}, 'block-export-del id="true" mode=hard'),
    ("job-cancel", {"id": "a${b}"}, 'job-cancel id="a$${b}"'),
    ("blockdev-add", {"driver": "null-co", "size": 4096, "read-zeroes": True}, None),
    ("blockdev-add", {"driver": "raw", "file": "json:{}", "node-name": "r"}, None),
    ("blockdev-add", {"driver": "quorum", "children": ["a", "b"], "vote-threshold": 2}, None),
    ("blockdev-add", {"driver": "raw", "file": "null"}, 'blockdev-add driver=raw file="null"'),
    ("blockdev-add", {"driver": "raw", "file": ""}, 'blockdev-add driver=raw file=""'),
    ("qom-set", {"path": "/objects/a", "property": "p", "value": 0.5}, None),
    ("qom-set", {"path": "/objects/a", "property": "p", "value": {"1": 2, "b.c": [None]}}, None),
    ("transaction", {"actions": [{"type": "abort", "data": {}}], "properties": {}}, None),
    ("blockdev-add", {"driver": "file", "filename": "/" + "x" * 200}, None),
    ("blockdev-add", {"driver": "file", "filename": "/a\nb\udc80\\"}, None),
    ("no such command", {"a": 1}, '{"execute": "no such command", "arguments": {"a": 1}}'),
    (HMP, {"command-line": 'qemu-io n "write -P 1 0 64k"'}, 'qemu-io n "write -P 1 0 64k"'),
    (HMP, {"command-line": "  commit all "}, "commit all"),
    (HMP, {"command-line": "stop"}, "hmp stop"),
    (HMP, {"command-line": "block_resize n 1M"}, "block_resize n 1M"),
    (HMP, {"command-line": "block_resize n=1 1M"}, "hmp block_resize n=1 1M"),
    (HMP, {"command-line": "qom-set /a b c"}, "hmp qom-set /a b c"),
    (HMP, {"command-line": "qemu-io n ${x}"}, "qemu-io n $${x}"),
    (HMP, {"command-line": "@echo"}, "hmp @echo"),
    (HMP, {"command-line": "hmp stop"}, "hmp hmp stop"),
    (HMP, {"command-line": "stop", "cpu-index": 0}, "human-monitor-command command-line=stop cpu-index=0"),
    (HMP, {"command-line": "a\nb"}, 'human-monitor-command command-line="a\\nb"'),
    (HMP, {"command-line": "a \\"}, 'human-monitor-command command-line="a \\\\"'),
    (HMP, {"command-line": ""}, 'human-monitor-command command-line=""'),
]


@pytest.fixture(scope="module")
def schema() -> Schema:
    async def ask() -> Schema:
        backend = EmbeddedBackend(CommonOptions())
        await backend.start()
        try:
            return Schema(await backend.execute("query-qmp-schema"))
        finally:
            await backend.close()

    return asyncio.run(ask())


@pytest.mark.parametrize(("command", "arguments", "line"), COMMANDS, ids=[str(n) for n in range(len(COMMANDS))])
def test_a_line_says_what_was_done(command: str, arguments: dict[str, Any], line: str | None, schema: Schema) -> None:
    written = statement(command, arguments)

    assert line is None or written == line
    assert "\n" not in written
    read = parse_input(expand(written, {}).text, schema.commands, schema.arguments_of)
    if isinstance(read, ParsedHMP):
        assert (command, arguments) == (HMP, {"command-line": read.line}) or read.line == arguments[
            "command-line"
        ].strip()
    else:
        assert isinstance(read, ParsedQMP)
        assert (read.command, read.arguments) == (command, arguments)


@pytest.mark.parametrize(
    ("command", "arguments", "secret", "line"),
    [
        (
            "object-add",
            {"qom-type": "secret", "id": "sec-0", "data": "letmein"},
            "letmein",
            '{"execute": "object-add", "arguments": {"qom-type": "secret", "id": "sec-0", '
            '"data": "${env:BLOCKMON_SECRET_SEC_0}"}}',
        ),
        ("object-add", {"qom-type": "secret", "id": "s", "props": {"data": "letmein"}}, "letmein", None),
        (HMP, {"command-line": "object_add secret,id=s,data=let,,me,format=raw"}, "let,,me", None),
        (HMP, {"command-line": "object_add qom-type=secret,data=letmein,id=s"}, "letmein", None),
        ("blockdev-add", {"driver": "https", "url": "https://me:letmein@host/a"}, "letmein", None),
        (HMP, {"command-line": "drive_add 0 file=https://me:letmein@host/a"}, "letmein", None),
        ("set_password", {"protocol": "vnc", "password": "letmein"}, "letmein", None),
        ("qom-set", {"path": "/objects/s", "property": "data", "value": "letmein"}, "letmein", None),
    ],
)
def test_secrets_become_variables(
    command: str, arguments: dict[str, Any], secret: str, line: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleaned, variables = without_secrets(command, arguments)
    written = with_variables(statement(command, cleaned))

    assert secret not in written
    assert line is None or written == line
    [(variable, what)] = variables
    assert secret not in what
    monkeypatch.setenv(variable, secret)
    read = parse_input(expand(written, {}).text, {command})
    said = {"command-line": read.line} if isinstance(read, ParsedHMP) else getattr(read, "arguments", None)
    assert said == arguments


def test_what_is_no_secret_stays() -> None:
    commands: list[tuple[str, dict[str, Any]]] = [
        ("object-add", {"qom-type": "throttle-group", "id": "g", "limits": {"iops-total": 5}}),
        (HMP, {"command-line": "object_add throttle-group,id=g"}),
        ("blockdev-add", {"driver": "luks", "key-secret": "s", "file": "f"}),
        ("blockdev-add", {"driver": "https", "url": "https://host:443/a@b"}),
    ]
    for command, arguments in commands:
        assert without_secrets(command, arguments) == (arguments, [])


def test_failures_that_a_replay_meets_again() -> None:
    assert fails_again("blockdev-add", {}, "GenericError", "Could not open '/x': No such file or directory")
    assert fails_again(HMP, {"command-line": "qemu-io a read"}, "GenericError", "read failed: Input/output error")
    assert not fails_again("job-complete", {}, "GenericError", "Job not found")
    assert not fails_again(HMP, {"command-line": "block_job_cancel a"}, "GenericError", "none")
    assert not fails_again("frobnicate", {}, "CommandNotFound", "The command frobnicate has not been found")
    assert not fails_again("job-dismiss", {}, "GenericError", "Parameter 'id' is missing")
    assert not fails_again("blockdev-del", {}, "GenericError", "Parameter 'x' is unexpected")


def test_an_error_pattern_is_the_text_but_for_made_up_names() -> None:
    assert error_pattern("a/b (c) #block123 is.") == r"/a\/b \(c\) #block[0-9]+ is\./"
