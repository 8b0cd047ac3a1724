"""Every directive on the real engine: what it does, and what is said when it is used wrongly."""

import asyncio
import io
import time
from pathlib import Path

import pytest

from blockmon.backend.embedded import EmbeddedBackend
from blockmon.exitcodes import ExitStatus
from blockmon.replay.errors import Skipped
from blockmon.replay.narration import Trace
from blockmon.replay.statements import Statement
from tests.blockmon.replay.conftest import Play

NODE = "blockdev-add driver=null-co node-name=a size=1M\n"
GONE = "GenericError /Failed to find node/"


async def good(play: Play, text: str, **options: object) -> str:
    played = await play(text, **options)
    assert (played.status, played.told) == (ExitStatus.OK, [])
    return played.out


async def bad(play: Play, text: str, **options: object) -> tuple[int, str]:
    played = await play(text, **options)
    return int(played.status), played.told[0]


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        ("@set\n", "1:1", "usage: @set NAME VALUE"),
        ("@set A\n", "1:1", "usage: @set NAME VALUE"),
        ("@set a-b c\n", "1:6", "'a-b' is no variable's name"),
        ("@echo ${A}\n", "1:7", "the variable 'A' is not set"),
        ("@set SIZE 5\n@echo é ${SIZ}\n", "2:9", "the variable 'SIZ' is not set; did you mean 'SIZE'?"),
        ("@echo ${env:BLOCKMON_NO_SUCH}\n", "1:7", "the environment has no 'BLOCKMON_NO_SUCH'"),
        ("@echo ${A\n", "1:7", "'${' is not closed by '}'"),
        ("@echo ${a b}\n", "1:7", "'a b' is no variable's name; '$${' stands for '${' itself"),
        ("@let\n", "1:1", "usage: @let NAME = $.PATH"),
        ("@let A $.x\n", "1:1", "usage: @let NAME = $.PATH"),
        ("@let A = x\n", "1:10", "expected a path such as $.member[0]"),
        ("@let A = $.x y\n", "1:13", "unexpected text behind the path"),
        ("@let A = $.x[\n", "1:13", 'expected [INDEX], ["NAME"] or [?NAME==VALUE]'),
        ("@let A = $..x\n", "1:11", "expected a member's name"),
        ("@expect\n", "1:1", "usage: @expect $.PATH"),
        ("@expect x\n", "1:9", "expected a path such as $.member[0]"),
        ("@expect $.x\n", "1:1", "usage: @expect $.PATH ==|!=|~|<|> VALUE"),
        ("@expect $.x ==\n", "1:1", "usage: @expect $.PATH ==|!=|~|<|> VALUE"),
        ("@expect $.x <= 5\n", "1:1", "usage: @expect $.PATH ==|!=|~|<|> VALUE"),
        ("@expect $.x < y\n", "1:15", "'y' is no number"),
        ("@expect $.x ~ /(/\n", "1:15", "bad regular expression: missing ), unterminated subpattern"),
        ("@expect $.x == {\n", "1:16", "invalid JSON: Expecting property name enclosed in double quotes"),
        ("@error\n", "1:1", "usage: @error CLASS /REGEX/"),
        ("@error GenericError x\n", "1:1", "usage: @error CLASS /REGEX/"),
        ("@error Generic /x/\n", "1:8", "'Generic' is no error class"),
        ("@error GenericError /a(/\n", "1:23", "bad regular expression: missing ), unterminated subpattern"),
        ("@timeout\n", "1:1", "usage: @timeout DURATION"),
        ("@timeout soon\n", "1:10", "'soon' is not a duration such as 5s, 500ms or 2m"),
        ("@sleep\n", "1:1", "usage: @sleep DURATION"),
        ("@sleep -1s\n", "1:8", "'-1s' is not a duration"),
        ("@include\n", "1:1", "usage: @include FILE"),
        ("@for\n", "1:1", "usage: @for NAME in VALUE"),
        ("@for X of a\n@end\n", "1:1", "usage: @for NAME in VALUE"),
        ("@for 1 in a\n@end\n", "1:6", "'1' is no variable's name"),
        ("  @for X in a\n", "1:3", "@for has no @end"),
        ("@repeat x\n@end\n", "1:9", "'x' is not a number of times"),
        ("@repeat 0\n@end\n", "1:9", "'0' is not a number of times"),
        ("@repeat 2\n@repeat 2\n@end\n", "1:1", "@repeat has no @end"),
        ("query-jobs\n@end\n", "2:1", "@end without @for or @repeat"),
        ("@retry 3\n", "1:1", "usage: @retry N every DURATION"),
        ("@retry 3 every x\nquery-jobs\n", "1:16", "'x' is not a duration"),
        ("@retry 3 every 1s\n@echo x\n", "1:1", "a command must follow @retry"),
        ("@retry 3 every 1s\n", "1:1", "a command must follow @retry"),
        ("@require\n", "1:1", "usage: @require command:NAME|driver:NAME|tool:NAME|remote"),
        ("@require qcow2\n", "1:10", "usage: @require command:NAME|driver:NAME|tool:NAME|remote"),
        ("@require tool:\n", "1:10", "usage: @require command:NAME|driver:NAME|tool:NAME|remote"),
        ("@mode json\n", "1:1", "usage: @mode qmp|hmp|auto"),
        ("@shell\n", "1:1", "usage: @shell COMMAND"),
        ("@shell true\n", "1:1", "@shell needs --allow-shell"),
        ("@defer\n", "1:1", "usage: @defer COMMAND"),
        ("@defer @for X in a\n", "1:8", "@for cannot be deferred"),
        ("@defer @nonsense\n", "1:8", "unknown directive '@nonsense'"),
        ("@defer  block-stream x\n", "1:22", "expected key=value, found 'x'"),
        ("@wait-event X=1\n", "1:1", "usage: @wait-event NAME"),
        ("@wait-job a\n", "1:1", "usage: @wait-job ID STATUS"),
        ("@sett A b\n", "1:1", "unknown directive '@sett'; did you mean '@set'?"),
        ("query-jobs\n----\nx\n( (re)\n", "4:1", "bad regular expression: missing ), unterminated subpattern"),
    ],
)
async def test_bad_use_is_told_with_its_place(play: Play, text: str, place: str, says: str) -> None:
    status, told = await bad(play, text)
    assert told.startswith(f"s:{place}: {says}")
    assert status == 2


class TestVariables:
    async def test_in_each_form(self, play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BLOCKMON_TEST_NAME", "env")
        text = (
            "@set N a\n@set S 2M\n@set J [1, 2]\n@set D null-co\n"
            "blockdev-add driver=null-co node-name=${N} size=${S}\n"
            '{"execute": "blockdev-add", "arguments": {"driver": "${D}", "node-name": "${env:BLOCKMON_TEST_NAME}"}}\n'
            "info block -n ${N}\n@expect $ ~ a: json:.*2097152\n"
            "query-named-block-nodes flat=true\n@expect $.length() == 2\n@expect $[?node-name==env].drv == null-co\n"
            "@echo ${J} $${N} $N ${N}${N}\n"
        )
        assert (await good(play, text)).endswith("\n[1, 2] ${N} $N aa\n")

    async def test_value_is_escaped_in_json_only(self, play: Play) -> None:
        text = """@set Q it's "x\\y\n{"execute": "blockdev-del", "arguments": {"node-name": "${Q}"}}\n"""
        says = "s:2:1: blockdev-del: GenericError: Failed to find node with node-name='it's \"x\\y'"
        assert await bad(play, text) == (1, says)
        for quote in "\"'":
            command = f"{{'execute': 'blockdev-del', 'arguments': {{'node-name': {quote}${{Q}}{quote}}}}}"
            await good(play, f"""@set Q it's "x\\y\n{command}\n@error GenericError /it's "x\\\\y'/\n""")

    async def test_quotes_keep_blanks(self, play: Play) -> None:
        assert await good(play, "@set A ' b  '\n@set B \"x\" y\n@echo [${A}] [${B}]\n") == '[ b  ] ["x" y]\n'

    async def test_places_behind_a_value_are_those_of_the_file(self, play: Play) -> None:
        text = "@set LONG aaaaaaaaaaaaaaaaaaaaaaaaa\nblock-stream device=${LONG} \\\n  job-id=${LONG} nonsense\n"
        assert await bad(play, text) == (2, "s:3:18: expected key=value, found 'nonsense'")
        # What a value brings in stands where the value does.
        assert await bad(play, "@set TWO a b\nblock-stream device=${TWO} x=1\n") == (
            2,
            "s:2:21: expected key=value, found 'b'",
        )

    async def test_from_the_command_line(self, play: Play) -> None:
        assert await good(play, "@echo ${X}\n", variables={"X": "1"}) == "1\n"

    async def test_do_not_outlive_their_script(self, play: Play, tmp_path: Path) -> None:
        played = await play("@set A 1\n")
        (tmp_path / "s").write_text("@echo ${A}\n")
        assert await played.runner.run(str(tmp_path / "s")) == ExitStatus.USAGE


LACKS = "$[0] has no member 'nothing' (file, node-name, ro, drv, backing_file_depth, encrypted, …)"


class TestAnswers:
    async def test_let_takes_text_and_json(self, play: Play) -> None:
        text = (
            "query-version\n@let M = $.qemu.major\n@let P = $.package\n@let Q = $.qemu\n"
            "@let R = $[\"qemu\"]['minor']\n@echo ${M} ${P} ${Q} ${R}\n"
        )
        assert (await good(play, text)).splitlines()[1] == '7 blockmon {"major": 7, "minor": 2, "micro": 22} 2'

    async def test_let_of_nothing(self, play: Play) -> None:
        lacks = "s:2:1: $.qemu has no member 'none' (major, minor, micro)"
        assert await bad(play, "query-version\n@let M = $.qemu.none[0]\n") == (1, lacks)
        assert await bad(play, "query-jobs\n@let M = $[-1]\n") == (1, "s:2:1: $ has no elements, so there is no [-1]")
        assert await bad(play, "@let M = $\n") == (1, "s:1:1: there is no answer yet")

    @pytest.mark.parametrize(
        "holds",
        [
            "$[0].node-name == a",
            "$[-1].node-name == 'a'",
            '$[0]["node-name"] == "a"',
            "$[?node-name==a].image.virtual-size == 1048576",
            "$[?image.virtual-size==1048576].drv == null-co",
            "$[0].image.virtual-size > 1023k",
            "$[0].image.virtual-size < 1.5M",
            "$[0].node-name != b",
            "$[0].ro == false",
            "$[0].ro != 0",
            "$[0].cache.writeback == true",
            '$[0].cache == {"direct": false, "writeback": true, "no-flush": false}',
            "$.length() == 1",
            "$[0].nothing == null",
            "$[5] == null",
            "$[0].node-name ~ ^[ab]$",
            '$[0].cache ~ /"direct": (false|x)/',
        ],
    )
    async def test_expect(self, play: Play, holds: str) -> None:
        await good(play, f"{NODE}query-named-block-nodes\n@expect {holds}\n")

    @pytest.mark.parametrize(
        ("fails", "says"),
        [
            ("$[0].node-name == b", '$[0].node-name is "a", expected == b'),
            ("$[0].node-name != a", '$[0].node-name is "a", expected != a'),
            ("$[0].ro == 0", "$[0].ro is false, expected == 0"),
            ("$[0].ro == null", "$[0].ro is false, expected == null"),
            ("$[0].image.virtual-size > 1M", "$[0].image.virtual-size is 1048576, expected > 1M"),
            ("$[0].node-name < 5", '"a" is no number, expected < 5'),
            ("$[0].nothing != a", f"{LACKS}, expected $[0].nothing != a"),
            ("$[0].nothing != null", f"{LACKS}, expected $[0].nothing != null"),
            (
                "$[?node-name==b].ro == false",
                "$ has no element whose node-name is b, expected $[?node-name==b].ro == false",
            ),
            ("$[0].node-name ~ b", '$[0].node-name is "a", expected ~ b'),
        ],
    )
    async def test_expect_fails(self, play: Play, fails: str, says: str) -> None:
        assert await bad(play, f"{NODE}query-named-block-nodes\n@expect {fails}\n") == (1, f"s:3:1: {says}")

    async def test_expected_text(self, play: Play) -> None:
        text = (
            f'{NODE}----\n{{}}\n\nquery-named-block-nodes\n----\n[\n...\n    "node-name": "a",   \n...\n'
            '    "image": {\n...\n      "virtual-size": \\d+ (re)\n    },\n'
            '    "cache": {*"direct": false*}, (glob)\n...\n]\n\n'
            "info block\n----\n"
        )
        played = await play(text)
        assert played.told == []

    async def test_unexpected_text_shows_what_differs(self, play: Play) -> None:
        text = f"{NODE}info block -n\n----\na: json:* (glob)\n    Cache mode:       writethrough\n"
        status, told = await bad(play, text)
        assert status == 1
        assert told == (
            "s:3:1: the answer is not the expected one\n     a: json:* (glob)\n"
            "    -    Cache mode:       writethrough\n    +    Cache mode:       writeback"
        )

    async def test_expected_text_without_an_answer(self, play: Play) -> None:
        assert await bad(play, "----\nx\n") == (1, "s:1:1: there is no answer yet")


class TestError:
    async def test_of_each_form(self, play: Play) -> None:
        text = (
            f"blockdev-del node-name=x\n@error {GONE}\n"
            '{"execute": "nope"}\n# in between\n\n@error CommandNotFound /^The command nope has/\n'
            "nonsense\n@error CommandNotFound /unknown command: 'nonsense'/\n"
            "drive_del x\n@error GenericError /Device 'x' not found/\n@expect $.class == GenericError\n"
            "block_job_cancel x/y\n@error GenericError /x\\/y/\n"
        )
        assert await good(play, text) == ""

    @pytest.mark.parametrize(
        ("error", "says"),
        [
            ("@error DeviceNotFound /x/", "s:2:1: the error is of class GenericError, expected DeviceNotFound: Failed"),
            (
                "@error GenericError /other/",
                "s:2:1: the error is 'Failed to find node with node-name='x'', expected /o",
            ),
            ("@echo on", "s:1:1: blockdev-del: GenericError: Failed to find node with node-name='x'"),
            ("query-jobs", "s:1:1: blockdev-del: GenericError: Failed to find node with node-name='x'"),
            ("", "s:1:1: blockdev-del: GenericError: Failed to find node with node-name='x'"),
        ],
    )
    async def test_any_other_failure_ends_the_run(self, play: Play, error: str, says: str) -> None:
        played = await play(f"blockdev-del node-name=x\n{error}\n@echo here\n")
        assert played.told[0].startswith(says)
        assert (played.status, played.out) == (1, "")

    async def test_success_is_a_failure(self, play: Play) -> None:
        assert await bad(play, f"query-jobs\n@error {GONE}\n") == (1, "s:2:1: the command in front did not fail")
        # Only of the command right in front.
        text = f"blockdev-del node-name=x\n@error {GONE}\n@error {GONE}\n"
        assert await bad(play, text) == (1, "s:3:1: the command in front did not fail")


class TestLoops:
    async def test_for(self, play: Play) -> None:
        text = '@for X in a "b c" [1, "d", {"e": null}] -1..1 k=v\n@echo <${X}>\n@end\n@echo ${X}\n'
        assert (await good(play, text)).split("\n") == [
            *("<a>", "<b c>", "<1>", "<d>", '<{"e": null}>', "<-1>", "<0>", "<1>", "<k=v>", "k=v", ""),
        ]

    async def test_nested(self, play: Play) -> None:
        text = "@for X in a b\n@repeat 2\n@for Y in 1 2\n@echo ${X}${Y}\n@end\n@end\n@end\n@for X in\n@echo no\n@end\n"
        assert await good(play, text) == "a1\na2\na1\na2\nb1\nb2\nb1\nb2\n"

    async def test_over_an_answer(self, play: Play) -> None:
        text = NODE + "query-version\n@let Q = $.qemu.major\n@repeat ${Q}\nquery-jobs\n@end\n"
        assert (await good(play, text)).count("[]\n") == 7

    async def test_failure_inside_has_its_own_place(self, play: Play) -> None:
        text = "@for X in a b\n  blockdev-del node-name=${X}\n@end\n@echo no\n"
        assert await bad(play, text) == (1, "s:2:3: blockdev-del: GenericError: Failed to find node with node-name='a'")

    async def test_error_of_the_last_command_inside(self, play: Play) -> None:
        await good(play, f"@repeat 3\nblockdev-del node-name=x\n@error {GONE}\n@end\n@echo on\n")


class TestInclude:
    async def test_relative_to_the_file_it_stands_in(self, play: Play, tmp_path: Path) -> None:
        (tmp_path / "in side").mkdir()
        (tmp_path / "in side/one").write_text("@echo one ${A}\n@set B 2\n@include two\n@mode hmp\n")
        (tmp_path / "in side/two").write_text("@echo two\n")
        assert await good(play, '@set A 1\n@include "in side/one"\n@echo ${B}\nquery-jobs\n') == "one 1\ntwo\n2\n[]\n"

    async def test_failure_names_the_included_file(self, play: Play, tmp_path: Path) -> None:
        (tmp_path / "x").write_text("\nblockdev-del node-name=q\n")
        assert (await bad(play, "@include x\n"))[1].startswith("x:2:1: blockdev-del: ")

    async def test_mode_is_each_files_own(self, play: Play, tmp_path: Path) -> None:
        (tmp_path / "x").write_text("query-jobs\n")
        assert await good(play, "@mode hmp\n@include x\n") == "[]\n"

    async def test_cycle(self, play: Play, tmp_path: Path) -> None:
        (tmp_path / "x").write_text("@include y\n")
        (tmp_path / "y").write_text("@include ./s\n")
        status, told = await bad(play, "@include x\n")
        assert (status, told) == (2, "y:1:10: ./s includes itself")

    async def test_too_deep(self, play: Play, tmp_path: Path) -> None:
        for number in range(70):
            (tmp_path / f"f{number}").write_text(f"@include f{number + 1}\n")
        assert await bad(play, "@include f0\n") == (2, "f62:1:10: more than 64 files include one another")

    async def test_missing_file_and_folder(self, play: Play, tmp_path: Path) -> None:
        assert await bad(play, "@include no\n") == (2, "s:1:10: no: No such file or directory")
        assert await bad(play, "@include .\n") == (2, "s:1:10: .: Is a directory")


class TestRetry:
    async def test_until_it_is_so(self, play: Play) -> None:
        """A job that ends by itself goes away some time."""
        text = (
            f"{NODE}blockdev-add driver=null-co node-name=b size=1M\n"
            "blockdev-mirror job-id=j device=a target=b sync=full\n"
            "@retry 200 every 10ms\nquery-jobs\n@expect $[0].status == ready\n@let ID = $[0].id\n"
            "block-job-cancel device=${ID}\n@retry 200 every 10ms\nquery-jobs\n----\n[]\n"
        )
        out = await good(play, text)
        assert out.count('"ready"') == 1
        assert '"running"' not in out
        assert out.endswith("{}\n[]\n")

    async def test_commands_that_fail_are_tried_again(self, play: Play) -> None:
        text = f"@retry 3 every 1ms\nblockdev-del node-name=x\n@error {GONE}\n@echo on\n"
        assert await good(play, text) == "on\n"
        status, told = await bad(play, "@retry 3 every 1ms\nblockdev-del node-name=x\n@echo on\n")
        assert (status, told) == (
            1,
            "s:2:1: blockdev-del: GenericError: Failed to find node with node-name='x' (tried 3 times)",
        )

    async def test_last_failure_is_told_and_its_answer_printed_once(self, play: Play) -> None:
        played = await play("@retry 3 every 1ms\nquery-jobs\n@expect $.length() == 1\n@echo no\n")
        assert (played.out, played.told) == ("[]\n", ["s:3:1: $.length() is 0, expected == 1 (tried 3 times)"])

    async def test_pauses_between(self, play: Play) -> None:
        start = time.monotonic()
        await play("@retry 4 every 50ms\nquery-jobs\n@expect $.length() == 1\n")
        assert 0.15 <= time.monotonic() - start < 5


class TestRequire:
    async def test_everything_is_there(self, play: Play) -> None:
        text = "@require command:blockdev-add driver:qcow2 tool:sh\n@require driver:null-co\n@echo on\n"
        assert await good(play, text) == "on\n"
        assert await good(play, "@require remote\n@echo on\n", remote=True) == "on\n"

    @pytest.mark.parametrize(
        ("what", "why"),
        [
            ("command:nope", "the server has no command 'nope'"),
            ("driver:nope", "the server has no block driver 'nope'"),
            ("tool:blockmon-no-such-tool", "there is no program 'blockmon-no-such-tool'"),
            ("remote", "the engine is not remote"),
        ],
    )
    async def test_something_is_missing(self, play: Play, what: str, why: str, tmp_path: Path) -> None:
        (tmp_path / "x").write_text(f"@require tool:sh {what}\n@echo no\n")
        with pytest.raises(Skipped, match=why):
            await play("@include x\n@echo no\n")


class TestMode:
    async def test_decides_where_the_first_word_does_not(self, play: Play) -> None:
        text = (
            "@mode qmp\ninfo a=1\n@error CommandNotFound /The command info/\nhmp info block\n"
            '@mode hmp\nquery-jobs\n@error CommandNotFound /unknown/\nqmp query-jobs\n{"execute": "query-jobs"}\n'
            "@mode auto\nquery-jobs\n"
        )
        assert await good(play, text) == "[]\n[]\n[]\n"

    async def test_places_stay(self, play: Play) -> None:
        assert await bad(play, "@mode qmp\n  block-stream x\n") == (2, "s:2:16: expected key=value, found 'x'")


class TestShell:
    async def test_output_is_an_answer(self, play: Play) -> None:
        text = '@set Q a  b\n@shell echo "$Q"; echo c\n----\na  b\nc\n\n@let X = $\n@expect $ == "a  b\\nc"\n'
        assert await good(play, text, allow_shell=True) == "a  b\nc\n"

    async def test_fails(self, play: Play) -> None:
        assert await bad(play, "@shell exit 3\n", allow_shell=True) == (1, "s:1:1: @shell exit 3: exit status 3")
        assert (await bad(play, "@shell kill -9 $$\n", allow_shell=True))[1].endswith("killed by SIGKILL")


class TestDefer:
    async def test_last_one_first_whatever_happens(self, play: Play) -> None:
        text = (
            f"@set X a\n{NODE}@defer blockdev-del node-name=${{X}}\n@set X other\n@defer @echo two\n"
            '@defer {"execute":\n  "query-jobs"}\n@echo $${X}\nblockdev-del node-name=q\n@defer @echo no\n'
        )
        played = await play(text)
        assert played.told == [
            "s:9:1: blockdev-del: GenericError: Failed to find node with node-name='q'; there is only 'a'"
        ]
        assert played.out == "{}\n${X}\n[]\ntwo\n{}\n"
        assert await good(play, "query-named-block-nodes\n") == "[]\n"

    async def test_failure_is_told_and_the_others_run(self, play: Play) -> None:
        played = await play("@defer @echo one\n@defer blockdev-del node-name=q\n@echo on\n")
        assert played.out == "on\none\n"
        assert played.told == ["s:2:8: blockdev-del: GenericError: Failed to find node with node-name='q'"]
        assert played.status == 1

    async def test_variables_are_put_in_once(self, play: Play) -> None:
        assert await good(play, "@set Y $${X}\n@defer @echo ${Y}\n@defer @echo $${Z}\n") == "${Z}\n${X}\n"

    async def test_interrupted(self, play: Play, engine: EmbeddedBackend) -> None:
        waits = asyncio.Event()

        class Seen(Trace):
            def on_statement(self, statement: Statement) -> None:
                if statement.directive == "wait-event":
                    waits.set()

        task = asyncio.ensure_future(
            play(f"{NODE}@defer blockdev-del node-name=a\n@wait-event STOP\n", observer=Seen(io.StringIO()))
        )
        await waits.wait()
        assert len(await engine.execute("query-named-block-nodes")) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not await engine.execute("query-named-block-nodes")


class TestWaits:
    async def test_timeout_is_the_default_of_both(self, play: Play) -> None:
        text = f"@timeout 30ms\n{NODE}@wait-event STOP\n"
        status, told = await bad(play, text)
        assert status == 4
        assert told.startswith("s:3:1: STOP did not come within 0.03 s")
        text = (
            "blockdev-add driver=null-co node-name=b size=1G\nblockdev-add driver=null-co node-name=c size=1G\n"
            "blockdev-mirror job-id=j device=b target=c sync=full speed=1\n@timeout 30ms\n@wait-job j ready\n"
        )
        status, told = await bad(play, text)
        assert (status, told) == (4, "s:5:1: job 'j' did not become ready within 0.03 s; it is running")
        await good(play, "block-job-cancel device=j force=true\n@wait-job j null\n")

    async def test_events_of_the_last_of_many_commands(self, play: Play) -> None:
        """Commands go to the engine together; a wait sees what came from the last one on, and nothing else."""
        text = (
            f"{NODE}blockdev-add driver=null-co node-name=b size=1M\nquery-jobs\n"
            "blockdev-mirror job-id=j device=a target=b sync=none\n@wait-event JOB_STATUS_CHANGE id=j status=ready\n"
            "query-jobs\nquery-jobs\n@wait-event JOB_STATUS_CHANGE id=j status=running timeout=1s\n"
            "job-complete id=j\n@wait-job j success\n@wait-event BLOCK_JOB_COMPLETED device=j\n"
            "query-jobs\nblockdev-del node-name=a\nquery-jobs\n"
        )
        await good(play, text)
        assert (await bad(play, "@wait-event JOB_STATUS_CHANGE timeout=20ms\n"))[0] == 4

    async def test_events_of_an_earlier_command_of_many_do_not_count(self, play: Play) -> None:
        text = (
            f"{NODE}blockdev-add driver=null-co node-name=b size=1M\n"
            "blockdev-mirror job-id=j device=a target=b sync=none\n"
            "blockdev-add driver=null-co node-name=c\nquery-jobs\n"
            "@wait-event JOB_STATUS_CHANGE id=j status=created timeout=50ms\n"
        )
        assert (await bad(play, text))[0] == 4

    async def test_failed_job_is_no_timeout(self, play: Play, tmp_path: Path) -> None:
        text = (
            f"{NODE}blockdev-add driver=blkdebug node-name=e image=a "
            'inject-error=[{"event": "none", "iotype": "read", "errno": 5}]\n'
            "blockdev-add driver=null-co node-name=b size=1M\n"
            "blockdev-backup job-id=j device=e target=b sync=full\n@wait-job j success\n"
        )
        assert await bad(play, text) == (1, "s:5:1: job 'j' failed: Input/output error")


async def test_sleep_is_scaled(play: Play) -> None:
    start = time.monotonic()
    await good(play, "@sleep 30s\n", speed=1000.0)
    assert 0.02 < time.monotonic() - start < 10
