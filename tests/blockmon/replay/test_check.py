"""--dry-run: everything wrong is found, with its place, and nothing is executed."""

from pathlib import Path

import pytest

from blockmon.backend.embedded import EmbeddedBackend
from blockmon.exitcodes import ExitStatus
from blockmon.replay.errors import Skipped
from tests.blockmon.replay.conftest import Play


async def check(play: Play, text: str, **options: object) -> list[str]:
    played = await play(text, dry_run=True, **options)
    assert played.out == ""
    assert played.status == (ExitStatus.USAGE if played.told else ExitStatus.OK)
    return played.told


@pytest.mark.parametrize(
    ("command", "column", "says"),
    [
        ("block-stream", 1, "Parameter 'device' is missing"),
        ("block-stream device=a spede=5", 23, "Parameter 'spede' is unexpected"),
        ("block-stream device=a speed=x", 29, "Invalid parameter type for 'speed', expected: integer"),
        ("block-stream device=a on-error=dance", 32, "Parameter 'on-error' does not accept value 'dance'"),
        ("block-stream device=a auto-finalize=7", 37, "Invalid parameter type for 'auto-finalize', expected: boolean"),
        ("blockdev-add driver=qcow9", 21, "Parameter 'driver' does not accept value 'qcow9'; did you mean 'qcow'?"),
        ("blockdev-add driver=qcow2", 1, "Parameter 'file' is missing"),
        ("blockdev-add driver=null-co filename=x", 29, "Parameter 'filename' is unexpected"),
        ("blockdev-add driver=qcow2 file.driver=file", 27, "Parameter 'file.filename' is missing"),
        ("blockdev-add driver=qcow2 file=x backing={}", 34, "Parameter 'backing.driver' is missing"),
        (
            'blockdev-add driver=raw file={"driver": "file", "filename": 5}',
            61,
            "Invalid parameter type for 'file.filename'",
        ),
        ("transaction actions=[5]", 22, "Invalid parameter type for 'actions.0', expected: object"),
        ("blockdev-addd driver=x", 1, "unknown command: 'blockdev-addd'; did you mean 'blockdev-add'?"),
        ("qmp blockdev-addd driver=x", 5, "The command blockdev-addd has not been found"),
        ("infoo block", 1, "unknown command: 'infoo'; did you mean 'info'?"),
        ("info  blok", 7, "unknown command: 'info blok'; did you mean 'block'?"),
        ("block-stream device=a spead=5", 23, "Parameter 'spead' is unexpected; did you mean 'speed'?"),
        ('{"execute": "block-strem"}', 13, "The command block-strem has not been found; did you mean 'block-stream'?"),
        ("@wait-event JOB_STATUS_CHANG", 13, "the server has no event 'JOB_STATUS_CHANG'; did you mean 'JOB_STATUS"),
        ("@wait-event block-job-ready", 13, "the server has no event 'block-job-ready'; did you mean 'BLOCK_JOB_READY"),
        ("@wait-event JOB_STATUS_CHANGE idd=j", 31, "JOB_STATUS_CHANGE has no 'idd'; did you mean 'id'?"),
        ('{"execute": "nope"}', 13, "The command nope has not been found"),
        ('{"execute": "block-stream", "arguments": {"device": 5}}', 53, "Invalid parameter type for 'device'"),
        (
            '{"execute": "block-stream", "arguments": {"device": "x", "no": {"y": 1}}}',
            58,
            "Parameter 'no' is unexpected",
        ),
        ("{'execute': 'block-stream', 'arguments': {'device': null}}", 53, "Invalid parameter type for 'device'"),
    ],
)
async def test_what_does_not_fit_the_schema(play: Play, command: str, column: int, says: str) -> None:
    found = await check(play, f"query-jobs\n{' ' * 2}{command}\n")
    assert found[0].startswith(f"s:2:{column + 2}: {says}")


async def test_place_in_json_over_lines(play: Play) -> None:
    text = (
        '{"execute": "blockdev-add",\n "arguments": {"driver": "qcow2", "node-name": "a",\n'
        '   "file": {"driver":\n    7}}}\n'
    )
    found = await check(play, text)
    assert found[0] == "s:4:5: Invalid parameter type for 'file.driver', expected: string"


async def test_what_only_a_run_can_tell_is_no_mistake(play: Play) -> None:
    text = "query-version\n@let A = $.package\n@wait-event ${A}\n@wait-event X_BLOCKMON_ANY x=1\ninfo ${A}\ninfo\n"
    text += "@wait-event JOB_STATUS_CHANGE id=j status=concluded\ninfo block-jobs\n"
    assert await check(play, text) == []


async def test_good_commands(play: Play, engine: EmbeddedBackend) -> None:
    text = (
        "blockdev-add driver=qcow2 node-name=a file.driver=file file.filename=x backing=null cache.direct=on\n"
        "blockdev-add driver=qcow2 node-name=b file=x l2-cache-size=1M\n"
        'transaction actions=[{"type":"blockdev-snapshot","data":{"node":"a","overlay":"b"}}]\n'
        "nbd-server-start addr.type=unix addr.data.path=/x\n"
        "block_resize a 5\ninfo block\nqmp_capabilities\nquit\n"
        '{"execute": "human-monitor-command", "arguments": {"command-line": "x"}}\n'
    )
    assert await check(play, text) == []
    assert await engine.execute("query-named-block-nodes") == []
    assert await engine.execute("query-version")  # quit was not executed


async def test_everything_is_found(play: Play) -> None:
    text = "block-stream\nblock-stream x\n@nonsense\n@let A = $.\n@echo ${B}\nblock-stream a=1\n{"
    assert [line.split(": ")[0] for line in await check(play, text)] == [
        *("s:1:1", "s:2:14", "s:3:1", "s:4:11", "s:5:7", "s:6:14", "s:6:1", "s:7:1"),
    ]


async def test_what_has_to_fail_may(play: Play) -> None:
    assert (
        await check(play, "block-stream\n@error GenericError /missing/\nnope\n# so\n@error CommandNotFound /x/\n") == []
    )
    assert await check(play, "block-stream\n@echo x\n@error GenericError /missing/\n") == [
        "s:1:1: Parameter 'device' is missing"
    ]


async def test_values_known_in_a_run_only(play: Play) -> None:
    text = (
        "query-jobs\n@let X = $[0].id\n@let N = $[0].len\nblock-stream device=${X} speed=${N} on-error=${X}\n"
        '{"execute": "block-stream", "arguments": {"device": "a${X}", "speed": ${N}}}\nblockdev-add driver=${X} a=1\n'
        "@repeat ${N}\n@sleep ${X}\n@end\n@for Y in ${X} b\nblock-stream device=${Y}\n@end\n@wait-job ${X} ${X}\n"
        "@include ${X}\n@expect $.x < ${N}\n@retry ${N} every ${X}\nquery-jobs\n@timeout ${N}\n"
        "@defer job-cancel id=${X}\n"
    )
    found = await check(play, text)
    assert [line for line in found if "s:6:" not in line] == []
    assert await check(play, "query-jobs\n@let X = $\nblock-stream device=${X} speed=a no=${X}\n") == [
        "s:3:32: Invalid parameter type for 'speed', expected: integer",
        "s:3:34: Parameter 'no' is unexpected",
    ]


async def test_loops_and_other_files(play: Play, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("block-stream\n")
    text = "@for D in null-co nope\nblockdev-add driver=${D}\n@end\n"
    text += "@repeat 1000000000\nblock-stream\n@end\n@for X in a b\njob-cancel\n@end\n@include x\n@include no\n"
    assert await check(play, text) == [
        "s:2:21: Parameter 'driver' does not accept value 'nope'",
        "s:5:1: Parameter 'device' is missing",
        "s:8:1: Parameter 'id' is missing",
        "x:1:1: Parameter 'device' is missing",
        "s:11:10: no: No such file or directory",
    ]


async def test_nothing_is_done(play: Play, tmp_path: Path) -> None:
    text = f"@shell touch {tmp_path}/x\n@sleep 100s\n@wait-event STOP\n@defer block-stream\n@defer @echo no\n@echo no\n"
    text += "@retry 1000 every 10s\nquery-jobs\n@expect $ == 1\n----\nx\n"
    assert await check(play, text, allow_shell=True) == ["s:4:8: Parameter 'device' is missing"]
    assert not (tmp_path / "x").exists()


async def test_requirement_ends_the_check(play: Play) -> None:
    with pytest.raises(Skipped):
        await check(play, "@require driver:nope\nnonsense\n")
