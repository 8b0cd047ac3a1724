"""A terminal that goes away while a guest writes: the images are closed as at any other end."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.blockmon.tui.test_terminal import Terminal, running
from tests.conftest import find_tool
from tests.tmux import Tmux

ENDINGS: dict[str, tuple[Callable[[Terminal], None], int]] = {
    "hang-up": (lambda screen: screen.hang_up(), 128 + signal.SIGHUP),
    "SIGHUP": (lambda screen: os.kill(screen.pid, signal.SIGHUP), 128 + signal.SIGHUP),
    "SIGTERM": (lambda screen: os.kill(screen.pid, signal.SIGTERM), 128 + signal.SIGTERM),
    "Ctrl+Q": (lambda screen: screen.quit(), 0),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_images_are_closed_cleanly(tmp_path: Path, qemu_img: str, ending: str) -> None:
    image = tmp_path / "disk.qcow2"
    # With lazy refcounts an image that was not closed is marked so.
    create = [qemu_img, "create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", str(image), "64M"]
    subprocess.run(create, check=True, timeout=30)
    command = [sys.executable, "-m", "blockmon"]
    for blockdev in (
        f"driver=file,node-name=file0,filename={image}",
        "driver=qcow2,node-name=disk0,file=file0",
    ):
        command += ["--blockdev", blockdev]
    with running(command, XDG_STATE_HOME=str(tmp_path), TERM="xterm-256color", LC_ALL="C.UTF-8") as screen:
        screen.read_until(b"(qmp)")
        screen.read_until(b"disk0")
        screen.send(b"\x1b[15~")
        screen.read_until_quiet()
        screen.send(b"x-blockmon-guest-add id=vda node-name=disk0 iops=200 seed=1\r")
        screen.read_until(b"virtio-blk")
        while image.stat().st_size < 2**20:  # it writes
            screen.read(0.05)
        end, status = ENDINGS[ending]
        end(screen)
        assert screen.wait() == status
    checked = subprocess.run([qemu_img, "check", str(image)], capture_output=True, text=True, check=False, timeout=30)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    info = subprocess.run([qemu_img, "info", "--output=json", str(image)], capture_output=True, check=True, timeout=30)
    assert json.loads(info.stdout)["dirty-flag"] is False


def test_in_gnu_screen_within_tmux(tmux: Callable[..., Tmux], tmp_path: Path) -> None:
    find_tool("screen")
    env = {"XDG_STATE_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "SCREENDIR": str(tmp_path / "screen")}
    (tmp_path / "screen").mkdir(mode=0o700)
    program = [sys.executable, "-m", "blockmon", "--blockdev", "driver=null-co,node-name=disk0,size=1048576"]
    terminal = tmux(["screen", "-c", "/dev/null", "-U", "-T", "screen", *program], env=env)
    terminal.wait_for("disk0")
    shown = terminal.wait_for("(qmp)")
    assert "─ F5 REPL ─" in shown
    assert shown.splitlines()[-1].startswith(" F1 help")
    terminal.send("F5")
    terminal.type("query-version")
    terminal.wait_for("(qmp) query-version")
    terminal.resize(40, 10)
    terminal.wait_for(" Graph  Inspector")
    terminal.resize(80, 24)
    terminal.wait_for("F2 Graph   F6 Inspector")
    terminal.send("C-q")
    assert terminal.exit_status() == 0


def test_a_shell_takes_over_at_control_z_and_fg_brings_all_back(tmux: Callable[..., Tmux], tmp_path: Path) -> None:
    env = {"XDG_STATE_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    (tmp_path / "rc").write_text("PS1='shell> '\n")
    terminal = tmux(["bash", "--noprofile", "--rcfile", str(tmp_path / "rc")], env=env)
    terminal.wait_for("shell>")
    terminal.type(f"{sys.executable} -m blockmon --blockdev driver=null-co,node-name=disk0,size=1048576")
    terminal.send("Enter")
    terminal.wait_for("(qmp)")
    terminal.wait_for("disk0")
    terminal.send("F5")
    terminal.type("query-")
    terminal.wait_for("(qmp) query-")
    terminal.send("C-z")
    terminal.wait_for("Stopped")
    terminal.type("stty -a | grep -c -- ' icanon'")
    terminal.send("Enter")
    terminal.wait_for("\n1\n")
    terminal.type("fg")
    terminal.send("Enter")
    shown = terminal.wait_for("(qmp) query-")
    assert "disk0" in shown
    assert "Stopped" not in shown
    terminal.type("version")
    terminal.wait_for("(qmp) query-version")
    terminal.send("C-q")
    terminal.wait_for("shell>")
    terminal.type("exit $?")
    terminal.send("Enter")
    assert terminal.exit_status() == 0
