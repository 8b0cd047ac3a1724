"""The VHDX driver: dynamic and fixed disks. Those with a parent are refused, as QEMU does."""

from __future__ import annotations

import threading
import uuid
from array import array
from typing import TYPE_CHECKING, Final

from engine.drivers.format.qcow2.storage import io_error, round_up
from engine.drivers.format.tablepages import ENTRY, TablePages
from engine.drivers.format.vhdx import layout as lay
from engine.drivers.format.vhdx.layout import MIB, Layout
from engine.drivers.protocol.file import HostFileDriver
from engine.errors import GenericError
from engine.graph.driver import (
    CreateContext,
    Driver,
    DriverInfo,
    Limits,
    Opening,
    ReopenState,
    register,
)
from engine.graph.edge import Edge
from engine.graph.options import BlockdevOptionsGenericFormat, BlockdevRef
from engine.graph.permissions import Perm, Role
from engine.qapi import Enum, Size, Struct, to_wire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.drivers.format.qcow2.findings import CheckResult
    from engine.drivers.format.qcow2.storage import Child

_STATE: Final = 7
_ZERO, _PRESENT, _PARTIAL = 2, 6, 7
_SECTOR: Final = 512


class BlockdevVhdxSubformat(Enum):
    """dynamic: blocks take space when they are written; fixed: all do from the start."""

    DYNAMIC = "dynamic"
    FIXED = "fixed"


class BlockdevCreateOptionsVhdx(Struct):
    """A new VHDX image. file: node to make it in. size: virtual size, bytes, at most 64 TiB. log_size: bytes, default
    1 MiB. block_size: bytes, default by the disk's size. subformat: default dynamic. block_state_zero: mark blocks as
    zeros rather than as not there; default yes.
    """

    file: BlockdevRef
    size: Size
    log_size: Size | None = None
    block_size: Size | None = None
    subformat: BlockdevVhdxSubformat | None = None
    block_state_zero: bool | None = None


@register
class VhdxDriver(Driver):
    """Hyper-V's VHDX.

    Blocks are taken from the end of the file. The table's entries, which no sector boundary cuts, are written when the
    block has reached the disk; so the log is only ever read here.
    """

    name = "vhdx"
    Options = BlockdevOptionsGenericFormat
    CreateOptions = BlockdevCreateOptionsVhdx

    file: Edge
    layout: Layout

    @classmethod
    def probe(cls, head: bytes, filename: str) -> int:
        return 100 if head[:8] == lay.SIGNATURE else 0

    # -- control plane ---------------------------------------------------------------------------------------

    def open(self, opening: Opening) -> None:
        file = opening.open_child("file", Role.IMAGE)
        assert file is not None
        self.file = file
        self.replayed = False
        self._allocating = threading.RLock()
        self._announced = False
        self._load(writable=not opening.read_only)

    def _load(self, *, writable: bool) -> None:
        file = self.file
        header = lay.read_header(file)
        if header.log_guid != lay.NO_GUID:
            from engine.drivers.format.vhdx import log

            log.check_place(header)
            if log.replay(file, header, self.node.filename or file.child.filename, writable=writable):
                self.replayed = True
                header = lay.read_header(file)
            if writable:
                header.log_guid = lay.NO_GUID
                lay.write_header(file, header)
                lay.write_header(file, header)
        self.layout = lay.read_layout(file, header)
        self.length = self.layout.length
        self.pages = TablePages(file, "little")
        self._check_blocks()

    def _check_blocks(self) -> None:
        """Refuse blocks that lie over what the file is organised by. Errors: GenericError, OSError."""
        layout = self.layout
        for number, entry in self._entries():
            if entry & _STATE == _PRESENT:
                start = entry >> 20 << 20
                for other, end in layout.regions:
                    if start < end and other < start + layout.block_size:
                        raise GenericError(
                            f"VHDX region {start}-{start + layout.block_size} overlaps with region {other}-{end}"
                        )
                if start >= 1 << 62:
                    raise GenericError(f"VHDX BAT entry {number} offset overflow.")

    def _entries(self) -> Iterator[tuple[int, int]]:
        """(number, entry) of the blocks that have a place of their own; the table is looked at in parts."""
        layout = self.layout
        at = 0
        while at < layout.bat_entries:
            part = self.pages.entries(layout.bat_offset + at * ENTRY, layout.bat_entries - at)
            # Where all are alike and none has a place, as in a new image, there is nothing to look for.
            if part[0] & _STATE in (_PRESENT, _PARTIAL) or part.count(part[0]) < len(part):
                for index, entry in enumerate(part, at):
                    if entry & _STATE in (_PRESENT, _PARTIAL) and (index + 1) % (layout.chunk_ratio + 1):
                        yield index, entry
            at += len(part)

    def refresh_limits(self) -> None:
        self.limits = Limits(request_alignment=_SECTOR)

    def reopen_prepare(self, state: ReopenState) -> None:
        """Nothing of an open image depends on how it was opened."""

    def reopen_commit_post(self, state: ReopenState) -> None:
        if state.read_only:
            return
        try:
            # While it was read-only, somebody else may have written the image.
            child = self.file.child.driver
            if isinstance(child, HostFileDriver):
                child.refresh_length()
            self._announced = False
            self._load(writable=True)
        except (GenericError, OSError):
            self.node.ejected = True

    @classmethod
    def create(cls, options: BlockdevCreateOptionsVhdx, context: CreateContext) -> None:
        from engine.drivers.format.qcow2.create import BackendChild

        log_size, block_size = _sizes_for(options)
        wire = options.file if isinstance(options.file, str) else to_wire(options.file)
        file = context.open(wire, Perm.CONSISTENT_READ | Perm.WRITE | Perm.RESIZE, Perm.ALL)
        try:
            _build(BackendChild(file), options, log_size, block_size)
        finally:
            context.close(file)

    # -- information -----------------------------------------------------------------------------------------

    def info(self) -> DriverInfo | None:
        return DriverInfo(cluster_size=self.layout.block_size, is_dirty=False)

    def has_zero_init(self) -> bool:
        # Blocks that are there from the start hold what the file held there.
        entry = self.pages.get(self.layout.bat_offset) if self.length else 0
        return entry & _STATE != _PRESENT or self.file.child.driver.has_zero_init()

    def check(self, fix: frozenset[str] = frozenset()) -> CheckResult:
        """Whether all blocks lie within the file. A log that was replayed counts as a repair. Errors: OSError."""
        from engine.drivers.format.qcow2.findings import CheckResult

        result = CheckResult(corruptions_fixed=int(self.replayed))
        size, block_size = self.file.length, self.layout.block_size
        for number, entry in self._entries():
            # The disk's last block need not be whole.
            block = number - number // (self.layout.chunk_ratio + 1)
            if (entry >> 20 << 20) + min(block_size, self.length - block * block_size) > size:
                result.corruptions += 1
                result.say(f"block {number} at {entry >> 20 << 20:#x} is past the end of the file")
        return result

    # -- data plane ------------------------------------------------------------------------------------------

    def _entry_at(self, block: int) -> int:
        """Where the table's entry of *block* is."""
        return self.layout.bat_offset + (block + block // self.layout.chunk_ratio) * ENTRY

    def _find(self, offset: int, length: int) -> tuple[int, int, int]:
        """(entry, host offset, bytes) at *offset*; host offset is 0 where zeros are read. Errors: OSError."""
        size = self.layout.block_size
        block, inside = divmod(offset, size)
        entry = self.pages.get(self._entry_at(block))
        run = min(length, size - inside)
        state = entry & _STATE
        if state == _PRESENT:
            host = (entry >> 20 << 20) + inside
            if host >= 1 << 62:
                raise io_error()
            return entry, host, run
        if state in (4, 5, _PARTIAL):
            raise io_error()
        return entry, 0, run

    def read(self, offset: int, buffer: memoryview) -> None:
        at = 0
        while at < len(buffer):
            _, host, run = self._find(offset + at, len(buffer) - at)
            if host:
                self.file.read(host, buffer[at : at + run])
            else:
                buffer[at : at + run] = bytes(run)
            at += run

    def write(self, offset: int, data: memoryview, flags: int = 0) -> None:
        if not self._announced:
            self._announce()
        at = 0
        while at < len(data):
            _, host, run = self._find(offset + at, len(data) - at)
            part = data[at : at + run]
            if host:
                self.file.write(host, part)
            else:
                with self._allocating:
                    # Somebody else may have been here in the meantime.
                    entry, host, _ = self._find(offset + at, run)
                    if host:
                        continue
                    self._write_new(entry, offset + at, part)
            at += run

    def _announce(self) -> None:
        """Say in the headers that the file, and the data in it, are not what they were. Errors: OSError."""
        with self._allocating:
            if self._announced:
                return
            header = self.layout.header
            header.file_guid, header.data_guid = uuid.uuid4().bytes, uuid.uuid4().bytes
            lay.write_header(self.file, header)
            lay.write_header(self.file, header)
            self._announced = True

    def _write_new(self, entry: int, offset: int, data: memoryview) -> None:
        size = self.layout.block_size
        block, inside = divmod(offset, size)
        start = round_up(self.file.length, MIB)
        self.file.truncate(start + size, exact=False)
        if not self.file.child.driver.has_zero_init():
            self.file.write_zeroes(start, size)
        self.file.write(start + inside, data)
        self.file.flush()
        self.pages.put(self._entry_at(block), array("Q", [start | _PRESENT]))


def _sizes_for(options: BlockdevCreateOptionsVhdx) -> tuple[int, int]:
    """(log size, block size). Errors: GenericError, in QEMU's words."""
    if options.size > lay.MAX_LENGTH:
        raise GenericError("Image size too large; max of 64TB")
    log_size = MIB if options.log_size is None else options.log_size
    if log_size >= 1 << 32:
        raise GenericError("Log size must be smaller than 4 GB")
    if log_size < MIB or log_size % MIB:
        raise GenericError("Log size must be a multiple of 1 MB")
    block = options.block_size or 0
    if not block:
        limits = ((32 << 40, 64), (100 << 30, 32), (1 << 30, 16))
        block = next((size for limit, size in limits if options.size > limit), 8) * MIB
    if block % MIB:
        raise GenericError("Block size must be a multiple of 1 MB")
    if block & (block - 1):
        raise GenericError("Block size must be a power of two")
    if block > lay.MAX_BLOCK:
        raise GenericError(f"Block size must not exceed {lay.MAX_BLOCK}")
    return log_size, block


def _build(file: Child, options: BlockdevCreateOptionsVhdx, log_size: int, block_size: int) -> None:
    """Write an empty image. The signature comes last. Errors: OSError."""
    fixed = options.subformat is BlockdevVhdxSubformat.FIXED
    size = options.size // _SECTOR * _SECTOR
    bat_offset = MIB + log_size
    header = lay.Header(0, uuid.uuid4().bytes, uuid.uuid4().bytes, lay.NO_GUID, log_size, MIB, lay.HEADERS[1])
    layout = Layout(header, bat_offset, block_size=block_size, length=size)
    bat_size = round_up(max(layout.bat_entries * ENTRY, 1), MIB)
    metadata_offset = bat_offset + bat_size
    # QEMU leaves room here, too.
    blocks_at = metadata_offset + 5 * MIB
    blocks = -(-size // block_size)
    file.truncate(0)
    file.truncate(blocks_at + (size if fixed else 0))
    state = _PRESENT if fixed else _ZERO if options.block_state_zero is not False else 0
    if state:
        _write_table(file, layout, blocks, state, blocks_at if fixed else None)
    file.write(metadata_offset, memoryview(lay.metadata_region(size, block_size, fixed=fixed)))
    table = lay.region_table([(lay.BAT, bat_offset, bat_size), (lay.METADATA, metadata_offset, MIB)])
    for place in lay.REGION_TABLES:
        file.write(place, memoryview(table))
    lay.write_header(file, header)
    lay.write_header(file, header)
    file.write(0, memoryview(lay.SIGNATURE + "blockmon".encode("utf-16-le")))
    file.flush()


def _write_table(file: Child, layout: Layout, blocks: int, state: int, blocks_at: int | None) -> None:
    """Entries of all blocks in one state; blocks_at: where the first lies, if they lie anywhere."""
    pages = TablePages(file, "little")
    ratio = layout.chunk_ratio
    for first in range(0, blocks, ratio):
        # One entry of a sector bitmap, which is not there, follows each run.
        numbers = range(first, min(first + ratio, blocks))
        run = array(
            "Q", (state | ((blocks_at + n * layout.block_size) if blocks_at is not None else 0) for n in numbers)
        )
        pages.put(layout.bat_offset + (first + first // ratio) * ENTRY, run)
