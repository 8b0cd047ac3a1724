"""A disk that boots in a PC: its first sector is a program that reads and writes the disk by the BIOS."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

SECTOR = 512
TEXT = b"sector one is up"
"""What the program reads from sector 1, sends to the serial port, and writes to sector 2."""
SAID = TEXT + b"W"
"""All that it sends when everything went well; an F stands for a request that failed."""


def boot_sector() -> bytes:
    """16-bit code: INT 13h, extended read of sector 1 and write to sector 2, serial port 0x3f8, exit by port 0xf4."""
    origin, buffer = 0x7C00, 0x8000
    code = bytearray()
    fixes: list[tuple[int, str]] = []
    labels: dict[str, int] = {}

    def emit(*values: int) -> None:
        code.extend(values)

    def word(label: str) -> None:
        fixes.append((len(code), label))
        emit(0, 0)

    def jump(opcode: int, label: str) -> None:
        emit(opcode)
        fixes.append((len(code), "short " + label))
        emit(0)

    emit(0x31, 0xC0, 0x8E, 0xD8, 0x8E, 0xD0, 0xBC, 0x00, 0x7C)  # xor ax,ax; mov ds,ax; mov ss,ax; mov sp,0x7c00
    emit(0x88, 0x16)
    word("drive")  # mov [drive],dl
    emit(0xBE)
    word("packet")  # mov si,packet
    emit(0xB4, 0x42, 0xCD, 0x13)  # mov ah,0x42; int 0x13
    jump(0x72, "failed")  # jc failed
    emit(0xBE, buffer & 0xFF, buffer >> 8, 0xB9, len(TEXT), 0x00)  # mov si,buffer; mov cx,16
    labels["send"] = len(code)
    emit(0xAC, 0xBA, 0xF8, 0x03, 0xEE)  # lodsb; mov dx,0x3f8; out dx,al
    jump(0xE2, "send")  # loop send
    emit(0xC6, 0x06)
    word("sector")
    emit(0x02)  # mov byte [sector],2
    emit(0xBE)
    word("packet")
    emit(0x8A, 0x16)
    word("drive")  # mov dl,[drive]
    emit(0xB8, 0x00, 0x43, 0xCD, 0x13)  # mov ax,0x4300; int 0x13
    jump(0x72, "failed")
    emit(0xB0, ord("W"))  # mov al,'W'
    jump(0xEB, "out")
    labels["failed"] = len(code)
    emit(0xB0, ord("F"))
    labels["out"] = len(code)
    emit(0xBA, 0xF8, 0x03, 0xEE, 0xBA, 0xF4, 0x00, 0xEE, 0xF4)  # to 0x3f8 and to 0xf4; hlt
    labels["drive"] = len(code)
    emit(0)
    code.extend(bytes(-len(code) % 4))
    labels["packet"] = len(code)
    emit(0x10, 0, 1, 0, buffer & 0xFF, buffer >> 8, 0, 0)
    labels["sector"] = len(code)
    emit(1, 0, 0, 0, 0, 0, 0, 0)
    for at, label in fixes:
        if label.startswith("short "):
            code[at] = (labels[label.removeprefix("short ")] - at - 1) & 0xFF
        else:
            code[at : at + 2] = (origin + labels[label]).to_bytes(2, "little")
    return bytes(code.ljust(510, b"\0")) + b"\x55\xaa"


def bootable(size: int) -> bytes:
    """A disk of *size* bytes that boots."""
    return (boot_sector() + TEXT.ljust(SECTOR, b".")).ljust(size, b"\0")


def boot(program: str, *devices: str, timeout: float = 60) -> str:
    """Boot a PC with *devices* (options of qemu-system); what it says on its serial port."""
    command: Sequence[str] = (
        *(program, "-M", "pc,accel=tcg", "-m", "64", "-display", "none", "-serial", "stdio", "-monitor", "none"),
        *("-nodefaults", "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=1", *devices),
    )
    done = subprocess.run(command, capture_output=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL)
    assert done.stderr == b"", done.stderr.decode()
    return done.stdout.decode(errors="replace")
