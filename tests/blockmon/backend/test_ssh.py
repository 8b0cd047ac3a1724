"""The way through ssh, with a program in its place that does what ssh does with the options it gets."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from blockmon.backend import remote
from blockmon.backend.remote import RemoteBackend
from blockmon.options import StartupError
from tests.blockmon.backend.wire_server import WireServer, until

FORWARD = """
import os, socket, sys, threading
here, far = sys.argv[sys.argv.index("-L") + 1].split(":")
assert sys.argv[-2] == "--"
open(os.environ["TOLD"], "a").write(" ".join(sys.argv[1:]) + "\\n")
listener = socket.socket(socket.AF_UNIX)
listener.bind(here)
listener.listen()

def copy(a, b):
    while piece := a.recv(65536):
        b.sendall(piece)
    b.shutdown(socket.SHUT_WR)

while True:
    near, _ = listener.accept()
    there = socket.socket(socket.AF_UNIX)
    try:
        there.connect(far)
    except OSError:
        sys.stderr.write("channel 1: open failed: connect failed: open failed\\r\\n")
        sys.stderr.flush()
        near.close()
        continue
    threading.Thread(target=copy, args=(near, there), daemon=True).start()
    threading.Thread(target=copy, args=(there, near), daemon=True).start()
"""


class Ssh:
    """What stands in for ssh."""

    def __init__(self, folder: Path) -> None:
        self._program = folder / "ssh"
        self.told = folder / "told"

    def does(self, code: str) -> None:
        self._program.write_text(f"#!{sys.executable}\n{code}")
        self._program.chmod(0o755)


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ssh:
    folder = tmp_path / "bin"
    folder.mkdir()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    ssh = Ssh(folder)
    monkeypatch.setenv("TOLD", str(ssh.told))
    return ssh


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[WireServer]:
    server = WireServer(tmp_path / "q")
    await server.listen()
    yield server
    await server.stop()


async def complaint(address: str) -> str:
    with pytest.raises(StartupError) as caught:
        await RemoteBackend(address).start()
    return caught.value.message


async def test_commands_go_through_and_nothing_is_left_behind(ssh: Ssh, server: WireServer, tmp_path: Path) -> None:
    ssh.does(FORWARD)
    backend = RemoteBackend(f"ssh://me@there{server.path}")
    await backend.start()
    assert await backend.execute("query-version") == {}
    assert "-l me" in ssh.told.read_text()
    assert ssh.told.read_text().endswith("-- there\n")
    (folder,) = (tmp_path / "tmp").iterdir()
    assert folder.stat().st_mode & 0o077 == 0  # nobody else gets to the socket
    await backend.close()
    assert list((tmp_path / "tmp").iterdir()) == []


async def test_ssh_says_why_it_cannot(ssh: Ssh) -> None:
    ssh.does(
        "import sys; sys.stderr.write('Warning: x\\r\\nme@there: Permission denied (publickey).\\r\\n'); sys.exit(255)"
    )
    assert await complaint("ssh://me@there/q") == "ssh: me@there: Permission denied (publickey)."
    ssh.does("import sys; sys.exit(255)")
    assert await complaint("ssh://me@there/q") == "ssh ended without a word"


async def test_where_nobody_listens_over_there(ssh: Ssh, tmp_path: Path) -> None:
    ssh.does(FORWARD)
    text = await complaint(f"ssh://there{tmp_path}/none")
    assert text == f"ssh: connect failed: open failed; does a server listen at {tmp_path}/none there?"


async def test_without_ssh(ssh: Ssh) -> None:
    assert await complaint("ssh://there/q") == "there is no ssh command"


async def test_it_cannot_ask_at_the_terminal(ssh: Ssh) -> None:
    ssh.does(
        "import os, sys\n"
        "tty = 'no terminal' if os.getsid(0) == os.getpid() else 'the terminal of its parent'\n"
        "sys.stderr.write(f\"{tty} {os.environ['SSH_ASKPASS_REQUIRE']} {sys.stdin.read()!r}\")"
    )
    assert await complaint("ssh://there/q") == "ssh: no terminal never ''"


async def test_a_tunnel_that_breaks_is_made_again(
    ssh: Ssh, server: WireServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "FIRST_RETRY", 0.01)
    ssh.does(FORWARD)
    backend = RemoteBackend(f"ssh://there{server.path}")
    await backend.start()
    states: list[bool] = []
    backend.connection.watch(lambda state: states.append(state.connected))
    assert backend._tunnel is not None
    backend._tunnel._process.kill()
    await until(lambda: False in states and states[-1])
    assert await backend.execute("query-version") == {}
    assert len(ssh.told.read_text().splitlines()) == 2
    await backend.close()
