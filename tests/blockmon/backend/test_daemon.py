"""`blockmon serve --daemonize`: what whoever starts it sees, and what stays."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

SERVE = [sys.executable, "-m", "blockmon", "serve", "--daemonize"]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # One that nobody has waited for yet has ended all the same.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_it_serves_when_the_parent_has_ended(tmp_path: Path) -> None:
    command = [*SERVE, "--pidfile", "pid", "--qmp", "unix:s", "--blockdev", "null-co,node-name=n", "--log", "log"]
    # Its end of the pipe is closed, too: who reads the output is not kept waiting by the daemon.
    done = subprocess.run(command, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    pid = int((tmp_path / "pid").read_text())
    try:
        assert os.getsid(pid) not in (pid, os.getsid(0))
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        assert {os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)} == {os.devnull}
        assert (tmp_path / "s").stat().st_mode & 0o777 == 0o750
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(str(tmp_path / "s"))
            sock.sendall(b'{"execute":"qmp_capabilities"}{"execute":"query-named-block-nodes"}')
            lines = sock.makefile("rb")
            nodes = [json.loads(lines.readline()) for _ in range(3)][2]["return"]
        assert [node["node-name"] for node in nodes] == ["n"]
        again = subprocess.run(
            [*SERVE, "--pidfile", "pid"], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
        )
        reason = "Cannot lock pid file: Resource temporarily unavailable"
        assert (again.returncode, again.stderr) == (1, f"blockmon: --pidfile pid: {reason}\n")
        assert alive(pid)
    finally:
        os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not alive(pid))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log"]


def test_the_parent_tells_what_went_wrong(tmp_path: Path) -> None:
    command = [*SERVE, "--qmp", "unix:s", "--pidfile", "pid", "--blockdev", "file,node-name=n,filename=missing"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    error = "Could not open 'missing': No such file or directory"
    option = "--blockdev file,node-name=n,filename=missing"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"blockmon: {option}: {error}\n")
    assert list(tmp_path.iterdir()) == []


def test_quit_ends_it(tmp_path: Path) -> None:
    command = [*SERVE, "--pidfile", "pid", "--qmp", "unix:s"]
    assert subprocess.run(command, cwd=tmp_path, timeout=30, check=False).returncode == 0
    pid = int((tmp_path / "pid").read_text())
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(tmp_path / "s"))
        sock.sendall(b'{"execute":"qmp_capabilities"}{"execute":"quit"}')
        wait_until(lambda: not alive(pid))
    assert list(tmp_path.iterdir()) == []
