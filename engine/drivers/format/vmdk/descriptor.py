"""The descriptor: text with the disk's type, its CIDs, its parent and the list of its extents."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine.errors import GenericError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_SIZE: Final = (1 << 20) - 1
"""Bytes of a descriptor file that are looked at."""
EMBEDDED_SIZE: Final = 20 * 512
"""Bytes that hold the CIDs and the parent's name, counted from the descriptor's start."""
MAX_EXTENTS: Final = 4096
"""Extents of one image; QEMU has no limit and ends by running out of descriptors."""
NO_PARENT: Final = 0xFFFFFFFF
MAX_NAME: Final = 1023
"""Longest name of a parent, bytes."""
CREATE_TYPES: Final = frozenset(
    {"monolithicFlat", "vmfs", "vmfsSparse", "seSparse", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"}
)
"""Types of disks whose data are in files of their own."""

_VERSION_LINE = re.compile(rb"version=[123]\r?\n")
_BLANK = re.compile(rb" +\r?\n")
_EXTENT = re.compile(rb'\s*(\S{1,10})\s*([+-]?\d+)\s*(\S{1,10})\s*"([^\n\r"]{1,511})"\s*([+-]?\d+)?', re.ASCII)
_EIGHT_DIGITS = re.compile(rb"[0-9a-fA-F]{8}(?![0-9a-fA-F])")
_HEX = re.compile(rb"\s*([+-]?)(?:0[xX])?([0-9a-fA-F]+)")


def looks_like(head: bytes) -> bool:
    """Whether text begins as a descriptor: comments and blank lines, then the version."""
    at = 0
    while at < len(head):
        if head[at] == 0x23:
            end = head.find(b"\n", at)
            at = len(head) if end < 0 else end + 1
            continue
        blank = _BLANK.match(head, at)
        if blank is None:
            return _VERSION_LINE.match(head, at) is not None
        at = blank.end()
    return False


def until_nul(data: bytes | bytearray) -> bytes:
    """The text before the first NUL."""
    return bytes(data).split(b"\0", 1)[0]


def create_type(text: bytes) -> str:
    """The disk's type. Errors: GenericError."""
    at = text.find(b"createType")
    end = text.find(b'"', at + 12)
    if at < 0 or end < 0 or end - at - 12 > 127:
        raise GenericError("invalid VMDK image descriptor")
    return text[at + 12 : end].decode(errors="replace")


def cid(text: bytes, *, parent: bool = False) -> int | None:
    """The disk's CID, or the one its parent had; None where there is none."""
    key = b"parentCID" if parent else b"CID"
    at = text.find(key)
    found = _HEX.match(text, at + len(key) + 1) if at >= 0 else None
    if found is None:
        return None
    value = int(found[2], 16)
    return (-value if found[1] == b"-" else value) & 0xFFFFFFFF


def change_cid(text: bytes, value: int) -> tuple[int, bytes] | None:
    """(offset, bytes) to write over the descriptor for another CID; None where it has no place for one.

    Eight digits are replaced in place; fewer of them need what follows, from the parent's CID on, to be moved.
    """
    rest, at = text.find(b"parentCID"), text.find(b"CID=")
    if rest < 0 or at < 0:
        return None
    at += 4
    digits = f"{value:08x}".encode()
    if _EIGHT_DIGITS.match(text, at):
        return at, digits
    moved = digits + b"\n" + text[rest:]
    if rest < at or at + len(moved) >= EMBEDDED_SIZE:
        return None
    return at, moved + bytes(max(len(text) - at - len(moved), 0))


def parent_name(text: bytes) -> str | None:
    """The backing file's name, None where there is none. Errors: ValueError for one that is broken."""
    key = b"parentFileNameHint"
    at = text.find(key)
    if at < 0:
        return None
    at += len(key) + 2
    end = text.find(b'"', at)
    if end < 0 or end - at > MAX_NAME:
        raise ValueError
    return text[at:end].decode(errors="surrogateescape")


@dataclass(frozen=True, slots=True)
class ExtentLine:
    """One extent as the descriptor lists it. sectors: its length. offset: bytes into a flat file."""

    kind: str
    sectors: int
    filename: str
    offset: int = 0

    @property
    def flat(self) -> bool:
        return self.kind in ("FLAT", "VMFS")


_KINDS = frozenset({"FLAT", "SPARSE", "VMFS", "VMFSSPARSE", "SESPARSE"})


def extent_lines(text: bytes) -> Iterator[ExtentLine]:
    """The extents in their order; lines of other kinds are skipped. Errors: GenericError."""
    count = 0
    for line in text.split(b"\n"):
        found = _EXTENT.match(line)
        if found is None or found[1] != b"RW":
            continue
        kind = found[3].decode(errors="replace")
        sectors, offset = int(found[2]), found[5]
        flat_offset = 0
        if kind == "FLAT":
            flat_offset = -1 if offset is None else int(offset)
        elif offset is not None:
            flat_offset = -1
        if not 0 <= flat_offset < 1 << 54:
            raise GenericError(f"Invalid extent line: {line.decode(errors='replace')}")
        if sectors <= 0 or kind not in _KINDS:
            continue
        if sectors >= 1 << 54:
            raise GenericError(f"Invalid extent line: {line.decode(errors='replace')}")
        count += 1
        if count > MAX_EXTENTS:
            raise GenericError(f"The image has more than {MAX_EXTENTS} extents")
        yield ExtentLine(kind, sectors, found[4].decode(errors="surrogateescape"), flat_offset << 9)


def compose(
    *,
    cid: int,
    parent_cid: int,
    create_type: str,
    parent: str | None,
    extents: list[str],
    hwversion: str,
    size: int,
    heads: int,
    adapter: str,
    toolsversion: str,
) -> bytes:
    """The text of a new descriptor. extents: whole lines. size: bytes."""
    head = [
        "# Disk DescriptorFile",
        "version=1",
        f"CID={cid:08x}",
        f"parentCID={parent_cid:08x}",
        f'createType="{create_type}"',
        f'parentFileNameHint="{parent}"' if parent is not None else "",
        "# Extent description",
    ]
    tail = [
        "",
        "# The Disk Data Base",
        "#DDB",
        "",
        f'ddb.virtualHWVersion = "{hwversion}"',
        f'ddb.geometry.cylinders = "{size // (63 * heads * 512)}"',
        f'ddb.geometry.heads = "{heads}"',
        'ddb.geometry.sectors = "63"',
        f'ddb.adapterType = "{adapter}"',
        f'ddb.toolsVersion = "{toolsversion}"',
        "",
    ]
    return "\n".join(head + extents + tail).encode(errors="surrogateescape")
