"""A guest of qemu-system-x86_64 that boots from our NBD export: SeaBIOS, and a boot sector that reads and writes."""

from __future__ import annotations

import random
import struct
import subprocess
from pathlib import Path

import pytest

from engine.engine import Engine
from tests.qemu import QemuImages

BLOCK, BLOCKS = 32 << 10, 64
SIZE = 8 << 20
PROGRAM = bytes.fromhex(
    "31c08ed88ec08ed0bc007cbb007c88970001fc6631edb9400051b442e84200be0080b9002066ad6601c5e2f966830618"
    "7d4059e2e4b9080066c1c50489e8240f3c0a720204270430e82e00e2ebb80043e80e00b057e82100b00ae81c00b001eb"
    "138a16007dbe107dcd137201c3b045e80700b002e6f4f4ebfd88c4bafd03eca82074fb88e0baf803eec3"
)
"""What the sector does, in 16-bit code that SeaBIOS starts at 7c00h:

- with int 13h, function 42h and the packet at 7d10h, read 64 blocks of 64 sectors each to 8000h, one behind another;
- add their double words up and send the sum to the serial port, eight digits;
- write the last block behind itself, function 43h, and send "W";
- leave the emulator by its debug-exit port: 1 if all went well, 2 after an "E" when the disk had an error.
"""
PACKET = struct.pack("<BBHHHQ", 16, 0, BLOCK // 512, 0x8000, 0, 64)


def disk() -> bytes:
    """A disk with the boot sector, and data from sector 64 on."""
    sector = (PROGRAM.ljust(0x110, b"\0") + PACKET).ljust(510, b"\0") + b"\x55\xaa"
    data = random.Random(11).randbytes(BLOCK * BLOCKS)
    return (sector.ljust(BLOCK, b"\0") + data).ljust(SIZE, b"\0")


@pytest.mark.parametrize("interface", ["ide", "virtio"])
@pytest.mark.parametrize("writable", [True, False])
def test_a_guest_boots(interface: str, writable: bool, tmp_path: Path, images: QemuImages, qemu_system: str) -> None:
    """The disk is an overlay; the guest reads what lies below, and what it writes goes into the overlay only."""
    content = disk()
    raw = tmp_path / "disk.raw"
    raw.write_bytes(content)
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    images.run("convert", "-f", "raw", "-O", "qcow2", raw, base)
    images.create(top, backing=base)
    before = base.read_bytes()
    engine = Engine()
    try:
        address = {"type": "unix", "data": {"path": str(tmp_path / "sock")}}
        engine.execute("nbd-server-start", {"addr": address})
        file = {"driver": "file", "filename": str(top)}
        engine.execute("blockdev-add", {"driver": "qcow2", "node-name": "top", "file": file})
        engine.execute("block-export-add", {"type": "nbd", "id": "e", "node-name": "top", "writable": writable})
        drive = f"file=nbd+unix:///top?socket={tmp_path}/sock,format=raw,if={interface}"
        done = subprocess.run(
            [
                *("timeout", "60", qemu_system, "-accel", "tcg", "-nodefaults", "-no-user-config", "-m", "32"),
                *("-display", "none", "-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=1"),
                *("-drive", drive if writable else f"{drive},snapshot=on"),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        engine.close()
    words = struct.unpack(f"<{BLOCK * BLOCKS // 4}I", content[BLOCK : BLOCK * (BLOCKS + 1)])
    assert (done.stdout, done.stderr) == (f"{sum(words) & 0xFFFFFFFF:08x}W\n", "")
    assert done.returncode == 1 << 1 | 1
    expected = bytearray(content)
    if writable:
        at = BLOCK * (BLOCKS + 1)
        expected[at : at + BLOCK] = expected[at - BLOCK : at]
    raw.write_bytes(expected)
    images.check(top)
    images.assert_identical(top, raw, b_format="raw")
    assert base.read_bytes() == before
