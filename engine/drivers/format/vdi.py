"""vdi: VirtualBox disk images, version 1.1, growing (dynamic) or with all blocks there from the start (static).

The file is a header of 512 bytes, a map with one 32-bit number a block, and the blocks of 1 MiB. All little-endian.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
import uuid
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine.drivers.format.blocktable import READ_STEP, BlockTable, File
from engine.errors import GenericError, os_error_text
from engine.graph.driver import (
    CreateContext,
    Driver,
    DriverInfo,
    Extent,
    Opening,
    ReopenState,
    Status,
    register,
)
from engine.graph.edge import Edge
from engine.graph.options import BlockdevOptionsGenericFormat, BlockdevRef, PreallocMode
from engine.graph.permissions import Perm, Role
from engine.qapi import Size, Struct, to_wire

if TYPE_CHECKING:
    from engine.drivers.format.qcow2.findings import CheckResult

SIGNATURE: Final = 0xBEDA107F
VERSION: Final = 0x00010001
SECTOR: Final = 512
BLOCK: Final = 1 << 20
DYNAMIC: Final = 1
STATIC: Final = 2
UNALLOCATED: Final = 0xFFFFFFFF
DISCARDED: Final = 0xFFFFFFFE
"""The block was trimmed: it reads as zeros, too. What is below is the number of a block in the file."""
MAX_BLOCKS: Final = ((1 << 31) - SECTOR) // 4
MAX_SIZE: Final = MAX_BLOCKS * BLOCK
_TEXT: Final = b"<<< QEMU VM Virtual Disk Image >>>\n"
_HEADER_SIZE_FIELD: Final = 0x180
_FORMAT: Final = struct.Struct("<64sIIIII256sIIIIIIIQIIII16s16s16s16s56s")
_DATA = int(Status.DATA | Status.OFFSET_VALID)
_RECURSE = int(Status.RECURSE)
_ZERO = int(Status.ZERO)


@dataclass
class Header:
    """The header's fields, numbers in bytes where they are lengths or places in the file."""

    text: bytes
    signature: int
    version: int
    header_size: int
    image_type: int
    image_flags: int
    description: bytes
    offset_bmap: int
    offset_data: int
    cylinders: int
    heads: int
    sectors: int
    sector_size: int
    unused: int
    disk_size: int
    block_size: int
    block_extra: int
    blocks_in_image: int
    blocks_allocated: int
    uuid_image: bytes
    uuid_last_snap: bytes
    uuid_link: bytes
    uuid_parent: bytes
    rest: bytes

    def encode(self) -> bytes:
        """The 512 bytes on disk."""
        return _FORMAT.pack(*vars(self).values())


def _parse(raw: bytes) -> Header:
    """The header of an image. Errors: GenericError where it is none, or one that can't be handled."""
    header = Header(*_FORMAT.unpack(raw))
    if header.disk_size > MAX_SIZE:
        raise GenericError(_too_large(header.disk_size))
    # VirtualBox makes images of odd sizes from raw ones.
    header.disk_size = -(-header.disk_size // SECTOR) * SECTOR
    if header.signature != SIGNATURE:
        raise GenericError(f"Image not in VDI format (bad signature {header.signature:08x})")
    problem = _problem(header)
    if problem:
        raise GenericError(f"unsupported VDI image ({problem})")
    return header


def _problem(header: Header) -> str:
    if header.version != VERSION:
        return f"version {header.version >> 16}.{header.version & 0xFFFF}"
    if header.offset_bmap % SECTOR:
        return f"unaligned block map offset 0x{header.offset_bmap:x}"
    if header.offset_data % SECTOR:
        return f"unaligned data offset 0x{header.offset_data:x}"
    if header.sector_size != SECTOR:
        return f"sector size {header.sector_size} is not {SECTOR}"
    if header.block_size != BLOCK:
        return f"block size {header.block_size} is not {BLOCK}"
    room = header.blocks_in_image * BLOCK
    if header.disk_size > room:
        return f"disk size {header.disk_size}, image bitmap has room for {room}"
    if any(header.uuid_link):
        return "non-NULL link UUID"
    if any(header.uuid_parent):
        return "non-NULL parent UUID"
    if header.blocks_in_image > MAX_BLOCKS:
        return f"too many blocks {header.blocks_in_image}, max is {MAX_BLOCKS}"
    return ""


def _too_large(size: int) -> str:
    return f"Unsupported VDI image size (size is 0x{size:x}, max supported is 0x{MAX_SIZE:x})"


class BlockdevCreateOptionsVdi(Struct):
    """A new vdi image.

    file: node to make the image in. size: virtual size, bytes. preallocation: metadata makes a static image;
    default off.
    """

    file: BlockdevRef
    size: Size
    preallocation: PreallocMode | None = None


@register
class VdiDriver(Driver):
    """The vdi format."""

    name = "vdi"
    Options = BlockdevOptionsGenericFormat
    CreateOptions = BlockdevCreateOptionsVdi

    file: Edge
    header: Header
    table: BlockTable

    # -- control plane ---------------------------------------------------------------------------------------

    @classmethod
    def probe(cls, head: bytes, filename: str) -> int:
        return 100 if head[0x40:0x44] == SIGNATURE.to_bytes(4, "little") else 0

    def open(self, opening: Opening) -> None:
        file = opening.open_child("file", Role.IMAGE)
        assert file is not None
        self.file = file
        raw = bytearray(_FORMAT.size)
        file.read(0, memoryview(raw))
        self.header = header = _parse(bytes(raw))
        size = header.blocks_in_image * 4
        # A short file can't make us take gigabytes for a map that isn't there.
        if header.offset_bmap + size > file.length:
            raise GenericError("unsupported VDI image (the block map is not within the file)")
        self.table = BlockTable(file, header.offset_bmap, header.blocks_in_image, "little")
        self.length = header.disk_size
        self._next = self._first_free()

    def _first_free(self) -> int:
        """Number of the first block that may be allocated: past all that are in use, whatever the header counts."""
        in_file = (self.file.length - self.header.offset_data) // BLOCK + 1
        bound = min(max(self.header.blocks_in_image, in_file), DISCARDED)
        return max((entry for entry in self.table.entries if entry < bound), default=-1) + 1

    def close(self) -> None:
        if getattr(self, "table", None) is None or self.node.read_only:
            return
        try:
            self._write_back()
        except OSError:
            # As after a crash: what is not in the map yet is lost.
            return

    def reopen_prepare(self, state: ReopenState) -> None:
        if state.read_only and not self.node.read_only:
            try:
                self._write_back()
            except OSError as exc:
                raise GenericError(f"Failed to flush the image: {os_error_text(exc)}") from exc

    @classmethod
    def create(cls, options: BlockdevCreateOptionsVdi, context: CreateContext) -> None:
        static = _wants_static(options.preallocation)
        if options.size > MAX_SIZE:
            raise GenericError(_too_large(options.size))
        wire = options.file if isinstance(options.file, str) else to_wire(options.file)
        backend = context.open(wire, Perm.WRITE | Perm.RESIZE, Perm.ALL)
        try:
            from engine.drivers.format.qcow2.create import BackendChild

            _build(BackendChild(backend), options.size, static)
        finally:
            context.close(backend)

    # -- information -----------------------------------------------------------------------------------------

    def info(self) -> DriverInfo | None:
        return DriverInfo(cluster_size=BLOCK)

    def has_zero_init(self) -> bool:
        return self.header.image_type != STATIC or self.file.child.driver.has_zero_init()

    def check(self, fix: frozenset[str] = frozenset()) -> CheckResult:
        """Check the map. There is no repair: ENOTSUP when *fix* asks for it."""
        from engine.drivers.format.qcow2.findings import CheckResult

        if fix:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        result = CheckResult()
        count = self.header.blocks_in_image
        seen = bytearray(-(-count // 8))
        allocated = 0
        for number, entry in enumerate(self.table.entries):
            if entry >= DISCARDED:
                continue
            if entry >= count:
                result.corruptions += 1
                result.say(f"ERROR: block index {number} out of range, is {entry}")
                continue
            allocated += 1
            bit = 1 << (entry & 7)
            if seen[entry >> 3] & bit:
                result.corruptions += 1
                result.say(f"ERROR: block index {entry} also used by {entry}")
            seen[entry >> 3] |= bit
        if allocated != self.header.blocks_allocated:
            result.corruptions += 1
            result.say(f"ERROR: allocated blocks mismatch, is {allocated}, should be {self.header.blocks_allocated}")
        return result

    # -- data plane ------------------------------------------------------------------------------------------

    def _run(self, offset: int, length: int) -> tuple[int, int | None]:
        """The run at *offset* whose bytes lie together: (its length, place in the file or None for zeros)."""
        index, inside = divmod(offset, BLOCK)
        limit = -(-(inside + length) // BLOCK)
        entry = self.table.entries[index]
        if entry >= DISCARDED:
            return min(self.table.equal_run(index, limit) * BLOCK - inside, length), None
        run = min(self.table.rising_run(index, limit, 1) * BLOCK - inside, length)
        return run, self.header.offset_data + entry * BLOCK + inside

    def read(self, offset: int, buffer: memoryview) -> None:
        at = 0
        while at < len(buffer):
            run, host = self._run(offset + at, len(buffer) - at)
            if host is None:
                buffer[at : at + run] = bytes(run)
            else:
                self.file.read(host, buffer[at : at + run])
            at += run

    def write(self, offset: int, data: memoryview, flags: int = 0) -> None:
        at = 0
        while at < len(data):
            run, host = self._run(offset + at, len(data) - at)
            if host is None:
                run = self._allocate(offset + at, data[at : at + run])
            else:
                self.file.write(host, data[at : at + run])
            at += run

    def _allocate(self, offset: int, data: memoryview) -> int:
        """Write as much of *data* as goes to one run of new blocks; returns its length, 0 if others were faster."""
        index, inside = divmod(offset, BLOCK)
        table = self.table
        with table.lock:
            if table.entries[index] < DISCARDED:
                return 0
            whole = len(data) // BLOCK if not inside else 0
            if whole:
                count = table.equal_run(index, whole)
                part, size = data[: count * BLOCK], count * BLOCK
            else:
                count = 1
                part = memoryview(bytearray(BLOCK))
                size = min(len(data), BLOCK - inside)
                part[inside : inside + size] = data[:size]
            first = self._next
            # The numbers at the top mean "no block"; only a broken map gets there.
            if first + count > DISCARDED:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            self.file.write(self.header.offset_data + first * BLOCK, part)
            self._next = self.header.blocks_allocated = first + count
            table.set(index, array("I", range(first, first + count)))
        return size

    def _write_back(self) -> None:
        # A header that counts too many blocks does no harm, one that counts too few makes QEMU use blocks twice.
        self.table.write_back(lambda: self.file.write(0, memoryview(self.header.encode())))

    def flush(self) -> None:
        self.announce_flush()
        self._write_back()

    def block_status(self, offset: int, length: int, want_zero: bool = True) -> Extent:
        run, host = self._run(offset, length)
        if host is None:
            return Extent(run, _ZERO)
        recurse = _RECURSE if self.header.image_type == STATIC else 0
        return Extent(run, _DATA | recurse, self.file.child, host)


def _wants_static(preallocation: PreallocMode | None) -> bool:
    if preallocation not in (None, PreallocMode.OFF, PreallocMode.METADATA):
        raise GenericError("Preallocation mode not supported for vdi")
    return preallocation == PreallocMode.METADATA


def _build(file: File, size: int, static: bool) -> None:
    """Write an empty image of *size* bytes. Errors: GenericError, OSError."""
    blocks = -(-size // BLOCK)
    map_size = -(-blocks * 4 // SECTOR) * SECTOR
    header = Header(
        text=_TEXT,
        signature=SIGNATURE,
        version=VERSION,
        header_size=_HEADER_SIZE_FIELD,
        image_type=STATIC if static else DYNAMIC,
        image_flags=0,
        description=b"",
        offset_bmap=SECTOR,
        offset_data=SECTOR + map_size,
        cylinders=0,
        heads=0,
        sectors=0,
        sector_size=SECTOR,
        unused=0,
        disk_size=size,
        block_size=BLOCK,
        block_extra=0,
        blocks_in_image=blocks,
        blocks_allocated=blocks if static else 0,
        uuid_image=uuid.uuid4().bytes,
        uuid_last_snap=uuid.uuid4().bytes,
        uuid_link=bytes(16),
        uuid_parent=bytes(16),
        rest=b"",
    )
    try:
        file.write(0, memoryview(header.encode()))
    except OSError as exc:
        raise GenericError(f"Error writing header: {os_error_text(exc)}") from exc
    try:
        for start in range(0, map_size, READ_STEP):
            file.write(
                SECTOR + start, memoryview(_map_part(start // 4, blocks, min(map_size - start, READ_STEP), static))
            )
    except OSError as exc:
        raise GenericError(f"Error writing bmap: {os_error_text(exc)}") from exc
    if static:
        try:
            file.truncate(header.offset_data + blocks * BLOCK, exact=False)
        except GenericError as exc:
            raise GenericError(f"Failed to statically allocate file: {exc.desc}") from exc


def _map_part(first: int, blocks: int, size: int, static: bool) -> bytes:
    """*size* bytes of a new map from entry *first* on; what comes after the last block is zeros."""
    count = min(size // 4, blocks - first)
    entries = array("I", range(first, first + count)) if static else array("I", [UNALLOCATED]) * count
    if sys.byteorder != "little":
        entries.byteswap()
    return entries.tobytes().ljust(size, b"\0")
