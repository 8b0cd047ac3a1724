"""QEMU's PC beside our machine: the same devices and nodes on both sides, then one conversation."""

import json
import shutil
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.interop.differential import Do, OurPeer, Step, Transcript, assert_same

Device = Mapping[str, Any]

MIB = 1 << 20
NULL = {"driver": "null-co", "size": MIB, "read-zeroes": True}
CONT, RUNNING = Do("cont"), Do("query-status")

_IDLE = bytes.fromhex("faf4ebfc")
"""cli; hlt; jump back."""


def hmp(line: str) -> Do:
    return Do("human-monitor-command", {"command-line": line})


def make_files(where: Path) -> None:
    """Media of 1 MiB: a.raw, c.raw and b.qcow2."""
    (where / "a.raw").write_bytes(b"a" * MIB)
    (where / "c.raw").write_bytes(b"c" * MIB)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(where / "b.qcow2"), "1M"], check=True, timeout=30)


def firmware(where: Path, code: bytes = b"") -> Path:
    """A BIOS that runs *code* (real mode, at F000:0000) and then sleeps, so that the guest runs and costs nothing."""
    image = bytearray(1 << 16)
    image[: len(code) + len(_IDLE)] = code + _IDLE
    image[0xFFF0:0xFFF5] = bytes.fromhex("ea000000f0")
    path = where / "bios.bin"
    path.write_bytes(image)
    return path


def both(
    conversation: Sequence[Step],
    folder: Path,
    *,
    devices: Sequence[Device] = (),
    nodes: Sequence[Mapping[str, Any]] = (),
    prepare: Callable[[Path], object] | None = None,
    ignore: Collection[str] = (),
    events: bool = True,
    code: bytes = b"",
    first: Callable[[OurPeer], object] | None = None,
    paused: bool = False,
    options: Sequence[str] = (),
    drives: Callable[[OurPeer], object] | None = None,
) -> Transcript:
    """Play *conversation* to a running PC with *nodes* and *devices*, on both sides.

    code: what the real guest executes at the start; first: what ours does instead. paused: the machine was never
    started (a real guest would answer otherwise; ours is just stopped). options: more of the real one's command line,
    in front of the devices'; *drives* does the like on our side.
    """
    emulator = shutil.which("qemu-system-x86_64")
    if emulator is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    command = [emulator, "-M", "pc", "-display", "none", "-nodefaults", "-qmp", "stdio"]
    command += ["-bios", str(firmware(folder, code))]
    if paused:
        command.append("-S")
    real = folder / "real"
    command += [option.replace("$DIR", str(real)) for option in options]
    for node in nodes:
        command += ["-blockdev", json.dumps(node).replace("$DIR", str(real))]
    for device in devices:
        command += ["-device", json.dumps(device)]

    def ours() -> OurPeer:
        peer = OurPeer()
        peer.where = folder / "ours"
        for node in nodes:
            answer = peer.ask("blockdev-add", json.loads(json.dumps(node).replace("$DIR", str(folder / "ours"))))
            assert "return" in answer, answer
        if drives is not None:
            drives(peer)
        for device in devices:
            answer = peer.ask("device_add", device)
            assert "return" in answer, answer
        if paused:
            peer.ask("stop", {})
            peer.events.clear()
        if first is not None:
            first(peer)
        return peer

    return assert_same(conversation, folder, prepare=prepare, real=command, ignore=ignore, events=events, ours=ours)
