"""The sample command files in scripts/, on engines elsewhere: QEMU's, and our own behind a socket."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from blockmon import cli
from tests.conftest import find_tool
from tests.interop.remote_servers import Server

SCRIPTS = sorted((Path(__file__).parents[2] / "scripts").glob("*.bmon"))
WITHOUT_HMP = {"live-move"}
"""Those that need no human monitor, which qemu-storage-daemon does not have."""

SOCKETS = ("unix:{q},server=on,wait=off", "unix:{side},server=on,wait=off")
SERVERS: dict[str, Callable[[], list[str]]] = {
    "qemu-system": lambda: [
        *(find_tool("qemu-system-x86_64"), "-M", "none", "-display", "none", "-S"),
        *("-qmp", SOCKETS[0], "-qmp", SOCKETS[1]),
    ],
    "qemu-storage-daemon": lambda: [
        find_tool("qemu-storage-daemon"),
        *("--chardev", "socket,id=q,path={q},server=on,wait=off", "--monitor", "chardev=q,mode=control"),
        *("--chardev", "socket,id=side,path={side},server=on,wait=off", "--monitor", "chardev=side,mode=control"),
    ],
    "blockmon": lambda: [sys.executable, "-m", "blockmon", "serve", "--qmp", "unix:{q}", "--qmp", "unix:{side}"],
}


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("script", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_sample_elsewhere(script: Path, server: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    where, folder = tmp_path / "server", tmp_path / "images"
    where.mkdir()
    folder.mkdir()
    there = Server(SERVERS[server](), where)
    try:
        status = cli.main(["run", "--connect", there.address, "--set", f"DIR={folder}", str(script)])
    finally:
        there.stop()
    left_out = server == "qemu-storage-daemon" and script.stem not in WITHOUT_HMP
    assert status == (77 if left_out else 0), capfd.readouterr().err


@pytest.mark.parametrize("server", ["qemu-system", "qemu-storage-daemon"])
def test_what_was_recorded_there_replays_here(server: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    where, folder, recording = tmp_path / "server", tmp_path / "images", tmp_path / "recording.bmon"
    where.mkdir()
    folder.mkdir()
    script = next(path for path in SCRIPTS if path.stem == ("commit" if server == "qemu-system" else "live-move"))
    there = Server(SERVERS[server](), where)
    given = ["--connect", there.address, "--record", str(recording)]
    try:
        assert cli.main(["run", *given, "--set", f"DIR={folder}", str(script)]) == 0
    finally:
        there.stop()
    text = recording.read_text()
    assert f"# Engine: {there.address}" in text
    assert "@wait-job" in text
    assert cli.main(["run", str(recording)]) == 0, capfd.readouterr().err + text
