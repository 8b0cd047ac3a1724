"""`blockmon run` as a program: exit statuses, what goes where, standard input, signals."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockmon import cli
from blockmon.backend import CommandError
from blockmon.replay import program
from tests.blockmon.fakes import FakeBackend


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    fake = FakeBackend({"query-block": [], "quit": CommandError("GenericError", "not yet")})
    monkeypatch.setattr(program, "open_backend", lambda options: fake)
    return fake


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_scripts_run_one_after_the_other_on_one_backend(
    backend: FakeBackend, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = write(tmp_path / "1", "query-block\n"), write(tmp_path / "2", "query-block\nquery-block")
    assert cli.main(["run", one, two]) == 0
    assert capsys.readouterr() == ("[]\n[]\n[]\n", "")
    assert backend.closed


def test_failing_command_ends_everything(
    backend: FakeBackend, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = write(tmp_path / "1", "query-block\nquit\n"), write(tmp_path / "2", "query-block\n")
    assert cli.main(["run", one, two]) == 1
    assert capsys.readouterr() == ("[]\n", f"{one}:2:1: quit: GenericError: not yet\n")
    assert backend.closed


def test_parse_error_has_its_own_status(
    backend: FakeBackend, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", write(tmp_path / "1", "@nonsense\n")]) == 2
    assert capsys.readouterr() == ("", f"{tmp_path}/1:1:1: unknown directive '@nonsense'\n")


@pytest.mark.parametrize(("name", "why"), [("none", "No such file or directory"), (".", "Is a directory")])
def test_missing_script_is_noticed_before_anything_runs(
    backend: FakeBackend, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, why: str
) -> None:
    script = write(tmp_path / "1", "query-block\n")
    assert cli.main(["run", script, str(tmp_path / name)]) == 2
    assert capsys.readouterr() == ("", f"blockmon: {tmp_path / name}: {why}\n")
    assert not backend.started


@pytest.fixture
def running() -> Iterator["subprocess.Popen[str]"]:
    """`blockmon run -` on pipes, with the real engine."""
    process = subprocess.Popen(
        [sys.executable, "-m", "blockmon", "run", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"},
    )
    yield process
    process.kill()
    process.communicate()


def ask(process: "subprocess.Popen[str]", line: str) -> str:
    """Give one line to the script, and return the line it prints then."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return process.stdout.readline()


def test_standard_input_is_answered_line_by_line(running: "subprocess.Popen[str]") -> None:
    assert ask(running, "query-jobs") == "[]\n"
    assert ask(running, '{"execute": "query-named-block-nodes",\n"arguments": {"flat": true}}') == "[]\n"
    out, err = running.communicate("no-such-command-at-all\n", timeout=30)
    assert (out, err) == (
        "",
        "<stdin>:4:1: no-such-command-at-all: CommandNotFound: unknown command: 'no-such-command-at-all'\n",
    )
    assert running.returncode == 1


def test_termination_closes_the_engine(running: "subprocess.Popen[str]") -> None:
    assert ask(running, "query-jobs") == "[]\n"
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=30) == 128 + signal.SIGTERM


def test_interrupt(running: "subprocess.Popen[str]") -> None:
    assert ask(running, "query-jobs") == "[]\n"
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=30) == 130
    assert running.stderr is not None
    assert running.stderr.read() == ""


def test_reader_that_goes_away(running: "subprocess.Popen[str]") -> None:
    assert ask(running, "query-jobs") == "[]\n"
    assert running.stdout is not None
    running.stdout.close()
    assert running.stdin is not None
    running.stdin.write("query-jobs\n")
    running.stdin.flush()
    assert running.wait(timeout=30) == 1
    assert running.stderr is not None
    assert running.stderr.read() == "<stdin>:2:1: standard output: Broken pipe\n"
