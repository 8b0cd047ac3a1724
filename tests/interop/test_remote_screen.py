"""The whole program in a terminal, connected to the real ones: a PC with a mirror running, a storage daemon."""

import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.interop.remote_servers import Server, make_images, pc, storage_daemon
from tests.qemu import QemuImages
from tests.tmux import Tmux

MIRROR = {"job-id": "m0", "device": "top", "target": "target", "sync": "full", "speed": 65536}
SIZES = [(80, 24), (140, 40)]


@pytest.fixture
def where(tmp_path: Path, images: QemuImages) -> Path:
    make_images(images, tmp_path)
    return tmp_path


@pytest.fixture
def running() -> Iterator[list[Server]]:
    servers: list[Server] = []
    yield servers
    for server in servers:
        server.stop()


@pytest.fixture
def machine(qemu_system: str, where: Path, running: list[Server]) -> Server:
    running.append(pc(qemu_system, where))
    return running[-1]


@pytest.fixture
def daemon(qsd: str, where: Path, running: list[Server]) -> Server:
    running.append(storage_daemon(qsd, where))
    return running[-1]


@pytest.fixture
def blockmon(tmux: Callable[..., Tmux], tmp_path: Path) -> Callable[..., Tmux]:
    """Start blockmon with these arguments in a terminal of this size."""

    def start(*arguments: str, columns: int = 80, rows: int = 24) -> Tmux:
        env = {"XDG_STATE_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
        return tmux([sys.executable, "-m", "blockmon", *arguments], columns=columns, rows=rows, env=env)

    return start


@pytest.mark.parametrize(("columns", "rows"), SIZES)
def test_a_machine_with_a_mirror_running(
    machine: Server, blockmon: Callable[..., Tmux], columns: int, rows: int
) -> None:
    machine.ask("blockdev-mirror", MIRROR)
    terminal = blockmon("connect", "--rw", machine.address, columns=columns, rows=rows)
    shown = terminal.wait_for("● m0")
    for words in ("vda  virtio-blk-pci", "hd0  ide-hd", "mirror_top", "backing → top  qcow2", "1 job"):
        assert words in shown, shown
    terminal.send("F3")
    shown = terminal.wait_for(re.compile(r"m0 +mirror +running.*\d+%"))
    # The verbs that the job's state allows; the one chosen is written into the prompt, and done there.
    terminal.send("p")
    terminal.wait_for("(qmp) job-pause id=m0")
    terminal.send("Enter")
    terminal.wait_for(re.compile(r"m0 +(mirror +)?paused"))
    terminal.send("F5")
    terminal.type("info block-jobs")
    terminal.send("Enter")
    terminal.wait_for("Type mirror, device m0")
    terminal.type("block-job-cancel device=m0 force=true ")
    terminal.send("Enter")
    terminal.wait_gone("1 job ")
    terminal.send("F3")
    terminal.wait_for("× m0")
    terminal.send("C-q")
    assert terminal.exit_status() == 0
    assert machine.ask("query-jobs") == []
    assert machine.ask("query-status")["running"] is False


@pytest.mark.parametrize(("columns", "rows"), SIZES)
def test_a_daemon_that_is_only_looked_at(
    daemon: Server, blockmon: Callable[..., Tmux], columns: int, rows: int
) -> None:
    terminal = blockmon("connect", daemon.address, columns=columns, rows=rows)
    shown = terminal.wait_for("e0  nbd")
    assert "read-only)" in shown
    assert "root → top  qcow2" in shown
    # What could be done is shown all the same, with what comes of it.
    terminal.send("F2", "a")
    terminal.wait_for("e0 (read-only: not sent)")
    terminal.send("Escape")
    terminal.wait_gone("not sent)")
    terminal.send("F5")
    terminal.type("blockdev-del node-name=target ")
    terminal.send("Enter")
    terminal.wait_for("and was not sent")
    terminal.type("info block")
    terminal.send("Enter")
    terminal.wait_for("no human monitor")
    terminal.send("C-q")
    assert terminal.exit_status() == 0
    assert "target" in [node["node-name"] for node in daemon.ask("query-named-block-nodes")]


def test_a_daemon_that_goes_and_comes_back(daemon: Server, blockmon: Callable[..., Tmux]) -> None:
    terminal = blockmon("connect", daemon.address)
    terminal.wait_for("e0  nbd")
    daemon.stop()
    shown = terminal.wait_for(re.compile(r"connection lost, retrying in \d+ s"))
    assert "root → top  qcow2" in shown  # as it was
    daemon.start()
    terminal.wait_gone("connection lost, retrying", timeout=15)
    terminal.wait_for("0 jobs")
    terminal.send("F4")
    shown = terminal.wait_for("CONNECTION_RESTORED")
    assert "CONNECTION_LOST" in shown
    terminal.send("C-q")
    assert terminal.exit_status() == 0


def test_a_daemon_that_hangs(daemon: Server, blockmon: Callable[..., Tmux]) -> None:
    terminal = blockmon("connect", daemon.address)
    terminal.wait_for("e0  nbd")
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        terminal.wait_for(re.compile(r"no answer since \d\d:\d\d:\d\d"), timeout=25)
        # The screen itself does not hang.
        terminal.send("F4")
        terminal.wait_for("No events yet")
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    terminal.wait_gone("no answer since")
    terminal.send("C-q")
    assert terminal.exit_status() == 0


def test_an_export_that_is_withdrawn(daemon: Server, blockmon: Callable[..., Tmux]) -> None:
    terminal = blockmon("connect", daemon.address)
    terminal.wait_for("e0  nbd")
    daemon.ask("block-export-del", {"id": "e0"})
    terminal.wait_for(re.compile(r"e0  nbd  gone"))
    terminal.wait_gone("e0  nbd")
    terminal.send("C-q")
    assert terminal.exit_status() == 0


def test_a_machine_that_somebody_else_ends(machine: Server, blockmon: Callable[..., Tmux]) -> None:
    terminal = blockmon("connect", machine.address)
    terminal.wait_for("vda  virtio-blk-pci")
    machine.ask("quit")
    terminal.wait_for(re.compile(r"connection lost, retrying in \d+ s"))
    terminal.send("F4")
    terminal.wait_for("reason=host-qmp-quit")  # the last that it said is not lost
    terminal.send("C-q")
    assert terminal.exit_status() == 0


def test_the_prompt_alone(daemon: Server, blockmon: Callable[..., Tmux]) -> None:
    terminal = blockmon("repl", "--connect", daemon.address)
    terminal.wait_for("(qmp)")
    terminal.type("query-block-exports ")
    terminal.send("Enter")
    terminal.wait_for(re.compile(r"\be0\b"))
    daemon.stop()
    terminal.wait_for("connection lost: the server has closed the connection")
    terminal.type("query-version ")
    terminal.send("Enter")
    terminal.wait_for("Disconnected")
    daemon.start()
    terminal.wait_for("connected again", timeout=15)
    terminal.type("query-version ")
    terminal.send("Enter")
    terminal.wait_for("major")
    terminal.send("C-d")
    assert terminal.exit_status() == 0


def test_a_wrong_address_is_one_clear_line(blockmon: Callable[..., Tmux], tmux: Callable[..., Tmux]) -> None:
    terminal = tmux(["sh", "-c", f"{sys.executable} -m blockmon connect unix:/nothing; echo status $?; read x"])
    shown = terminal.wait_for(re.compile(r"status \d"))
    assert "blockmon: connect unix:/nothing: No such file or directory\nstatus 1" in shown
