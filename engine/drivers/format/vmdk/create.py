"""Making a new image: its extents, then the descriptor that lists them. Texts are QEMU's."""

from __future__ import annotations

import posixpath
import secrets
from array import array
from typing import TYPE_CHECKING, Any, Final

from engine.drivers.format.qcow2.create import BackendChild
from engine.drivers.format.qcow2.storage import round_up
from engine.drivers.format.vmdk import descriptor as text
from engine.drivers.format.vmdk import header as hdr
from engine.drivers.format.vmdk.header import SECTOR
from engine.drivers.format.vmdk.options import BlockdevVmdkSubformat as Subformat
from engine.errors import GenericError, os_error_text
from engine.graph.filenames import combine, parse_json_filename
from engine.graph.permissions import Perm
from engine.graph.requests import MAX_LENGTH
from engine.qapi import to_wire

if TYPE_CHECKING:
    from engine.drivers.format.vmdk.options import BlockdevCreateOptionsVmdk
    from engine.graph.backend import BlockBackend
    from engine.graph.driver import CreateContext

SPLIT_SIZE: Final = 1 << 31
"""Bytes of one extent of the twoGbMaxExtent formats."""
GRAIN_SECTORS: Final = 128
TABLE_ENTRIES: Final = 512
_TABLE_SECTORS: Final = 4
_DESCRIPTOR_SECTORS: Final = 20


def create(options: BlockdevCreateOptionsVmdk, context: CreateContext) -> None:
    """blockdev-create for vmdk. Errors: GenericError, OSError."""
    size = options.size
    if size % SECTOR:
        raise GenericError("Image size must be a multiple of 512 bytes")
    kind = options.subformat or Subformat.MONOLITHICSPARSE
    split = kind in (Subformat.TWOGBMAXEXTENTSPARSE, Subformat.TWOGBMAXEXTENTFLAT)
    flat = kind in (Subformat.MONOLITHICFLAT, Subformat.TWOGBMAXEXTENTFLAT)
    if flat and options.backing_file is not None:
        raise GenericError("Flat image can't have backing file")
    if flat and options.zeroed_grain:
        raise GenericError("Flat image can't enable zeroed grain")
    if size > MAX_LENGTH or (
        not split and not flat and size > hdr.MAX_DIRECTORY * TABLE_ENTRIES * GRAIN_SECTORS * SECTOR
    ):
        raise GenericError(f"Image size {size} is too large for the format")
    file = _open(context, options.file)
    try:
        _Creation(options, context, kind, split=split, flat=flat).run(file)
    finally:
        context.close(file)


def _open(context: CreateContext, reference: Any) -> BlockBackend:
    wire = reference if isinstance(reference, str) else to_wire(reference)
    return context.open(wire, Perm.CONSISTENT_READ | Perm.WRITE | Perm.RESIZE, Perm.ALL)


class _Creation:
    """One image being made."""

    def __init__(
        self, options: BlockdevCreateOptionsVmdk, context: CreateContext, kind: str, *, split: bool, flat: bool
    ) -> None:
        self.options = options
        self.context = context
        self.kind = str(kind)
        self.split = split
        self.flat = flat
        self.lines: list[str] = []

    def run(self, file: BlockBackend) -> None:
        options, size = self.options, self.options.size
        place = BackendChild(file)
        alone = not self.split and not self.flat
        if alone:
            self._write_extent(file, size)
            self._list(file, size)
        else:
            place.truncate(0, exact=False)
        parent_cid = self._parent_cid(file)
        given = options.extents or []
        made, count = size if alone else 0, 0
        step = SPLIT_SIZE if self.split else size
        while made < size:
            part = min(size - made, step)
            if count >= len(given):
                raise GenericError(f"Extent [{count}] not specified")
            extent = _open(self.context, given[count])
            try:
                self._write_extent(extent, part)
                self._list(extent, part)
            finally:
                self.context.close(extent)
            made += part
            count += 1
        if count < len(given):
            raise GenericError("List of extents contains unused extents")
        self._describe(place, parent_cid, 0 if not alone else SECTOR)

    def _list(self, extent: BlockBackend, size: int) -> None:
        name = posixpath.basename(extent.node.filename)
        line = f'RW {size // SECTOR} {"FLAT" if self.flat else "SPARSE"} "{name}"'
        self.lines.append(line + " 0" if self.flat else line)

    def _parent_cid(self, file: BlockBackend) -> int:
        backing = self.options.backing_file
        if backing is None:
            return text.NO_PARENT
        name = backing
        if not name.startswith("/"):
            name = combine(file.node.exact_filename or file.node.filename, name)
        wire = parse_json_filename(name) if name.startswith("json:") else {"filename": name}
        below = self.context.open({"read-only": True, **wire}, Perm.CONSISTENT_READ, Perm.ALL)
        try:
            from engine.drivers.format.vmdk.driver import VmdkDriver

            driver = below.node.driver
            if not isinstance(driver, VmdkDriver):
                raise GenericError(f"Invalid backing file format: {driver.name}. Must be vmdk")
            return driver.cid
        finally:
            self.context.close(below)

    def _describe(self, file: BackendChild, parent_cid: int, offset: int) -> None:
        options = self.options
        adapter = options.adapter_type or "ide"
        words = text.compose(
            cid=secrets.randbits(32),
            parent_cid=parent_cid,
            create_type=self.kind,
            parent=options.backing_file,
            extents=self.lines,
            hwversion="4" if options.hwversion is None else options.hwversion,
            size=options.size,
            heads=16 if adapter == "ide" else 255,
            adapter=str(adapter),
            toolsversion="2147483647" if options.toolsversion is None else options.toolsversion,
        )
        if offset and len(words) >= _DESCRIPTOR_SECTORS * SECTOR:
            raise GenericError("VMDK description file too big")
        try:
            file.write(offset, memoryview(words))
        except OSError as exc:
            raise GenericError(f"Could not write description: {os_error_text(exc)}") from exc
        if not offset:
            file.truncate(len(words), exact=False)
        file.flush()

    def _write_extent(self, backend: BlockBackend, size: int) -> None:
        """Give an extent its length, or its header and empty tables. Errors: GenericError, OSError."""
        file, zero_init = BackendChild(backend), backend.node.driver.has_zero_init()
        if self.flat:
            file.truncate(size, exact=False)
            return
        tables = -(-size // (TABLE_ENTRIES * GRAIN_SECTORS * SECTOR))
        directory_sectors = -(-tables * 4 // SECTOR)
        part = directory_sectors + tables * _TABLE_SECTORS
        redundant = 1 + _DESCRIPTOR_SECTORS
        directory = redundant + part
        data = round_up(directory + part, GRAIN_SECTORS)
        if data >= 1 << 32:
            raise GenericError(f"Image size {size} is too large for the format")
        compressed = self.kind == Subformat.STREAMOPTIMIZED
        zeroed = bool(self.options.zeroed_grain)
        flags = hdr.NEWLINE_TEST | hdr.REDUNDANT
        flags |= (hdr.COMPRESSED | hdr.MARKERS if compressed else 0) | (hdr.ZEROED_GRAINS if zeroed else 0)
        head = hdr.HOSTED_MAGIC + hdr.HOSTED.pack(
            3 if compressed else 2 if zeroed else 1,
            flags,
            size // SECTOR,
            GRAIN_SECTORS,
            1,
            _DESCRIPTOR_SECTORS,
            TABLE_ENTRIES,
            redundant,
            directory,
            data,
            b"\0\n \r\n",
            hdr.DEFLATE if compressed else 0,
        )
        # Nothing that was in the file before may be taken for tables.
        file.truncate(0, exact=False)
        file.truncate(data * SECTOR, exact=False)
        if not zero_init:
            file.write_zeroes(0, data * SECTOR)
        for start in (redundant, directory):
            first = start + directory_sectors
            for index in range(0, tables, 1 << 16):
                count = min(tables - index, 1 << 16)
                entries = array("I", range(first + index * _TABLE_SECTORS, first + (index + count) * _TABLE_SECTORS, 4))
                hdr.to_little_endian(entries)
                file.write(start * SECTOR + index * 4, memoryview(entries.tobytes()))
        file.write(0, memoryview(head))
