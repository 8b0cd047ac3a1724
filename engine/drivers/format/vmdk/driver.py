"""The vmdk driver: the graph's view of an image."""

from __future__ import annotations

import errno
import secrets
import threading
from bisect import bisect_right
from typing import TYPE_CHECKING, Any

from engine.drivers.format.qcow2.storage import error, read_bytes
from engine.drivers.format.vmdk import descriptor as text
from engine.drivers.format.vmdk import header as hdr
from engine.drivers.format.vmdk.extents import FlatExtent, SparseExtent
from engine.drivers.format.vmdk.header import SECTOR
from engine.drivers.format.vmdk.options import (
    BlockdevCreateOptionsVmdk,
    BlockdevOptionsVmdk,
    ImageInfoSpecificVmdk,
)
from engine.drivers.format.vmdk.tables import DATA, ZEROED
from engine.errors import GenericError, os_error_text
from engine.graph.driver import (
    CreateContext,
    Driver,
    DriverInfo,
    Extent,
    Limits,
    Opening,
    ReopenState,
    Status,
    WriteFlag,
    register,
)
from engine.graph.edge import Edge
from engine.graph.filenames import dirname_of
from engine.graph.info import ImageInfo
from engine.graph.permissions import Role
from engine.qapi import Struct

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.drivers.format.qcow2.findings import CheckResult
    from engine.drivers.format.vmdk.descriptor import ExtentLine
    from engine.drivers.format.vmdk.header import Geometry

_COMPRESSED = int(WriteFlag.COMPRESSED)
_FLAT = int(Status.DATA | Status.OFFSET_VALID | Status.RECURSE)
_PLACED = int(Status.DATA | Status.OFFSET_VALID)
_PACKED = int(Status.DATA)
_ZERO = int(Status.ZERO)
_EMBEDDED = 0x200
"""Where the descriptor lies in a file that has data, too."""

SomeExtent = FlatExtent | SparseExtent


@register
class VmdkDriver(Driver):
    """VMware's disk images: one file, or a descriptor and the files it names."""

    name = "vmdk"
    Options = BlockdevOptionsVmdk
    CreateOptions = BlockdevCreateOptionsVmdk
    SpecificInfo = ImageInfoSpecificVmdk
    supports_backing = True
    supports_compressed_writes = True

    file: Edge
    extents: list[SomeExtent]
    create_type: str
    cid: int
    parent_cid: int

    # -- control plane ---------------------------------------------------------------------------------------

    @classmethod
    def probe(cls, head: bytes, filename: str) -> int:
        return 100 if head[:4] in (hdr.HOSTED_MAGIC, hdr.ESX_MAGIC) or text.looks_like(head) else 0

    def open(self, opening: Opening) -> None:
        file = opening.open_child("file", Role.IMAGE)
        assert file is not None
        self.file = file
        self.extents = []
        self.create_type = ""
        self._starts: list[int] = []
        self._cid_lock = threading.Lock()
        self._cid_written = False
        self._parent_checked = False
        head = self._head(file)
        if head in (hdr.HOSTED_MAGIC, hdr.ESX_MAGIC):
            self._descriptor_offset = _EMBEDDED
            self._open_single(opening, head)
        else:
            self._descriptor_offset = 0
            # A file of text alone holds no guest data.
            file.role &= ~Role.DATA
            self._open_described(opening, 0)
        self.length = self.extents[-1].start + self.extents[-1].length if self.extents else 0
        self._starts = [extent.start for extent in self.extents]
        self._read_ancestry()

    @staticmethod
    def _head(file: Edge) -> bytes:
        """The magic number of an image or extent. Errors: GenericError."""
        if not file.length:
            raise GenericError("File is too small, not a valid image")
        try:
            return bytes(read_bytes(file, 0, 4))
        except OSError as exc:
            raise GenericError(f"Could not read from file: {os_error_text(exc)}") from exc

    def _open_single(self, opening: Opening, magic: bytes) -> None:
        """An image whose file starts with a header."""
        name = self.file.child.filename
        if magic == hdr.ESX_MAGIC:
            self._add_sparse(self.file, "", hdr.esx_geometry(self.file, name))
            return
        header = hdr.read_hosted(self.file, name)
        if not header.capacity and header.descriptor:
            if header.descriptor >= 1 << 54:
                raise GenericError("invalid VMDK image descriptor")
            self._open_described(opening, header.descriptor * SECTOR)
            return
        geometry = hdr.hosted_geometry(self.file, header, writable=not opening.read_only)
        self.create_type = "streamOptimized" if geometry.compressed else "monolithicSparse"
        self._add_sparse(self.file, "", geometry)

    def _add_sparse(self, file: Edge, kind: str, geometry: Geometry) -> None:
        try:
            self.extents.append(SparseExtent(file, kind, self._end(), geometry))
        except OSError as exc:
            raise GenericError(
                f"Could not read l1 table from extent '{file.child.filename}': {os_error_text(exc)}"
            ) from exc

    def _end(self) -> int:
        return self.extents[-1].start + self.extents[-1].length if self.extents else 0

    def _open_described(self, opening: Opening, offset: int) -> None:
        """The extents that the descriptor at *offset* lists. Errors: GenericError."""
        size = min(max(self.file.length - offset, 0), text.MAX_SIZE)
        try:
            words = text.until_nul(read_bytes(self.file, offset, size))
        except OSError as exc:
            raise GenericError(f"Could not read from file: {os_error_text(exc)}") from exc
        kind = text.create_type(words)
        if kind not in text.CREATE_TYPES:
            raise GenericError(f"Unsupported image type '{kind}'")
        self.create_type = kind
        folder: str | None = None
        for number, line in enumerate(text.extent_lines(words)):
            path = line.filename
            if not path.startswith("/"):
                folder = self._folder() if folder is None else folder
                path = folder + path
            role = Role.DATA if line.flat else Role.DATA | Role.METADATA
            # Named by the image: a plain file name, whatever it looks like.
            edge = opening.open_child(f"extents.{number}", role, filename=path, parse_filename=False)
            assert edge is not None
            self._add_extent(opening, edge, line)
            if self._end() >= 1 << 63:
                raise GenericError("The image is too large")

    def _folder(self) -> str:
        try:
            return dirname_of(self.file.child)
        except GenericError as exc:
            name = self.file.child.filename
            raise GenericError(f"Cannot use relative paths with VMDK descriptor file '{name}': {exc.desc}") from exc

    def _add_extent(self, opening: Opening, file: Edge, line: ExtentLine) -> None:
        if line.flat:
            self.extents.append(FlatExtent(file, line.kind, self._end(), line.sectors * SECTOR, line.offset))
            return
        name = file.child.filename
        if line.kind == "SESPARSE":
            opening.fall_back_to_read_only("No write support for seSparse images available")
            geometry = hdr.se_geometry(file, name)
        else:
            magic = self._head(file)
            if magic == hdr.ESX_MAGIC:
                geometry = hdr.esx_geometry(file, name)
            elif magic == hdr.HOSTED_MAGIC:
                header = hdr.read_hosted(file, name)
                if not header.capacity and header.descriptor:
                    raise GenericError(f"Extent '{name}' is a descriptor itself")
                geometry = hdr.hosted_geometry(file, header, writable=not opening.read_only)
                if geometry.compressed:
                    self.create_type = "streamOptimized"
            else:
                raise GenericError("Image not in VMDK format")
        self._add_sparse(file, line.kind, geometry)

    def _words(self) -> bytes:
        """The part of the descriptor that has CIDs and the parent's name. Errors: OSError."""
        return text.until_nul(read_bytes(self.file, self._descriptor_offset, text.EMBEDDED_SIZE - 1))

    def _read_ancestry(self) -> None:
        words = self._words()
        try:
            parent = text.parent_name(words)
        except ValueError:
            raise error(errno.EINVAL) from None
        cid, parent_cid = text.cid(words), text.cid(words, parent=True)
        if cid is None or parent_cid is None:
            raise error(errno.EINVAL)
        self.cid, self.parent_cid = cid, parent_cid
        if parent is not None:
            self.node.auto_backing_file = parent
            self.node.auto_backing_format = "vmdk"

    def current_cid(self) -> int | None:
        """The CID in the file now; None where there is none. Errors: OSError."""
        return text.cid(self._words())

    def close(self) -> None:
        for extent in self._sparse():
            try:
                extent.tables.write_back()
            except OSError:
                # The storage refuses: the grains written last are lost, as in a crash.
                continue

    def refresh_limits(self) -> None:
        grains = [extent.grain for extent in self._sparse()]
        smallest = min(grains, default=0)
        # Alignments are powers of two; zero writes that don't fit other grains are looked at here.
        self.limits = Limits(write_zeroes_alignment=smallest if not smallest & (smallest - 1) else 0)

    def reopen_prepare(self, state: ReopenState) -> None:
        if not state.read_only and self.node.read_only:
            for extent in self._sparse():
                if extent.geometry.se_sparse:
                    raise GenericError("No write support for seSparse images available")
                if extent.geometry.version == 3 and not extent.compressed:
                    raise GenericError("VMDK version 3 must be read only")
        if state.read_only and not self.node.read_only:
            try:
                for extent in self._sparse():
                    extent.tables.write_back()
            except OSError as exc:
                raise GenericError(f"Failed to flush the image: {os_error_text(exc)}") from exc

    def reopen_commit(self, state: ReopenState) -> None:
        # The file child may have been replaced; extents in files of their own never are.
        old, new = self.file, self.node.file
        assert new is not None
        self.file = new
        for extent in self.extents:
            if extent.file is old:
                extent.use_file(new)
            if isinstance(extent, SparseExtent):
                extent.find_end()

    def children_options(self) -> dict[str, Any]:
        # The descriptor names the extents: they need no options.
        options: dict[str, Any] = {"file": self.file.child.full_options}
        backing = self.node.backing
        if backing is not None and self.node.backing_overridden:
            options["backing"] = backing.child.full_options
        return options

    @classmethod
    def create(cls, options: Any, context: CreateContext) -> None:
        from engine.drivers.format.vmdk import create

        create.create(options, context)

    # -- information -----------------------------------------------------------------------------------------

    def _sparse(self) -> Iterator[SparseExtent]:
        return (extent for extent in self.extents if isinstance(extent, SparseExtent))

    def info(self) -> DriverInfo | None:
        grains = {extent.grain if isinstance(extent, SparseExtent) else 0 for extent in self.extents}
        kinds = {(extent.flat, extent.compressed) for extent in self.extents}
        if len(grains) > 1 or len(kinds) > 1:
            return None
        first = next(self._sparse(), None)
        return DriverInfo(cluster_size=first.grain if first is not None else 0)

    def format_specific(self) -> tuple[str, Struct] | None:
        return "vmdk", ImageInfoSpecificVmdk(
            create_type=self.create_type,
            cid=self.cid,
            parent_cid=self.parent_cid,
            extents=[
                ImageInfo(
                    filename=extent.file.child.filename,
                    format=extent.kind,
                    virtual_size=extent.length,
                    compressed=True if extent.compressed else None,
                    cluster_size=extent.grain if isinstance(extent, SparseExtent) else None,
                )
                for extent in self.extents
            ],
        )

    def has_zero_init(self) -> bool:
        if self.node.backing is not None:
            return False
        return all(extent.file.child.driver.has_zero_init() for extent in self.extents if extent.flat)

    def check(self, fix: frozenset[str] = frozenset()) -> CheckResult:
        """Look whether every grain lies within its file. Nothing can be repaired. Errors: OSError."""
        from engine.drivers.format.vmdk import check

        return check.check(self, fix)

    # -- data plane ------------------------------------------------------------------------------------------

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[SomeExtent, int, int, int]]:
        """(extent, offset in it, offset in the request, length) of the parts of a request. Errors: OSError."""
        done = 0
        while done < length:
            extent = self.extents[bisect_right(self._starts, offset) - 1]
            within = offset - extent.start
            step = min(length - done, extent.length - within)
            if step <= 0:
                raise error(errno.EIO)
            yield extent, within, done, step
            offset += step
            done += step

    def _check_parent(self) -> None:
        """Refuse a backing file that has been written to since the image was made. Errors: OSError."""
        backing = self.node.backing
        if self._parent_checked or backing is None:
            return
        below = backing.child.driver
        if not isinstance(below, VmdkDriver) or below.current_cid() != self.parent_cid:
            raise error(errno.EINVAL)
        self._parent_checked = True

    def _read_below(self, offset: int, buffer: memoryview) -> None:
        backing = self.node.backing
        if backing is None:
            buffer[:] = bytes(len(buffer))
            return
        self._check_parent()
        self.file.child.driver.debug_event("read_backing_aio")
        backing.read(offset, buffer)

    def read(self, offset: int, buffer: memoryview) -> None:
        for extent, within, done, step in self._pieces(offset, len(buffer)):
            part = buffer[done : done + step]
            if isinstance(extent, FlatExtent):
                extent.file.child.driver.debug_event("read_aio")
                extent.file.read(extent.offset + within, part)
            else:
                self._read_sparse(extent, within, part)

    def _read_sparse(self, extent: SparseExtent, offset: int, buffer: memoryview) -> None:
        while buffer:
            state, host, run = extent.tables.lookup(offset, len(buffer))
            part = buffer[:run]
            if state == ZEROED:
                part[:] = bytes(run)
            elif state != DATA:
                self._read_below(extent.start + offset, part)
            elif extent.compressed:
                extent.read_compressed(host, offset % extent.grain, part)
            else:
                extent.file.child.driver.debug_event("read_aio")
                extent.file.read(host, part)
            offset += run
            buffer = buffer[run:]

    def write(self, offset: int, data: memoryview, flags: int = 0) -> None:
        if flags & _COMPRESSED and not (len(self.extents) == 1 and self.extents[0].compressed):
            raise error(errno.ENOTSUP)
        below = self._read_below if self.node.backing is not None else None
        for extent, within, done, step in self._pieces(offset, len(data)):
            part = data[done : done + step]
            if isinstance(extent, FlatExtent):
                extent.file.child.driver.debug_event("write_aio")
                extent.file.write(extent.offset + within, part)
            elif extent.geometry.se_sparse:
                raise error(errno.ENOTSUP)
            elif extent.compressed:
                extent.write_compressed(within, part)
            else:
                extent.write(within, part, below)
            if not self._cid_written:
                self._write_cid()

    def write_zeroes(self, offset: int, length: int, flags: int = 0) -> None:
        pieces = list(self._pieces(offset, length))
        for extent, within, _, step in pieces:
            if isinstance(extent, FlatExtent) or extent.geometry.se_sparse:
                raise error(errno.ENOTSUP)
            extent.check_zeroable(within, step)
        for extent, within, _, step in pieces:
            assert isinstance(extent, SparseExtent)
            extent.write_zeroes(within, step)
            if not self._cid_written:
                self._write_cid()

    def _write_cid(self) -> None:
        """Change the CID, once in the time the image is open, so that overlays see it was written. Errors: OSError."""
        with self._cid_lock:
            if self._cid_written:
                return
            change = text.change_cid(self._words(), secrets.randbits(32))
            if change is None:
                raise error(errno.EINVAL)
            at, data = change
            self.file.write(self._descriptor_offset + at, memoryview(data))
            self.file.flush()
            self._cid_written = True

    def flush(self) -> None:
        for extent in self._sparse():
            extent.tables.write_back()
        super().flush()

    def block_status(self, offset: int, length: int, want_zero: bool = True) -> Extent:
        extent, within, _, step = next(self._pieces(offset, length))
        node = extent.file.child
        if isinstance(extent, FlatExtent):
            return Extent(step, _FLAT, node, extent.offset + within)
        state, host, run = extent.tables.lookup(within, step)
        if state == ZEROED:
            return Extent(run, _ZERO)
        if state != DATA:
            return Extent(run, 0)
        if extent.compressed:
            return Extent(run, _PACKED)
        return Extent(run, _PLACED, node, host)
