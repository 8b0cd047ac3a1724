"""vpc: Microsoft's VHD images, fixed (the disk's bytes and a footer) and dynamic (a table, blocks, the footer twice).

All numbers are big-endian. A block of a dynamic image starts with a bitmap of its sectors, all of whose bits are set
on writing; reading takes a block that is there as a whole.
"""

from __future__ import annotations

import errno
import os
import struct
import time
import uuid
from array import array
from dataclasses import dataclass
from typing import Annotated, Final

from engine.drivers.format.blocktable import READ_STEP, BlockTable, File
from engine.errors import GenericError, os_error_text
from engine.graph.driver import CreateContext, Driver, DriverInfo, Extent, Opening, ReopenState, Status, register
from engine.graph.edge import Edge
from engine.graph.options import BlockdevOptionsGenericFormat, BlockdevRef
from engine.graph.permissions import Perm, Role
from engine.graph.requests import MAX_LENGTH
from engine.qapi import Enum, Size, Struct, Wire, to_wire

COOKIE: Final = b"conectix"
SECTOR: Final = 512
FIXED: Final = 2
DYNAMIC: Final = 3
UNALLOCATED: Final = 0xFFFFFFFF
NEW_BLOCK: Final = 2 << 20
"""Bytes of a block in images made here."""
HEADER_SIZE: Final = 1024
MAX_CYLINDERS: Final = 65535
MAX_HEADS: Final = 16
MAX_SECTORS_PER_TRACK: Final = 255
MAX_GEOMETRY: Final = MAX_CYLINDERS * MAX_HEADS * MAX_SECTORS_PER_TRACK
"""Sectors of the largest disk that cylinders, heads and sectors can tell (127 GiB)."""
MAX_SECTORS: Final = 0xFF000000
"""Sectors of the largest disk (2040 GiB)."""
MAX_ENTRIES: Final = ((1 << 31) - 1) // 4
_TRUNCATED: Final = "block-vpc: free_data_block_offset points after the end of file. The image has been truncated."
_EPOCH: Final = 946684800
"""2000-01-01, where VHD's time begins."""
_SIZE_BY_FIELD: Final = (b"win ", b"qem2", b"d2v ", b"CTXS")
_FOOTER: Final = struct.Struct(">8sIIQI4sHH4sQQHBBII16sB427s")
_DYNAMIC: Final = struct.Struct(">8sQQIIII16sII512s192s256s")
_DATA = int(Status.DATA | Status.OFFSET_VALID)
_DATA_RECURSE = int(Status.DATA | Status.OFFSET_VALID | Status.RECURSE)
_ZERO = int(Status.ZERO)


def checksum(data: bytes) -> int:
    """The complement of the sum of the bytes; the checksum's own are taken as zeros by the caller."""
    return ~sum(data) & 0xFFFFFFFF


@dataclass
class Footer:
    """The footer's fields; sizes in bytes, time in seconds since 2000."""

    creator: bytes
    features: int
    version: int
    data_offset: int
    timestamp: int
    creator_app: bytes
    major: int
    minor: int
    creator_os: bytes
    original_size: int
    current_size: int
    cylinders: int
    heads: int
    sectors: int
    type: int
    checksum: int
    uuid: bytes
    saved_state: int
    rest: bytes

    @classmethod
    def parse(cls, raw: bytes) -> Footer:
        return cls(*_FOOTER.unpack(raw))

    def encode(self) -> bytes:
        return _FOOTER.pack(*vars(self).values())

    def seal(self) -> None:
        """Give it the checksum of its content."""
        self.checksum = 0
        self.checksum = checksum(self.encode())

    @property
    def geometry(self) -> int:
        """Sectors by cylinders, heads and sectors a track."""
        return self.cylinders * self.heads * self.sectors

    def sectors_by(self, algorithm: str | None) -> int:
        """Length of the disk in sectors. algorithm: chs or current_size, None to go by who made the image.

        Virtual PC goes by the geometry, which rounds down; others by the size field. A geometry at its maximum says
        nothing (QEMU's vpc_open).
        """
        by_field = self.creator_app in _SIZE_BY_FIELD or self.creator_app[:3] == b"tap"
        by_geometry = algorithm == "chs" or not by_field
        if not by_geometry or self.geometry == MAX_GEOMETRY or algorithm == "current_size":
            return self.current_size // SECTOR
        return self.geometry


def read_footer(file: Edge) -> tuple[Footer, bool]:
    """The footer and whether its copy at the start was found, which only dynamic images have. Errors: GenericError,
    OSError.
    """
    raw = bytearray(SECTOR)
    try:
        file.read(0, memoryview(raw))
    except OSError as exc:
        raise GenericError("Unable to read VHD header") from exc
    dynamic = raw[:8] == COOKIE
    if not dynamic:
        if file.length < SECTOR:
            raise GenericError("File too small for a VHD header")
        file.read(file.length - SECTOR, memoryview(raw))
        if raw[:8] != COOKIE or Footer.parse(bytes(raw)).type != FIXED:
            raise GenericError("invalid VPC image")
    footer = Footer.parse(bytes(raw))
    expected = footer.checksum
    footer.seal()
    if footer.checksum != expected:
        raise GenericError("Incorrect header checksum")
    return footer, dynamic


class BlockdevVpcSubformat(Enum):
    """dynamic images grow as they are written; fixed ones have all space from the start.

    dynamic: grows as it is written
    fixed: takes all its space at once
    """

    DYNAMIC = "dynamic"
    FIXED = "fixed"


class BlockdevCreateOptionsVpc(Struct):
    """A new vpc image.

    file: node to make the image in. size: virtual size, bytes. subformat: default dynamic. force_size: take the size
    as it is, though no geometry equals it; Virtual PC can't read such images; default false.
    """

    file: BlockdevRef
    size: Size
    subformat: BlockdevVpcSubformat | None = None
    force_size: bool | None = None


class VpcOpenOptions(BlockdevOptionsGenericFormat):
    """What file names and drives can say besides. force_size_calc: chs or current_size."""

    force_size_calc: Annotated[str | None, Wire("force_size_calc")] = None


@register
class VpcDriver(Driver):
    """The vpc format."""

    name = "vpc"
    Options = BlockdevOptionsGenericFormat
    OpenOptions = VpcOpenOptions
    CreateOptions = BlockdevCreateOptionsVpc
    strong_options = ("force_size_calc",)

    file: Edge
    footer: Footer
    fixed: bool
    block_size: int
    bitmap_size: int
    table: BlockTable

    # -- control plane ---------------------------------------------------------------------------------------

    @classmethod
    def probe(cls, head: bytes, filename: str) -> int:
        return 100 if head[:8] == COOKIE else 0

    def open(self, opening: Opening) -> None:
        file = opening.open_child("file", Role.IMAGE)
        assert file is not None
        self.file = file
        options: VpcOpenOptions = opening.options
        algorithm = options.force_size_calc
        if algorithm not in (None, "chs", "current_size"):
            raise GenericError(f"Invalid size calculation mode: '{algorithm}'")
        self.footer, dynamic = read_footer(file)
        sectors = self.footer.sectors_by(algorithm)
        if sectors > MAX_SECTORS:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        self.length = sectors * SECTOR
        # Images with the footer's copy are laid out as dynamic ones, whatever type it tells.
        self.fixed = self.footer.type == FIXED
        if dynamic:
            self._open_dynamic(file)

    def _open_dynamic(self, file: Edge) -> None:
        raw = bytearray(HEADER_SIZE)
        if self.footer.data_offset + HEADER_SIZE > MAX_LENGTH:
            raise GenericError("Error reading dynamic VHD header")
        try:
            file.read(self.footer.data_offset, memoryview(raw))
        except OSError as exc:
            raise GenericError("Error reading dynamic VHD header") from exc
        magic, _, table_offset, _, entries, block_size, *_ = _DYNAMIC.unpack(raw)
        if magic != b"cxsparse":
            raise GenericError("Invalid header magic")
        if block_size < SECTOR or block_size & (block_size - 1):
            raise GenericError(f"Invalid block size {block_size}")
        self.block_size = block_size
        self.bitmap_size = -(-(block_size // (8 * SECTOR)) // SECTOR) * SECTOR
        if self.length // block_size > 0xFFFFFFFF:
            raise GenericError("Too many blocks")
        if entries * block_size < self.length:
            raise GenericError("Page table too small")
        if entries > MAX_ENTRIES:
            raise GenericError(f"Max Table Entries too large ({struct.unpack('i', struct.pack('I', entries))[0]})")
        if table_offset + entries * 4 > MAX_LENGTH:
            raise GenericError("Error reading pagetable")
        free = -(-(table_offset + entries * 4) // SECTOR) * SECTOR
        if free > file.length:
            raise GenericError(_TRUNCATED)
        try:
            self.table = table = BlockTable(file, table_offset, entries, "big")
        except OSError as exc:
            raise GenericError("Error reading pagetable") from exc
        highest = max((entry for entry in table.entries if entry != UNALLOCATED), default=-1)
        if highest >= 0:
            free = max(free, highest * SECTOR + self.bitmap_size + block_size)
        if free > file.length:
            raise GenericError(_TRUNCATED)
        self._free = free
        self._marked: set[int] = set()
        self._bitmap = memoryview(b"\xff" * self.bitmap_size)

    def close(self) -> None:
        if getattr(self, "table", None) is None or self.node.read_only:
            return
        try:
            self.table.write_back()
        except OSError:
            # As after a crash: what is not in the table yet is lost.
            return

    def reopen_prepare(self, state: ReopenState) -> None:
        if state.read_only and not self.node.read_only and not self.fixed:
            try:
                self.table.write_back()
            except OSError as exc:
                raise GenericError(f"Failed to flush the image: {os_error_text(exc)}") from exc

    @classmethod
    def creatable_size(cls, size: int) -> int:
        return _rounded(-(-size // SECTOR) * SECTOR, False)[0]

    @classmethod
    def create(cls, options: BlockdevCreateOptionsVpc, context: CreateContext) -> None:
        wire = options.file if isinstance(options.file, str) else to_wire(options.file)
        backend = context.open(wire, Perm.WRITE | Perm.RESIZE, Perm.ALL)
        try:
            from engine.drivers.format.qcow2.create import BackendChild

            _build(BackendChild(backend), options)
        finally:
            context.close(backend)

    # -- information -----------------------------------------------------------------------------------------

    def info(self) -> DriverInfo | None:
        return DriverInfo(cluster_size=0 if self.fixed else self.block_size)

    def has_zero_init(self) -> bool:
        return not self.fixed or self.file.child.driver.has_zero_init()

    # -- data plane ------------------------------------------------------------------------------------------

    def _run(self, offset: int, length: int) -> tuple[int, int | None]:
        """The run at *offset* whose bytes lie together: (its length, place in the file or None for zeros)."""
        index, inside = divmod(offset, self.block_size)
        entry = self.table.entries[index]
        if entry == UNALLOCATED:
            limit = -(-(inside + length) // self.block_size)
            return min(self.table.equal_run(index, limit) * self.block_size - inside, length), None
        # The bitmaps lie between the blocks: no two touch.
        return min(self.block_size - inside, length), entry * SECTOR + self.bitmap_size + inside

    def read(self, offset: int, buffer: memoryview) -> None:
        if self.fixed:
            self.file.read(offset, buffer)
            return
        at = 0
        while at < len(buffer):
            run, host = self._run(offset + at, len(buffer) - at)
            if host is None:
                buffer[at : at + run] = bytes(run)
            else:
                self.file.read(host, buffer[at : at + run])
            at += run

    def write(self, offset: int, data: memoryview, flags: int = 0) -> None:
        if self.fixed:
            if offset + len(data) > self.file.length - SECTOR:
                # The size field tells more than there is: this would destroy the footer.
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            self.file.write(offset, data, flags)
            return
        at = 0
        while at < len(data):
            run, host = self._run(offset + at, len(data) - at)
            if host is None:
                run = self._allocate(offset + at, data[at : at + run])
            else:
                self._mark_written((offset + at) // self.block_size)
                self.file.write(host, data[at : at + run])
            at += run

    def _mark_written(self, index: int) -> None:
        """Set all bits of the bitmap of a block that was there when the image was opened, before its first write."""
        if index not in self._marked:
            self.file.write(self.table.entries[index] * SECTOR, self._bitmap)
            self._marked.add(index)

    def _allocate(self, offset: int, data: memoryview) -> int:
        """Write what of *data* belongs to the first block, a new one; returns its length, 0 if others were faster."""
        index, inside = divmod(offset, self.block_size)
        size = min(len(data), self.block_size - inside)
        file, table = self.file, self.table
        with table.lock:
            if table.entries[index] != UNALLOCATED:
                return 0
            place = self._free
            end = place + self.bitmap_size + self.block_size
            if place // SECTOR >= UNALLOCATED:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            if file.length > place + SECTOR:
                # More than the old footer, which the bitmap replaces: a block that a cut has left behind.
                file.write_zeroes(place, min(file.length, end) - place)
            file.write(end, memoryview(self.footer.encode()))
            file.write(place, self._bitmap)
            file.write(place + self.bitmap_size + inside, data[:size])
            self._free = end
            self._marked.add(index)
            table.set(index, array("I", [place // SECTOR]))
        return size

    def flush(self) -> None:
        self.announce_flush()
        if self.fixed:
            self.file.flush()
        else:
            self.table.write_back()

    def block_status(self, offset: int, length: int, want_zero: bool = True) -> Extent:
        if self.fixed:
            return Extent(length, _DATA_RECURSE, self.file.child, offset)
        run, host = self._run(offset, length)
        if host is None:
            return Extent(run, _ZERO)
        return Extent(run, _DATA, self.file.child, host)


# -- creation --------------------------------------------------------------------------------------------------------


def geometry_for(sectors: int) -> tuple[int, int, int]:
    """(cylinders, heads, sectors a track) of a disk of *sectors*, by the rule of the VHD specification; rounds down."""
    sectors = min(sectors, MAX_GEOMETRY)
    if sectors >= 65535 * 16 * 63:
        return sectors // 255 // 16, 16, 255
    tracks = sectors // 17
    heads = max(-(-tracks // 1024), 4)
    per_track = 17
    for longer in (31, 63):
        # Too many heads can only be at the first look.
        if tracks >= heads * 1024 or heads > 16:
            per_track, heads = longer, 16
            tracks = sectors // longer
    return tracks // heads, heads, per_track


def _rounded(size: int, force: bool) -> tuple[int, tuple[int, int, int]]:
    """(length in bytes, geometry) of an image for *size* bytes; force: whatever the geometry. Errors: GenericError."""
    if force:
        geometry = MAX_CYLINDERS, MAX_HEADS, MAX_SECTORS_PER_TRACK
    else:
        sectors = attempt = min(MAX_GEOMETRY, -(-size // SECTOR))
        geometry = 0, 0, 0
        # The next geometry that is large enough.
        while sectors > geometry[0] * geometry[1] * geometry[2]:
            geometry = geometry_for(attempt)
            attempt += 1
    total = geometry[0] * geometry[1] * geometry[2]
    if total == MAX_GEOMETRY:
        total = size // SECTOR
        if total > MAX_SECTORS:
            raise GenericError("Disk size is too large, max size is 2040 GiB")
    return total * SECTOR, geometry


def _build(file: File, options: BlockdevCreateOptionsVpc) -> None:
    """Write an empty image. Errors: GenericError, OSError."""
    size, (cylinders, heads, sectors) = _rounded(options.size, bool(options.force_size))
    if size != options.size:
        raise GenericError("The requested image size cannot be represented in CHS geometry")
    fixed = options.subformat == BlockdevVpcSubformat.FIXED
    footer = Footer(
        creator=COOKIE,
        features=2,
        version=0x00010000,
        data_offset=(1 << 64) - 1 if fixed else SECTOR,
        timestamp=(int(time.time()) - _EPOCH) & 0xFFFFFFFF,
        creator_app=b"qem2" if options.force_size else b"qemu",
        major=5,
        minor=3,
        creator_os=b"Wi2k",
        original_size=size,
        current_size=size,
        cylinders=cylinders,
        heads=heads,
        sectors=sectors,
        type=FIXED if fixed else DYNAMIC,
        checksum=0,
        uuid=uuid.uuid4().bytes,
        saved_state=0,
        rest=b"",
    )
    footer.seal()
    if fixed:
        file.truncate(size + SECTOR, exact=False)
        file.write(size, memoryview(footer.encode()))
        return
    try:
        _build_dynamic(file, footer)
    except OSError as exc:
        raise GenericError(f"Unable to create or write VHD header: {os_error_text(exc)}") from exc


def _build_dynamic(file: File, footer: Footer) -> None:
    entries = -(-footer.current_size // NEW_BLOCK)
    table_offset = SECTOR + HEADER_SIZE
    table_size = -(-entries * 4 // SECTOR) * SECTOR
    file.write(0, memoryview(footer.encode()))
    file.write(table_offset + table_size, memoryview(footer.encode()))
    for start in range(0, table_size, READ_STEP):
        file.write(table_offset + start, memoryview(b"\xff" * min(table_size - start, READ_STEP)))
    fields = [b"cxsparse", (1 << 64) - 1, table_offset, 0x00010000, entries, NEW_BLOCK]
    rest = [bytes(16), 0, 0, b"", b"", b""]
    value = checksum(_DYNAMIC.pack(*fields, 0, *rest))
    file.write(SECTOR, memoryview(_DYNAMIC.pack(*fields, value, *rest)))
