"""parallels: images of Parallels Desktop, version 2: a header, a table with one 32-bit entry a cluster, and clusters.

All numbers are little-endian. While an image is open for writing its header says "in use", and the file may be longer
than its clusters are: space is taken ahead and given back on closing.
"""

from __future__ import annotations

import errno
import os
import struct
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

from engine.drivers.format.blocktable import BlockTable, File
from engine.errors import GenericError, os_error_text
from engine.graph.driver import CreateContext, Driver, Extent, Limits, Opening, Status, register
from engine.graph.edge import Edge
from engine.graph.options import BlockdevOptionsGenericFormat, BlockdevRef
from engine.graph.permissions import Perm, Role
from engine.graph.requests import MAX_LENGTH
from engine.qapi import Size, Struct, Wire, to_wire

if TYPE_CHECKING:
    from engine.drivers.format.qcow2.findings import CheckResult

MAGIC_SECTORS: Final = b"WithoutFreeSpace"
"""Table entries are sectors, and the disk's length in sectors has 32 bits."""
MAGIC_CLUSTERS: Final = b"WithouFreSpacExt"
"""Table entries are clusters."""
VERSION: Final = 2
SECTOR: Final = 512
IN_USE: Final = 0x746F6E59
IN_USE_OFFSET: Final = 44
TABLE_OFFSET: Final = 64
MAX_ENTRIES: Final = ((1 << 31) - 1) // 4
MAX_CLUSTER_SECTORS: Final = ((1 << 31) - 1) // 513
MAX_CLUSTERS: Final = 1 << 32
DEFAULT_CLUSTER: Final = 1 << 20
DEFAULT_AHEAD: Final = 128 << 20
"""Bytes the file grows by at a time, besides those that are needed."""
_HEADS: Final = 16
_SECTORS_PER_TRACK: Final = 32
_HEADER: Final = struct.Struct("<16sIIIIIQIIIQ")
_DATA = int(Status.DATA | Status.OFFSET_VALID)


@dataclass
class Header:
    """The header's fields. tracks: sectors of a cluster. data_offset: where the clusters begin, sectors."""

    magic: bytes
    version: int
    heads: int
    cylinders: int
    tracks: int
    entries: int
    sectors: int
    in_use: int
    data_offset: int
    flags: int
    extension: int

    def encode(self) -> bytes:
        return _HEADER.pack(*vars(self).values())


def _parse(raw: bytes) -> Header:
    """The header of an image. Errors: GenericError where it is none, or one that can't be handled."""
    header = Header(*_HEADER.unpack(raw))
    if header.version != VERSION or header.magic not in (MAGIC_SECTORS, MAGIC_CLUSTERS):
        raise GenericError("Image not in Parallels format")
    if header.magic == MAGIC_SECTORS:
        header.sectors &= 0xFFFFFFFF
    if header.tracks == 0:
        raise GenericError("Invalid image: Zero sectors per track")
    if header.tracks > MAX_CLUSTER_SECTORS:
        raise GenericError("Invalid image: Too big cluster")
    if header.entries > MAX_ENTRIES:
        raise GenericError("Catalog too large")
    return header


class BlockdevCreateOptionsParallels(Struct):
    """A new parallels image. file: node to make the image in. size: virtual size, bytes. cluster_size: bytes, default
    1 MiB.
    """

    file: BlockdevRef
    size: Size
    cluster_size: Size | None = None


class ParallelsOpenOptions(BlockdevOptionsGenericFormat):
    """What file names and drives can say besides.

    prealloc_size: bytes that the file grows by at a time (default: 128 MiB). prealloc_mode: falloc (default) takes the
    space on the host, truncate only makes the file longer.
    """

    prealloc_size: Annotated[Size | None, Wire("prealloc-size")] = None
    prealloc_mode: Annotated[str | None, Wire("prealloc-mode")] = None


@register
class ParallelsDriver(Driver):
    """The parallels format."""

    name = "parallels"
    Options = BlockdevOptionsGenericFormat
    OpenOptions = ParallelsOpenOptions
    CreateOptions = BlockdevCreateOptionsParallels
    supports_backing = True

    file: Edge
    header: Header
    table: BlockTable
    cluster: int
    unclean: bool

    # -- control plane ---------------------------------------------------------------------------------------

    @classmethod
    def probe(cls, head: bytes, filename: str) -> int:
        known = head[:16] in (MAGIC_SECTORS, MAGIC_CLUSTERS)
        return 100 if known and int.from_bytes(head[16:20], "little") == VERSION else 0

    def open(self, opening: Opening) -> None:
        options: ParallelsOpenOptions = opening.options
        file = opening.open_child("file", Role.IMAGE)
        assert file is not None
        self.file = file
        raw = bytearray(_HEADER.size)
        file.read(0, memoryview(raw))
        self.header = header = _parse(bytes(raw))
        if header.sectors * SECTOR > MAX_LENGTH:
            raise GenericError(f"Could not refresh total sector count: {os.strerror(errno.EFBIG)}")
        if TABLE_OFFSET + header.entries * 4 > file.length:
            # A short file can't make us take gigabytes for a table that isn't there.
            raise GenericError("Invalid image: The catalog is not within the file")
        self.length = header.sectors * SECTOR
        self.cluster = header.tracks * SECTOR
        self._unit = self.cluster if header.magic == MAGIC_CLUSTERS else SECTOR
        self.table = BlockTable(file, TABLE_OFFSET, header.entries, "little")
        self._end = self._data_end()
        self._zeroed_to = 0
        self.unclean = header.in_use == IN_USE
        if self.unclean and not opening.read_only and not opening.for_check:
            raise GenericError("parallels: Image was not closed correctly; cannot be opened read/write")
        self._ahead = max(DEFAULT_AHEAD if options.prealloc_size is None else options.prealloc_size, self.cluster)
        if options.prealloc_mode not in (None, "falloc", "truncate"):
            raise GenericError(f"invalid parameter value: {options.prealloc_mode}")
        self._by_truncating = options.prealloc_mode == "truncate"
        if not opening.read_only:
            self._write_in_use(IN_USE)
        elif header.extension:
            from engine.drivers.format import parallels_extension

            parallels_extension.load(self, header.extension * SECTOR)

    def _data_end(self) -> int:
        """Where the next cluster goes, bytes."""
        header = self.header
        start = header.data_offset * SECTOR or -(-(TABLE_OFFSET + header.entries * 4) // SECTOR) * SECTOR
        start = -(-start // self._unit) * self._unit
        highest = max(self.table.entries, default=0) * self._unit
        return max(start, highest + self.cluster) if highest else start

    def _write_in_use(self, value: int) -> None:
        self.header.in_use = value
        self.file.write(IN_USE_OFFSET, memoryview(struct.pack("<I", value)))
        self.file.flush()

    def close(self) -> None:
        if getattr(self, "table", None) is None or self.node.read_only:
            return
        try:
            self.table.write_back()
            if self.unclean:
                return
            self._write_in_use(0)
            self.file.truncate(self._end)
        except (OSError, GenericError):
            # The header goes on to say that the image was not closed: a check finds what there is to find.
            return

    def refresh_limits(self) -> None:
        self.limits = Limits(request_alignment=SECTOR)

    @classmethod
    def create(cls, options: BlockdevCreateOptionsParallels, context: CreateContext) -> None:
        header, table_sectors = _header_for(options)
        wire = options.file if isinstance(options.file, str) else to_wire(options.file)
        backend = context.open(wire, Perm.WRITE | Perm.RESIZE, Perm.ALL)
        try:
            from engine.drivers.format.qcow2.create import BackendChild

            _build(BackendChild(backend), header, table_sectors)
        except OSError as exc:
            raise GenericError(f"Failed to create Parallels image: {os_error_text(exc)}") from exc
        finally:
            context.close(backend)

    # -- information -----------------------------------------------------------------------------------------

    def has_zero_init(self) -> bool:
        return self.node.backing is None

    def check(self, fix: frozenset[str] = frozenset()) -> CheckResult:
        """Check the table, and repair what *fix* ("leaks", "errors") names. Errors: OSError when that fails."""
        from engine.drivers.format.qcow2.findings import CheckResult

        result = CheckResult()
        length = -(-self.file.length // SECTOR) * SECTOR
        if self.unclean:
            result.say(f"{_verb('errors' in fix)} image was not closed correctly")
            result.corruptions += 1
            if "errors" in fix:
                result.corruptions_fixed += 1
                self.unclean = False
        result.total_clusters = self.header.entries
        highest = self._check_table(result, length, "errors" in fix)
        result.image_end_offset = end = highest + self.cluster
        if length > end:
            count = -(-(length - end) // self.cluster)
            result.say(f"{_verb('leaks' in fix)} space leaked at the end of the image {length - end}")
            result.leaks += count
            if "leaks" in fix:
                # The table is not to be cut, however small the image is.
                self.file.truncate(max(end, self._data_end()))
                self._zeroed_to = 0
                result.leaks_fixed += count
        return result

    def _check_table(self, result: CheckResult, length: int, fix: bool) -> int:
        """Look at all entries; returns the highest place in the file that one tells."""
        highest = previous = 0
        with self.table.lock:
            for index, entry in enumerate(self.table.entries):
                place = entry * self._unit
                if place > length:
                    result.say(f"{_verb(fix)} cluster {index} is outside image")
                    result.corruptions += 1
                    if fix:
                        self.table.set(index, array("I", [0]))
                        result.corruptions_fixed += 1
                        place = 0
                if not place:
                    previous = 0
                    continue
                result.allocated_clusters += 1
                highest = max(highest, place)
                if previous and previous + self.cluster != place:
                    result.fragmented_clusters += 1
                previous = place
            if fix:
                self._end = self._data_end()
        if fix:
            self.table.write_back()
        return highest

    # -- data plane ------------------------------------------------------------------------------------------

    def _run(self, offset: int, length: int) -> tuple[int, int]:
        """The run at *offset* whose bytes lie together: (its length, place in the file or 0 if it isn't there)."""
        index, inside = divmod(offset, self.cluster)
        table = self.table
        if index >= self.header.entries:
            return length, 0
        limit = min(-(-(inside + length) // self.cluster), self.header.entries - index)
        entry = table.entries[index]
        if not entry:
            return min(table.equal_run(index, limit) * self.cluster - inside, length), 0
        run = table.rising_run(index, limit, self.cluster // self._unit)
        return min(run * self.cluster - inside, length), entry * self._unit + inside

    def read(self, offset: int, buffer: memoryview) -> None:
        at = 0
        while at < len(buffer):
            run, host = self._run(offset + at, len(buffer) - at)
            part = buffer[at : at + run]
            if host:
                self.file.read(host, part)
            else:
                self._read_below(offset + at, part)
            at += run

    def _read_below(self, offset: int, buffer: memoryview) -> None:
        backing = self.node.backing
        if backing is not None:
            backing.read(offset, buffer)
        else:
            buffer[:] = bytes(len(buffer))

    def write(self, offset: int, data: memoryview, flags: int = 0) -> None:
        at = 0
        while at < len(data):
            run, host = self._run(offset + at, len(data) - at)
            part = data[at : at + run]
            if host:
                self.file.write(host, part)
            else:
                run = self._allocate(offset + at, part)
            at += run

    def _allocate(self, offset: int, data: memoryview) -> int:
        """Write as much of *data* as goes to one run of new clusters; returns its length, 0 if others were faster."""
        index, inside = divmod(offset, self.cluster)
        if index >= self.header.entries:
            # The length in the header is more than the table has room for.
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        table = self.table
        with table.lock:
            if table.entries[index]:
                return 0
            limit = min(-(-(inside + len(data)) // self.cluster), self.header.entries - index)
            count = table.equal_run(index, limit)
            size = min(count * self.cluster - inside, len(data))
            place, step = self._end, self.cluster // self._unit
            if place // self._unit + count * step > 0xFFFFFFFF:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            self._make_room(place, count * self.cluster)
            try:
                if self.node.backing is not None:
                    self._copy_around(offset - inside, place, count * self.cluster, inside, size)
                self.file.write(place + inside, data[:size])
            except BaseException:
                # A part may have been written, and the place goes to other clusters now.
                self._zeroed_to = 0
                raise
            self._end = place + count * self.cluster
            first = place // self._unit
            table.set(index, array("I", range(first, first + count * step, step)))
        return size

    def _make_room(self, place: int, size: int) -> None:
        """See to it that the file has *size* bytes at *place*, and that they read as zeros. Under the table's lock."""
        if place + size <= self._zeroed_to:
            return
        file = self.file
        start = max(place, self._zeroed_to)
        end = place + size + self._ahead
        if self._by_truncating:
            if file.length > start:
                file.write_zeroes(start, file.length - start)
            try:
                file.truncate(end, exact=False)
            except GenericError:
                self._by_truncating = False
        if not self._by_truncating:
            file.write_zeroes(start, end - start)
        self._zeroed_to = end

    def _copy_around(self, guest: int, place: int, size: int, inside: int, written: int) -> None:
        """Copy from the backing image what of new clusters the write at *inside* leaves out."""
        size = min(size, max(self.length - guest, 0))
        for start, end in ((0, inside), (inside + written, size)):
            if end > start:
                part = memoryview(bytearray(end - start))
                self._read_below(guest + start, part)
                self.file.write(place + start, part)

    def flush(self) -> None:
        self.announce_flush()
        self.table.write_back()

    def block_status(self, offset: int, length: int, want_zero: bool = True) -> Extent:
        run, host = self._run(offset, length)
        if not host:
            return Extent(run, 0)
        return Extent(run, _DATA, self.file.child, host)


def _verb(fix: bool) -> str:
    return "Repairing" if fix else "ERROR"


# -- creation --------------------------------------------------------------------------------------------------------


def _header_for(options: BlockdevCreateOptionsParallels) -> tuple[Header, int]:
    """The header of a new image, and how many sectors it takes with the table. Errors: GenericError."""
    size = options.size
    cluster = DEFAULT_CLUSTER if options.cluster_size is None else options.cluster_size
    if cluster >= ((1 << 63) - 1) // MAX_CLUSTERS:
        raise GenericError("Cluster size is too large")
    if size >= MAX_CLUSTERS * cluster:
        raise GenericError("Image size is too large for this cluster size")
    if size % SECTOR:
        raise GenericError("Image size must be a multiple of 512 bytes")
    if cluster % SECTOR:
        raise GenericError("Cluster size must be a multiple of 512 bytes")
    entries = -(-size // cluster)
    if entries > MAX_ENTRIES:
        # QEMU makes images that it can't open then.
        raise GenericError("Image size is too large for this cluster size")
    table_sectors = -(-(TABLE_OFFSET + entries * 4) // cluster) * cluster // SECTOR
    header = Header(
        magic=MAGIC_CLUSTERS,
        version=VERSION,
        heads=_HEADS,
        cylinders=(size // SECTOR // _HEADS // _SECTORS_PER_TRACK) & 0xFFFFFFFF,
        tracks=cluster // SECTOR,
        entries=entries,
        sectors=size // SECTOR,
        in_use=0,
        data_offset=table_sectors,
        flags=0,
        extension=0,
    )
    return header, table_sectors


def _build(file: File, header: Header, table_sectors: int) -> None:
    """Write an empty image. Errors: OSError."""
    file.write(0, memoryview(header.encode().ljust(SECTOR, b"\0")))
    if table_sectors > 1:
        file.write_zeroes(SECTOR, (table_sectors - 1) * SECTOR)
