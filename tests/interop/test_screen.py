"""The whole program in a terminal of 80 by 24, on chains made by qemu-img."""

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tmux import Tmux


@pytest.fixture
def chain(tmp_path: Path, qemu_img: str, qemu_io: str) -> Path:
    """base, mid, top, with data in each; the path of the topmost."""

    def run(*command: str) -> None:
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)

    run(qemu_img, "create", "-q", "-f", "qcow2", "base.qcow2", "16M")
    run(qemu_io, "-c", "write -P 1 0 4M", "base.qcow2")
    for name, backing, write in (("mid", "base", "write -P 2 2M 4M"), ("top", "mid", "write -P 3 5M 1000k")):
        run(qemu_img, "create", "-q", "-f", "qcow2", "-b", f"{backing}.qcow2", "-F", "qcow2", f"{name}.qcow2")
        run(qemu_io, "-c", write, f"{name}.qcow2")
    return tmp_path / "top.qcow2"


@pytest.fixture
def screen(tmux: Callable[..., Tmux], tmp_path: Path) -> Callable[..., Tmux]:
    """Start blockmon with these arguments."""

    def start(*arguments: str) -> Tmux:
        env = {"XDG_STATE_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
        return tmux([sys.executable, "-m", "blockmon", *arguments], columns=80, rows=24, env=env)

    return start


def test_see_the_chain_ask_something_and_leave(chain: Path, screen: Callable[..., Tmux]) -> None:
    terminal = screen(str(chain))
    shown = terminal.wait_for("base-file")
    for words in ("backing → mid  qcow2", "backing → base  qcow2", "6 nodes", "16M", "ro"):
        assert words in shown
    assert "rw" not in shown
    terminal.send("F5")
    terminal.type("query-version")
    terminal.wait_for("(qmp) query-version")
    terminal.send("Enter")
    terminal.wait_for('"qemu"')
    terminal.send("C-q")
    assert terminal.exit_status() == 0


def test_a_key_streams_the_chain_into_the_top(chain: Path, screen: Callable[..., Tmux], qemu_img: str) -> None:
    flat = chain.with_name("flat.raw")
    subprocess.run([qemu_img, "convert", "-O", "raw", str(chain), str(flat)], check=True)
    terminal = screen("--rw", str(chain))
    terminal.wait_for("base-file")
    terminal.send("s")
    terminal.wait_for("(qmp) block-stream job-id=stream0 device=top")
    terminal.send("Enter")
    terminal.send("F3")
    terminal.wait_for("✓ stream0")
    terminal.send("F2")
    terminal.wait_for("2 nodes")
    terminal.send("C-q")
    assert terminal.exit_status() == 0
    info = subprocess.run([qemu_img, "info", str(chain)], check=True, capture_output=True, text=True).stdout
    assert "backing file" not in info
    subprocess.run([qemu_img, "compare", str(chain), str(flat)], check=True, capture_output=True)
    subprocess.run([qemu_img, "check", str(chain)], check=True, capture_output=True)


def test_a_missing_backing_file_is_told_in_its_place(chain: Path, screen: Callable[..., Tmux]) -> None:
    chain.with_name("base.qcow2").unlink()
    terminal = screen(str(chain))
    shown = terminal.wait_for("No such file or directory")
    row = next(line for line in shown.splitlines() if "No such file" in line)
    assert "backing ✗ base.qcow2" in row
    assert "1 broken" in shown
    assert "mid-file" in shown
    terminal.send("C-q")
    assert terminal.exit_status() == 0


def test_what_cannot_start_is_said_after_the_screen_is_gone(tmp_path: Path, tmux: Callable[..., Tmux]) -> None:
    program = f"{shlex.quote(sys.executable)} -m blockmon"
    for arguments, complaint in (("nothing.qcow2", "blockmon: nothing.qcow2: "), ("--theme x", "blockmon: --theme: ")):
        terminal = tmux(["sh", "-c", f"{program} {arguments}; echo status $?; read x"], cwd=tmp_path)
        assert complaint in terminal.wait_for("status 1")
