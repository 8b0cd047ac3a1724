"""Real programs that listen for QMP at a socket: qemu-storage-daemon, a PC with disks, `blockmon serve`."""

import json
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.qemu import QemuImages

MIB = 1 << 20


class Server:
    """A running program with QMP at `address`. A second monitor, at `side`, is for the test itself."""

    def __init__(self, command: Sequence[str], where: Path) -> None:
        self.path, self.side = where / "q.sock", where / "side.sock"
        self.address = f"unix:{self.path}"
        self._command = [argument.format(q=self.path, side=self.side) for argument in command]
        self._where = where
        self._side: socket.socket | None = None
        self.start()

    def start(self) -> None:
        """Start it, and wait until both sockets take connections."""
        self.process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, cwd=self._where)
        deadline = time.monotonic() + 20
        while True:
            try:
                self._side = socket.socket(socket.AF_UNIX)
                self._side.settimeout(20)
                self._side.connect(str(self.side))
                if self.path.exists():
                    break
            except OSError:
                self._side.close() if self._side is not None else None
            assert self.process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server does not listen"
            time.sleep(0.02)
        self._lines = self._side.makefile("r")
        self._lines.readline()
        self.ask("qmp_capabilities")

    def ask(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Execute a command at the side monitor and return its value."""
        assert self._side is not None
        self._side.sendall(json.dumps({"execute": command, "arguments": dict(arguments or {})}).encode() + b"\n")
        while "event" in (message := json.loads(self._lines.readline())):
            pass
        assert "return" in message, message
        return message["return"]

    def stop(self) -> None:
        """End it at once, as a crash would."""
        self.process.kill()
        self.process.wait()
        if self._side is not None:
            self._lines.close()
            self._side.close()
            self._side = None
        for path in (self.path, self.side):
            path.unlink(missing_ok=True)


def make_images(images: QemuImages, where: Path) -> None:
    """base with 8 MiB of data, top on it, an empty target, a disk of its own."""
    images.create(where / "base.qcow2", 64 * MIB)
    images.io(where / "base.qcow2", "write -P 1 0 8M")
    images.create(where / "top.qcow2", backing="base.qcow2")
    images.create(where / "target.qcow2", 64 * MIB)
    images.create(where / "ide.qcow2", 10 * MIB)


NODES = (
    *("driver=file,node-name=top-file,filename=top.qcow2", "driver=qcow2,node-name=top,file=top-file"),
    *("driver=file,node-name=target-file,filename=target.qcow2", "driver=qcow2,node-name=target,file=target-file"),
)
"""What the programs' -blockdev options get."""


def storage_daemon(program: str, where: Path, *more: str) -> Server:
    """A qemu-storage-daemon with NODES, top exported."""
    command = [program]
    for number, name in enumerate(("q", "side")):
        command += ["--chardev", f"socket,path={{{name}}},server=on,wait=off,id=m{number}", "--monitor", f"m{number}"]
    for node in NODES:
        command += ["--blockdev", node]
    command += ["--nbd-server", "addr.type=unix,addr.path=nbd.sock"]
    return Server([*command, "--export", "nbd,id=e0,node-name=top,writable=on", *more], where)


def pc(program: str, where: Path, *more: str) -> Server:
    """A PC that is not started: vda on top, an IDE disk by -drive, an empty CD drive."""
    command = [program, "-M", "pc", "-display", "none", "-S", "-nodefaults"]
    for name in ("q", "side"):
        command += ["-qmp", f"unix:{{{name}}},server=on,wait=off"]
    for node in NODES:
        command += ["-blockdev", node]
    command += ["-device", "virtio-blk-pci,drive=top,id=vda", "-drive", "file=ide.qcow2,if=ide,id=hd0"]
    return Server([*command, "-device", "ide-cd,id=cd0", *more], where)
