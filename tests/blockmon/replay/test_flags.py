"""`blockmon run` as a program: its flags, its exit statuses, terminals, signals and pipes."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]
BLOCKMON = [sys.executable, "-m", "blockmon", "run"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a command file's text, as the file "s" of its folder, in a process of its own."""

    def start(text: "str | bytes", *args: str, **options: object) -> "subprocess.CompletedProcess[str]":
        (tmp_path / "s").write_bytes(text if isinstance(text, bytes) else text.encode())
        given = {"capture_output": True, "stdin": subprocess.DEVNULL, **options}
        return subprocess.run(
            [*BLOCKMON, *args, "s"],
            cwd=tmp_path,
            text=True,
            timeout=60,
            check=False,
            **given,  # type: ignore[call-overload]
        )

    return start


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("query-jobs\n", 0),
        ("", 0),
        ("blockdev-del node-name=x\n", 1),
        ("query-jobs\n@expect $ == 1\n", 1),
        ("@nonsense\n", 2),
        ("@wait-event STOP timeout=1ms\n", 4),
        ("@require remote\n", 77),
    ],
)
def test_exit_status(run: Run, text: str, status: int) -> None:
    assert run(text).returncode == status


def test_image_that_cannot_be_opened(run: Run, tmp_path: Path) -> None:
    failed = run("query-jobs\n", "--blockdev", "driver=file,node-name=a,filename=/no/such")
    assert (failed.returncode, failed.stdout) == (3, "")
    # A check needs no images.
    assert run("query-jobs\n", "--dry-run", "--blockdev", "driver=file,node-name=a,filename=/no/such").returncode == 0


def test_check_executes_nothing(run: Run, tmp_path: Path) -> None:
    done = run("block-stream\n@shell touch x\n@echo no\n", "--dry-run", "--allow-shell")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "s:1:1: Parameter 'device' is missing\n")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("text", "status", "says"),
    [
        (b"\x7fELF\x02\x00\x01", 2, "s:1:6: this is no text file"),
        (b"query-jobs\n\xff\xfe\n", 2, "s:2:1: the text is not UTF-8"),
        (b"\xff\xfeq\x00u\x00", 2, "s:1:4: this is no text file"),
        (b'{"execute": "query-jobs', 2, "s:1:1: the file ends, but the JSON object is not closed"),
        (b'{"execute": "query-jobs}\n', 2, "s:1:13: invalid JSON: the string that begins here does not end"),
        (b'{"execute": "query-jobs"}}\n', 2, "s:1:26: unexpected text behind the JSON object"),
        (b"{" * 5000 + b"}" * 5000 + b"\n", 2, "s:1:1025: JSON nesting too deep"),
        (b"blockdev-add x=[[[\n", 2, "s:1:1: the file ends, but an object or a list is not closed"),
        (b"query-jobs \\", 2, "s:1:1: the file ends, but the line is continued by \\"),
        (b"@", 2, "s:1:1: unknown directive '@'"),
        (b"qmp\n", 1, "s:1:1: qmp: CommandNotFound: unknown command: 'qmp'"),
        (b"a" * 100_000, 1, "s:1:1: aaaa"),
        (b"\r\n \t\r\n\n", 0, ""),
        (b"\xef\xbb\xbf", 0, ""),
        (b"\xef\xbb\xbf@echo x\r\n", 0, ""),
    ],
    ids=range(15),
)
def test_hostile_text(run: Run, text: bytes, status: int, says: str) -> None:
    done = run(text)
    assert done.stderr.startswith(says)
    assert done.stderr.count("\n") == (status != 0)
    assert done.returncode == status


def test_several_scripts(run: Run, tmp_path: Path) -> None:
    (tmp_path / "skip").write_text("@require remote\n")
    (tmp_path / "bad").write_text("blockdev-del node-name=x\n")
    assert run("@echo on\n", "skip").returncode == 0
    assert (run("@echo on\n", "bad").returncode, run("@echo on\n", "bad").stdout) == (1, "")
    done = run("@echo on\n", "--keep-going", "skip", "bad")
    assert (done.returncode, done.stdout) == (1, "on\n")
    assert done.stderr.splitlines() == [
        "skip: skipped: the engine is not remote",
        "bad:1:1: blockdev-del: GenericError: Failed to find node with node-name='x'",
    ]


def test_json(run: Run) -> None:
    text = (
        "blockdev-add driver=null-co node-name=a\ninfo block\n@echo hello\nblockdev-del node-name=x\n"
        "@error GenericError /x/\n@shell echo hi\n@expect $ == ho\n"
    )
    done = run(text, "--json", "--allow-shell")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    result = lines.pop()
    assert lines == [
        {"file": "s", "line": 1, "execute": "blockdev-add", "return": {}},
        {"file": "s", "line": 2, "command-line": "info block", "return": ""},
        {
            "file": "s",
            "line": 4,
            "execute": "blockdev-del",
            "error": {"class": "GenericError", "desc": "Failed to find node with node-name='x'"},
        },
        {"file": "s", "line": 6, "shell": "echo hi", "return": "hi"},
    ]
    assert result.pop("seconds") > 0
    assert result == {
        "script": "s",
        "status": 1,
        "statements": 7,
        "failures": [{"file": "s", "line": 7, "column": 1, "message": '$ is "hi", expected == ho'}],
    }
    assert done.stderr == 'hello\ns:7:1: $ is "hi", expected == ho\n'


def test_json_has_the_events_that_mean_something_to_a_reader(run: Run) -> None:
    options = "{'driver':'file','filename':'f','size':512}"
    text = (
        f"blockdev-create job-id=j options={options}\n@wait-job j concluded\nblockdev-add driver=null-co node-name=a\n"
    )
    lines = [json.loads(line) for line in run(text, "--json").stdout.splitlines()]
    events = [line for line in lines if "event" in line]
    assert {event["event"] for event in events} == {"JOB_STATUS_CHANGE"}  # not that the graph has changed
    assert [event["data"]["status"] for event in events][-1] == "concluded"
    assert all("timestamp" in event for event in events)


def test_junit(run: Run, tmp_path: Path) -> None:
    for name, text in (
        ("good", "query-jobs\n"),
        ("skip", "@require remote\n"),
        ("bad", 'query-jobs\n@expect $ == <"&>\n@expect $ == 2\n'),
    ):
        (tmp_path / name).write_text(text)
    done = run("@nonsense\x01\n", "--junit", "report.xml", "--keep-going", "good", "skip", "bad")
    assert done.returncode == 1
    root = ElementTree.parse(tmp_path / "report.xml").getroot()
    suite = root.find("testsuite")
    assert suite is not None
    counts = {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "4", "failures": "1", "errors": "1", "skipped": "1"}
    found = {
        case.get("name"): [(child.tag, child.get("type"), child.get("message")) for child in case] for case in suite
    }
    assert found["good"] == []
    assert found["skip"] == [("skipped", None, "the engine is not remote")]
    assert found["bad"] == [
        ("failure", "failed", '$ is [], expected == <"&>'),
        ("failure", "failed", "$ is [], expected == 2"),
    ]
    assert [entry[:2] for entry in found["s"]] == [("error", "usage")]
    assert all(float(case.get("time", "")) >= 0 for case in suite)


def test_junit_file_that_cannot_be_written(run: Run) -> None:
    done = run("query-jobs\n", "--junit", "/no/such/folder/x.xml")
    assert done.returncode == 2
    assert done.stderr == "blockmon: --junit /no/such/folder/x.xml: No such file or directory\n"
    assert done.stdout == ""  # noticed before anything ran
    assert run("query-jobs\n", "--junit", "/tmp").stderr == "blockmon: --junit /tmp: Is a directory\n"


def test_trace(run: Run) -> None:
    done = run("query-jobs\n@for X in a b\n  @echo   ${X}\n@end\n", "--trace")
    assert done.stdout == "[]\na\nb\n"
    assert [line.split(maxsplit=1)[1] for line in done.stderr.splitlines()] == [
        "s:1: query-jobs",
        "s:2: @for X in a b",
        "s:3: @echo ${X}",
        "s:3: @echo ${X}",
    ]


def test_update(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("query-jobs\n----\n")
    done = run("@include x\nquery-jobs\n----\nold\n\nblockdev-del node-name=q\n", "--update")
    # What was learned before the failure is written all the same.
    assert done.returncode == 1
    assert (tmp_path / "s").read_text() == "@include x\nquery-jobs\n----\n[]\n\nblockdev-del node-name=q\n"
    assert (tmp_path / "x").read_text() == "query-jobs\n----\n[]\n"


def test_variables_and_speed(run: Run) -> None:
    done = run("@sleep 100s\n@echo ${A} ${B}\n", "--set", "A=1 2", "--set", "B=", "--speed", "10000")
    assert (done.returncode, done.stdout) == (0, "1 2\n")


def step(tmp_path: Path, text: str, keys: bytes) -> tuple[int, str]:
    """Run with --step at a terminal of its own, where *keys* are typed; returns status and all that is seen."""
    (tmp_path / "s").write_text(text)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execv(sys.executable, [*BLOCKMON, "--step", "s"])
    seen = b""
    asked = 0
    keys_left = keys.splitlines()
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:
            break
        if not piece:
            break
        seen += piece
        if seen.count(b"/q] ") > asked and keys_left:
            asked += 1
            os.write(terminal, keys_left.pop(0) + b"\n")
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), seen.decode().replace("\r\n", "\n")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that start elsewhere find the package under test."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))


def test_step(tmp_path: Path) -> None:
    text = "@echo one\n@echo two\n@echo three\n@echo four\n"
    status, seen = step(tmp_path, text, b"\ns\n?\nc\n")
    assert status == 0
    assert seen.count("[Enter/s/c/q]") == 4  # the third statement twice
    assert "Enter: run it, s: skip it" in seen
    lines = seen.splitlines()
    assert ("one" in lines, "two" in lines, "three" in lines, "four" in lines) == (True, False, True, True)
    status, seen = step(tmp_path, "@defer @echo end\n" + text, b"\nq\n")
    assert status == 130
    assert seen.endswith("s:2:1: stopped here\nend\n")


def test_step_needs_a_terminal(run: Run) -> None:
    done = run("query-jobs\n", "--step")
    assert (done.returncode, done.stderr) == (2, "blockmon: --step: standard input is no terminal to ask at\n")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_runs_what_is_deferred(tmp_path: Path, number: int, status: int) -> None:
    text = "@defer @echo bye\n@defer blockdev-del node-name=a\nblockdev-add driver=null-co node-name=a\n"
    text += "@wait-event STOP\n"
    (tmp_path / "s").write_text(text)
    with subprocess.Popen(
        [*BLOCKMON, "--junit", "j", "s"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "{}\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (status, "{}\nbye\n", "")
    assert "interrupted" in (tmp_path / "j").read_text()


def test_shell_ends_with_an_interrupt(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("@shell echo $$ > pid; echo begun > /dev/stderr; sleep 1000\n")
    with subprocess.Popen(
        [*BLOCKMON, "--allow-shell", "s"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        # The end of the pipe: nobody of the shell's has it open any more.
        assert process.stderr.read() == ""
        assert process.wait(timeout=30) == 130


def test_reader_that_goes_away_and_closed_output(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("query-jobs\n" * 100_000)
    with subprocess.Popen(
        [*BLOCKMON, "s"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=30) == 1
        assert process.stderr is not None
        assert process.stderr.read().endswith(": standard output: Broken pipe\n")
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *BLOCKMON, "s"], cwd=tmp_path, stderr=subprocess.PIPE, text=True, timeout=30
    )
    assert (closed.returncode, closed.stderr.count("\n")) == (1, 1)
    assert closed.stderr.endswith(": standard output: it is closed\n")


def test_full_disk(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("query-jobs\n")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*BLOCKMON, "s"], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, timeout=30
        )
    assert (done.returncode, done.stderr) == (1, "s:1:1: standard output: No space left on device\n")


def test_named_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p")
    with subprocess.Popen([*BLOCKMON, "p"], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        with open(tmp_path / "p", "w") as pipe:
            assert process.stdout is not None
            pipe.write("query-jobs\n")
            pipe.flush()
            assert process.stdout.readline() == "[]\n"
            pipe.write("@echo on\n")
        assert process.communicate(timeout=30)[0] == "on\n"
    assert process.returncode == 0
