"""File descriptors passed to a monitor and on the command line, beside qemu-system-x86_64 7.2."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

EMULATOR = "qemu-system-x86_64"
Step = tuple[str, dict[str, Any] | None, Sequence[str]]
"""A command, its arguments, the descriptors that go with it: "r" and "w" (a file), "bound" (a socket)."""


class Talk:
    """A QMP connection over which descriptors can go."""

    def __init__(self, path: Path) -> None:
        deadline = time.monotonic() + 20
        while True:
            self.sock = socket.socket(socket.AF_UNIX)
            try:
                self.sock.connect(str(path))
                break
            except OSError:
                self.sock.close()
                assert time.monotonic() < deadline, "nobody listens"
                time.sleep(0.02)
        self.sock.settimeout(20)
        self._file = self.sock.makefile("rb")
        assert b"QMP" in self._file.readline()
        assert self.ask("qmp_capabilities") == {"return": {}}

    def ask(self, command: str, arguments: dict[str, Any] | None = None, fds: Sequence[int] = ()) -> Any:
        request: dict[str, Any] = {"execute": command}
        if arguments is not None:
            request["arguments"] = arguments
        socket.send_fds(self.sock, [json.dumps(request).encode() + b"\n"], fds)
        return self.reply()

    def reply(self) -> Any:
        while "event" in (message := json.loads(self._file.readline())):
            pass
        return message

    def close(self) -> None:
        self._file.close()
        self.sock.close()


@contextmanager
def running(program: Sequence[str], path: Path, fds: Sequence[int] = ()) -> Iterator[None]:
    process = subprocess.Popen(program, pass_fds=fds, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)
        path.unlink(missing_ok=True)


def programs(where: Path, *options: str) -> dict[str, list[str]]:
    """Both programs, with the sockets *where*/ours and *where*/real."""
    if shutil.which(EMULATOR) is None:
        pytest.skip(f"{EMULATOR} is not installed")
    ours = [sys.executable, "-m", "blockmon", "serve", "--qmp", f"unix:{where / 'ours'}", *options]
    real = [EMULATOR, "-M", "none", "-display", "none", "-qmp", f"unix:{where / 'real'},server=on,wait=off"]
    return {"ours": ours, "real": real + [option.removeprefix("-") for option in options]}


@contextmanager
def descriptors(where: Path) -> Iterator[dict[str, int]]:
    """What a client may pass."""
    image = where / "image"
    image.write_bytes(bytes(65536))
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(f"\0blockmon-{where}"[:90])
    fds = {"r": os.open(image, os.O_RDONLY), "w": os.open(image, os.O_RDWR)}
    try:
        yield fds | {"bound": bound.fileno()}
    finally:
        for fd in fds.values():
            os.close(fd)
        bound.close()


def without_numbers(value: Any, numbers: dict[int, str]) -> Any:
    """The answer with descriptors called by the order of their coming."""
    if isinstance(value, dict):
        return {
            key: numbers.setdefault(each, f"fd{len(numbers)}") if key == "fd" else without_numbers(each, numbers)
            for key, each in value.items()
        }
    return [without_numbers(each, numbers) for each in value] if isinstance(value, list) else value


def play(steps: Sequence[Step], talk: Talk, fds: dict[str, int]) -> list[tuple[Step, Any]]:
    numbers: dict[int, str] = {}
    answers = []
    for step in steps:
        command, arguments, passed = step
        answer = talk.ask(command, arguments, [fds[name] for name in passed])
        if command == "query-jobs" and "return" in answer:
            while any(job["status"] != "concluded" for job in answer["return"]):
                answer = talk.ask(command)
        answers.append((step, without_numbers(answer, numbers)))
    return answers


def do(name: str, *passed: str, **arguments: Any) -> Step:
    return name, {key.replace("_", "-"): value for key, value in arguments.items()}, passed


def add(name: str, filename: str, **options: Any) -> Step:
    return do("blockdev-add", driver="file", node_name=name, filename=filename, **options)


def delete(name: str) -> Step:
    return do("blockdev-del", node_name=name)


def server(name: str) -> Step:
    return do("nbd-server-start", addr={"type": "fd", "data": {"str": name}})


SETS = do("query-fdsets")
CASES: dict[str, list[Step]] = {
    "sets": [
        SETS,
        do("add-fd"),
        do("add-fd", "w", fdset_id=7, opaque="seven"),
        do("add-fd", "r", fdset_id=2, opaque=""),
        do("add-fd", "w", fdset_id=2),
        do("add-fd", "r", fdset_id=-1),
        do("add-fd", "r", fdset_id=1 << 40),
        do("add-fd", "r"),
        do("add-fd", "r", fdset_id=1),
        do("add-fd", "r"),
        do("add-fd", "r", nonsense=1),
        SETS,
        do("remove-fd", fdset_id=99),
        do("remove-fd", fdset_id=-5),
        do("remove-fd", fdset_id=2, fd=1),
        do("remove-fd", fdset_id=2),
        SETS,
        do("remove-fd", fdset_id=2),
    ],
    "opening": [
        do("add-fd", "w", fdset_id=7),
        do("add-fd", "r", fdset_id=2),
        do("add-fd", "r", fdset_id=3),
        do("add-fd", "w", fdset_id=3),
        add("f", "/dev/fdset/7"),
        add("g", "/dev/fdset/7"),
        add("x", "/dev/fdset/7", read_only=True),
        add("x", "/dev/fdset/7", read_only=True, cache={"direct": True}),
        add("x", "/dev/fdset/2"),
        add("h", "/dev/fdset/2", auto_read_only=True),
        add("i", "/dev/fdset/3", read_only=True),
        *(add("x", f"/dev/fdset/{text}") for text in ("77", "x", "", "-1", "7x")),
        do("blockdev-add", driver="host_device", node_name="x", filename="/dev/fdset/7"),
        do("remove-fd", fdset_id=7),
        SETS,
        add("x", "/dev/fdset/7"),
        do("remove-fd", fdset_id=7),
        delete("f"),
        SETS,
        delete("g"),
        SETS,
        do("remove-fd", fdset_id=7),
    ],
    "while the guests are stopped": [
        do("stop"),
        do("add-fd", "w", fdset_id=1),
        do("remove-fd", fdset_id=1),
        SETS,
        add("f", "/dev/fdset/1"),
        do("cont"),
        SETS,
        do("remove-fd", fdset_id=1),
        SETS,
        delete("f"),
        SETS,
    ],
    "reopening with another access mode": [
        do("add-fd", "w", fdset_id=1),
        do("add-fd", "r", fdset_id=1),
        do(
            "blockdev-add",
            driver="raw",
            node_name="k",
            file={"driver": "file", "node-name": "kf", "filename": "/dev/fdset/1", "auto-read-only": True},
        ),
        do("blockdev-reopen", options=[{"driver": "raw", "node-name": "k", "read-only": True, "file": "kf"}]),
        do("remove-fd", fdset_id=1),
        do("blockdev-reopen", options=[{"driver": "raw", "node-name": "k", "read-only": False, "file": "kf"}]),
        SETS,
        delete("k"),
        SETS,
    ],
    "making an image": [
        do("add-fd", "w", fdset_id=1),
        do("blockdev-create", job_id="j", options={"driver": "file", "filename": "/dev/fdset/1", "size": 4096}),
        do("query-jobs"),
        do("blockdev-create", job_id="k", options={"driver": "file", "filename": "/dev/fdset/9", "size": 4096}),
        do("query-jobs"),
        do("remove-fd", fdset_id=1),
        SETS,
    ],
    "names": [
        do("getfd", fdname="a"),
        do("getfd", "r", fdname="1a"),
        do("getfd", "r", fdname="a"),
        do("getfd", "w", fdname="a"),
        do("getfd", "r"),
        do("closefd", fdname="b"),
        do("closefd", fdname="a"),
        do("closefd", fdname="a"),
    ],
    "which descriptor": [
        do("query-status", "r"),
        do("query-status"),
        do("getfd", fdname="a"),
        do("query-status", "r", "w"),
        do("getfd", fdname="a"),
        do("getfd", fdname="a"),
        do("add-fd", "r", "w", fdset_id=5),
        add("n", "/dev/fdset/5", read_only=True),
        do("human-monitor-command", "r", command_line="getfd a"),
        do("getfd", fdname="a"),
        do("human-monitor-command", command_line="closefd a"),
    ],
    "sockets": [
        server("a"),
        server("1"),
        do("getfd", "r", fdname="a"),
        server("a"),
        do("closefd", fdname="a"),
        do("getfd", "bound", fdname="a"),
        server("a"),
        do("closefd", fdname="a"),
        do("nbd-server-stop"),
        do("blockdev-add", driver="nbd", node_name="n", server={"type": "fd", "str": "a"}),
        do("getfd", "r", fdname="a"),
        do("blockdev-add", driver="nbd", node_name="n", server={"type": "fd", "str": "a"}),
        do("closefd", fdname="a"),
    ],
}


@pytest.mark.parametrize("name", CASES)
def test_as_the_emulator(name: str, tmp_path: Path) -> None:
    transcripts = {}
    for side, command in programs(tmp_path).items():
        (tmp_path / f"{side}-files").mkdir()
        with descriptors(tmp_path / f"{side}-files") as fds, running(command, tmp_path / side):
            talk = Talk(tmp_path / side)
            transcripts[side] = play(CASES[name], talk, fds)
            talk.close()
    assert transcripts["ours"] == transcripts["real"]


def test_unused_descriptors_go_with_the_last_monitor(tmp_path: Path) -> None:
    left = {}
    for side, command in programs(tmp_path).items():
        (tmp_path / f"{side}-files").mkdir()
        with descriptors(tmp_path / f"{side}-files") as fds, running(command, tmp_path / side):
            talk = Talk(tmp_path / side)
            for number in (1, 2):
                assert "return" in talk.ask("add-fd", {"fdset-id": number}, [fds["w"]])
            assert "return" in talk.ask(*add("f", "/dev/fdset/2")[:2])
            talk.close()
            talk = Talk(tmp_path / side)
            left[side] = [each["fdset-id"] for each in talk.ask("query-fdsets")["return"]]
            talk.close()
    assert left["ours"] == left["real"] == [2]


@pytest.mark.parametrize(
    "options",
    [
        *(["fd=$FD"], ["set=3"], ["fd=1,set=1"], ["fd=99,set=1"], ["fd=$FD,set=-1"], ["fd=x,set=1"]),
        *(["fd=$FD,set=1,foo=1"], ["fd=$FD,set=x"], ["fd=-1,set=1"], ["fd=$FD,set=1,opaque=a,,b"]),
        ["fd=$FD,set=1", "fd=$FD,set=1,opaque=twice"],
    ],
    ids=str,
)
def test_command_line(options: list[str], tmp_path: Path) -> None:
    results = {}
    with descriptors(tmp_path) as fds:
        fd = fds["w"]
        given = [part for text in options for part in ("--add-fd", text.replace("$FD", str(fd)))]
        node = ["--blockdev", "driver=file,node-name=f,filename=/dev/fdset/1"]
        for side, command in programs(tmp_path, *node, *given).items():
            process = subprocess.Popen(command, pass_fds=[fd], stderr=subprocess.PIPE, text=True)
            try:
                deadline = time.monotonic() + 20
                while not (tmp_path / side).exists() and process.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.01)
                if process.poll() is None:
                    talk = Talk(tmp_path / side)
                    results[side] = without_numbers(talk.ask("query-fdsets"), {})
                    talk.close()
                else:
                    assert process.stderr is not None
                    results[side] = process.returncode, process.stderr.read().strip().partition("-add-fd ")[2]
            finally:
                process.terminate()
                process.communicate(timeout=20)
                (tmp_path / side).unlink(missing_ok=True)
    assert results["ours"] == results["real"]


def test_commands_that_wait_keep_their_own_descriptors(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    with descriptors(tmp_path / "files") as fds, running(programs(tmp_path)["ours"], tmp_path / "ours"):
        talk = Talk(tmp_path / "ours")
        for number, name in enumerate(("r", "w", "r")):
            text = json.dumps({"execute": "add-fd", "arguments": {"fdset-id": number}})
            socket.send_fds(talk.sock, [b'{"execute": "query-fdsets"}' + text.encode()], [fds[name]])
        for _ in range(3):
            assert talk.reply()["return"] is not None
        for _ in range(3):
            assert "return" in talk.reply()
        modes = [talk.ask(*add(f"n{number}", f"/dev/fdset/{number}")[:2]) for number in range(3)]
        assert ["return" in mode for mode in modes] == [False, True, False]
        talk.close()
