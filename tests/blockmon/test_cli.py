"""The command line: what is understood, what is refused and how, and that it answers at once."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import blockmon
from blockmon import cli
from blockmon.options import CommonOptions, StartupError


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, CommonOptions, list[str]]]:
    """Replace every front end by one that notes how it was called, and returns 42."""
    calls: list[tuple[str, CommonOptions, list[str]]] = []

    def note(name: str) -> Callable[..., int]:
        def run(options: CommonOptions, scripts: list[str] | None = None) -> int:
            calls.append((name, options, scripts or []))
            return 42

        return run

    for module, function in (("tui", "run"), ("repl", "run"), ("replay", "run"), ("backend", "serve"), ("demo", "run")):
        fake = SimpleNamespace(**{function: note(module)})
        monkeypatch.setitem(sys.modules, f"blockmon.{module}", fake)
        monkeypatch.setattr(blockmon, module, fake, raising=False)
    return calls


def run_cli(*args: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "blockmon", *args], capture_output=True, text=True, check=False, timeout=30
    )


@pytest.mark.parametrize(
    ("args", "module"),
    [([], "tui"), (["repl"], "repl"), (["run", "x"], "replay"), (["serve"], "backend"), (["demo"], "demo")],
)
def test_each_mode_starts_its_front_end(
    started: list[tuple[str, CommonOptions, list[str]]], args: list[str], module: str
) -> None:
    assert cli.main(args) == 42
    assert started[0][0] == module


def test_help_about_objects(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--object", "help"]) == 0
    assert "  throttle-group\n" in capsys.readouterr().out
    assert cli.main(["run", "--object", "iothread,help", "script"]) == 0
    assert capsys.readouterr().out.startswith("iothread options:\n  aio-max-batch=<int>\n")


def test_help_inside_a_value_is_no_question(started: list[tuple[str, CommonOptions, list[str]]]) -> None:
    cli.main(["serve", "--object", "secret,id=s,data=a,,help"])
    assert started[0][1].startup == [("--object", "secret,id=s,data=a,,help")]


def test_startup_options_keep_their_order(started: list[tuple[str, CommonOptions, list[str]]]) -> None:
    cli.main(
        ["serve", "--monitor", "chardev=c", "--blockdev=driver=null-co,node-name=a", "--chardev", "null,id=c"]
        + ["--qmp", "unix:/s", "--blockdev", '{"driver": "raw"}', "--hmp=tcp:h:1", "--pidfile", "/p"]
    )
    (_, options, _) = started[0]
    assert options.startup == [
        ("--monitor", "chardev=c"),
        ("--blockdev", "driver=null-co,node-name=a"),
        ("--chardev", "null,id=c"),
        ("--qmp", "unix:/s"),
        ("--blockdev", '{"driver": "raw"}'),
        ("--hmp", "tcp:h:1"),
    ]
    assert options.pidfile == "/p"


def test_images_and_their_options(started: list[tuple[str, CommonOptions, list[str]]]) -> None:
    cli.main(["a.qcow2", "--rw", "--theme", "ansi16", "--", "--odd name", "repl"])
    (module, options, _) = started[0]
    assert module == "tui"
    assert (options.images, options.rw, options.theme) == (["a.qcow2", "--odd name", "repl"], True, "ansi16")


def test_scripts_are_operands_of_run(started: list[tuple[str, CommonOptions, list[str]]]) -> None:
    cli.main(["run", "a", "-", "run"])
    (_, options, scripts) = started[0]
    assert (scripts, options.images) == (["a", "-", "run"], [])


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["--daemonize"], "--daemonize: not an option of 'blockmon'"),
        (["serve", "--daemonize", "--qmp", "stdio"], "--qmp stdio: cannot use stdio with --daemonize"),
        (
            ["repl", "--connect", "unix:/s", "--add-fd", "fd=3,set=1"],
            "--add-fd: the engine at unix:/s was set up by whoever started it",
        ),
        (["--connect=unix:/s"], "--connect: not an option of 'blockmon'"),
        (["doctor", "x"], "doctor: not available in this version"),
        (["connect"], "connect: needs an ADDR"),
        (["connect", "unix:/s", "x"], "x: there is an ADDR already"),
        (["connect", "unix:/s", "--rw", "--read-only"], "--rw: contradicts --read-only"),
        (["repl", "--connect", "unix:/s", "x"], "x: images can't be opened by name on the engine at unix:/s"),
        (
            ["run", "--connect", "unix:/s", "--blockdev", "driver=null-co,node-name=n", "x"],
            "--blockdev: the engine at unix:/s was set up by whoever started it",
        ),
        (["run", "--speed", "0", "x"], "--speed 0: a number above 0 is expected"),
        (["run", "--set", "1=2", "x"], "--set 1=2: NAME=VALUE is expected"),
        (["run", "--dry-run", "--update", "x"], "--dry-run: contradicts --update"),
        (["run", "--update", "-"], "--update: the script can't come from standard input"),
        (["run", "--theme", "dark", "x"], "--theme: needs --tui"),
        (["--nonsense"], "--nonsense: unknown option"),
        (["run", "--keep-goin", "x"], "--keep-goin: unknown option; did you mean '--keep-going'?"),
        (["serve", "--blockdev"], "--blockdev: needs OPTS"),
        (["x", "--rw=on"], "--rw: takes no value"),
        (["run"], "run: needs a SCRIPT"),
        (["serve", "--theme", "dark"], "--theme: not an option of 'blockmon serve'"),
        (["serve", "x.qcow2"], "x.qcow2: 'blockmon serve' takes no operand"),
        (["x", "--theme", "a", "--theme", "b"], "--theme: given twice"),
        (["--rw"], "--rw: there is no IMAGE to open for writing"),
        (
            ["--qmp", "stdio"],
            "--qmp stdio: standard input is in use; 'blockmon serve' can have a monitor on stdio",
        ),
        (
            ["repl", "--chardev", "stdio,id=c"],
            "--chardev stdio,id=c: standard input is in use; 'blockmon serve' can have a monitor on stdio",
        ),
    ],
)
def test_one_clear_error(
    started: list[tuple[str, CommonOptions, list[str]]],
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    error: str,
) -> None:
    assert cli.main(args) == (2 if args[0] == "run" else 1)
    assert capsys.readouterr() == ("", f"blockmon: {error}\n")
    assert started == []


def test_an_engine_elsewhere_is_only_looked_at_unless_told_otherwise(
    started: list[tuple[str, CommonOptions, list[str]]],
) -> None:
    cli.main(["connect", "unix:/s"])
    cli.main(["connect", "unix:/s", "--rw"])
    cli.main(["repl", "--connect", "unix:/s"])
    cli.main(["run", "--connect", "unix:/s", "x"])
    cli.main(["run", "--connect", "unix:/s", "--read-only", "x"])
    assert [(module, options.connect, options.read_only) for module, options, _ in started] == [
        ("tui", "unix:/s", True),
        ("tui", "unix:/s", False),
        ("repl", "unix:/s", True),
        ("replay", "unix:/s", False),
        ("replay", "unix:/s", True),
    ]
    assert started[0][1].images == []


def test_what_a_run_is_told(started: list[tuple[str, CommonOptions, list[str]]]) -> None:
    cli.main(["run", "--keep-going", "--speed=2.5", "--set", "A=1", "--set=B=x=y", "--junit", "r.xml", "--json", "x"])
    run = started[0][1].run
    assert (run.keep_going, run.speed, run.junit, run.json, run.update) == (True, 2.5, "r.xml", True, False)
    assert run.variables == {"A": "1", "B": "x=y"}


def test_startup_error_tells_the_option(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def serve(options: CommonOptions) -> int:
        raise StartupError("--blockdev driver=x", "Parameter 'driver' does not accept value 'x'")

    fake = SimpleNamespace(serve=serve)
    monkeypatch.setitem(sys.modules, "blockmon.backend", fake)
    monkeypatch.setattr(blockmon, "backend", fake, raising=False)
    assert cli.main(["serve", "--blockdev", "driver=x"]) == 1
    assert capsys.readouterr().err == "blockmon: --blockdev driver=x: Parameter 'driver' does not accept value 'x'\n"


def test_log_that_cannot_be_written(
    started: list[tuple[str, CommonOptions, list[str]]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "no" / "log"
    assert cli.main(["serve", "--log", str(path)]) == 1
    assert capsys.readouterr().err == f"blockmon: --log {path}: No such file or directory\n"


def test_a_warning_of_the_engine_says_whose_it_is(tmp_path: Path) -> None:
    script = tmp_path / "s"
    text = "".join(f"blockdev-add driver=null-co node-name={name} size=1M\n" for name in "ab")
    script.write_text(text + "blockdev-backup job-id=j device=a target=b sync=full\n@wait-job j null\n")
    assert run_cli("run", str(script)).stderr.startswith("blockmon: warning: node 'b' tells no cluster size")


def test_log_is_written(tmp_path: Path) -> None:
    path = tmp_path / "log"
    run_cli("run", "--log", str(path), "/dev/null")
    assert f"blockmon {blockmon.__version__} started: run --log" in path.read_text()


@pytest.mark.parametrize("mode", sorted(cli.MODES))
def test_help_lists_the_options_of_the_mode_and_no_others(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*([mode] if mode else []), "--help"]) == 0
    shown = {word for word in capsys.readouterr().out.split() if word.startswith("--")}
    assert set(cli.MODES[mode].options) <= shown
    others = {option for other in cli.MODES.values() for option in other.options} - set(cli.MODES[mode].options)
    assert not shown & others


def test_version_answers_at_once() -> None:
    def measure() -> float:
        begin = time.perf_counter()
        done = run_cli("--version")
        assert done.stdout == f"blockmon {blockmon.__version__}\n"
        return time.perf_counter() - begin

    # The best of some: other tests run on this machine at the same time.
    assert min(measure() for _ in range(5)) < 0.1


def test_version_beside_other_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "-V"]) == 0
    assert capsys.readouterr().out == f"blockmon {blockmon.__version__}\n"


def test_help_into_a_closed_pipe_is_quiet() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    # Without buffering there would be nothing left to write when the interpreter exits.
    env = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "blockmon", "--help"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False, timeout=30, env=env)
    os.close(writing)
    assert done.stderr == b""
