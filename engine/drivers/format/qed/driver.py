"""The QED driver: the graph's view of a QedImage."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Annotated

from engine.drivers.format.qcow2.create import BackendChild
from engine.drivers.format.qed import header as hdr
from engine.drivers.format.qed.header import Feature, Header
from engine.drivers.format.qed.image import Kind, QedImage, write_empty_table
from engine.drivers.protocol.file import HostFileDriver
from engine.errors import GenericError, os_error_text
from engine.graph.driver import (
    CreateContext,
    Driver,
    DriverInfo,
    Extent,
    Limits,
    Opening,
    Prealloc,
    ReopenState,
    Status,
    register,
)
from engine.graph.edge import Edge
from engine.graph.options import BlockdevOptionsGenericCOWFormat, BlockdevRef
from engine.graph.permissions import Perm, Role
from engine.qapi import Int, Size, Struct, tag_enum, to_wire

if TYPE_CHECKING:
    from engine.drivers.format.qcow2.findings import CheckResult

_DATA_HERE = int(Status.DATA | Status.OFFSET_VALID)
_ZERO = int(Status.ZERO)


class BlockdevCreateOptionsQed(Struct):
    """A new QED image. file: node to make it in. size: virtual size, bytes. backing_file, backing_fmt: what the header
    names. cluster_size: bytes, default 65536. table_size: clusters of a table, default 4.
    """

    file: BlockdevRef
    size: Size
    backing_file: str | None = None
    backing_fmt: Annotated[str | None, tag_enum("BlockdevDriver")] = None
    cluster_size: Size | None = None
    table_size: Int | None = None


@register
class QedDriver(Driver):
    """QEMU's enhanced disk format."""

    name = "qed"
    Options = BlockdevOptionsGenericCOWFormat
    CreateOptions = BlockdevCreateOptionsQed
    supports_backing = True

    image: QedImage
    file: Edge

    @classmethod
    def probe(cls, head: bytes, filename: str) -> int:
        return 100 if len(head) >= hdr.SIZE and head[:4] == hdr.MAGIC else 0

    # -- control plane ---------------------------------------------------------------------------------------

    def open(self, opening: Opening) -> None:
        file = opening.open_child("file", Role.IMAGE)
        assert file is not None
        self.file = file
        self.image = self._load(writable=not opening.read_only)
        header = self.image.header
        self.node.auto_backing_file = os.fsdecode(header.backing_file)
        self.node.auto_backing_format = "raw" if header.features & Feature.BACKING_RAW else ""
        self.length = header.length

    def _load(self, *, writable: bool) -> QedImage:
        """The image as it is on disk; one that is marked is checked and repaired before it is written."""
        image = QedImage(self.file, hdr.parse(self.file), lambda: self.node.backing, writable=writable)
        header = image.header
        if writable and header.autoclear_features:
            header.autoclear_features = 0
            try:
                image.write_header()
                self.file.flush()
            except OSError as exc:
                raise GenericError(f"Failed to update header: {os_error_text(exc)}") from exc
        try:
            image.l2_table(0)
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise GenericError(f"Failed to read L1 table: {os_error_text(exc)}") from exc
        if writable and header.features & Feature.NEED_CHECK:
            from engine.drivers.format.qed.check import check

            try:
                check(image, True)
            except OSError as exc:
                raise GenericError(f"Image corrupted: {os_error_text(exc)}") from exc
        return image

    def close(self) -> None:
        image: QedImage | None = getattr(self, "image", None)
        if image is None:
            return
        image.close()
        # Storage that refuses leaves the mark, and the next to open the image checks it.
        with contextlib.suppress(OSError):
            image.mark_clean()

    def drained_wait(self) -> None:
        # As in QEMU the mark goes at once, so that nothing is written by itself while the node is drained.
        with contextlib.suppress(OSError):
            self.image.mark_clean()

    def refresh_limits(self) -> None:
        self.limits = Limits(request_alignment=hdr.SECTOR, write_zeroes_alignment=self.image.cluster_size)

    def reopen_prepare(self, state: ReopenState) -> None:
        if state.read_only and self.image.writable:
            try:
                self.image.mark_clean()
            except OSError as exc:
                raise GenericError(f"Failed to flush the image: {os_error_text(exc)}") from exc

    def reopen_commit(self, state: ReopenState) -> None:
        if state.read_only:
            self.image.writable = False

    def reopen_commit_post(self, state: ReopenState) -> None:
        if state.read_only or self.image.writable:
            return
        # While it was read-only, somebody else may have written the image.
        child = self.file.child.driver
        try:
            if isinstance(child, HostFileDriver):
                child.refresh_length()
            fresh = self._load(writable=True)
        except (GenericError, OSError):
            self.node.ejected = True
            return
        self.image.close()
        self.image = fresh
        self.length = fresh.header.length

    def change_backing_string(self, filename: str | None, fmt: str | None) -> None:
        raw = fmt == "raw"
        self.image.change_backing(os.fsencode(filename or ""), raw)
        self.node.auto_backing_file = filename or ""
        self.node.auto_backing_format = "raw" if raw and filename else ""

    @classmethod
    def create(cls, options: BlockdevCreateOptionsQed, context: CreateContext) -> None:
        header = _header_for(options)
        wire = options.file if isinstance(options.file, str) else to_wire(options.file)
        file = context.open(wire, Perm.CONSISTENT_READ | Perm.WRITE | Perm.RESIZE, Perm.ALL)
        try:
            child = BackendChild(file)
            # The length of the file says which clusters are taken.
            child.truncate(0)
            child.write(0, memoryview(header.encode() + header.backing_file))
            write_empty_table(child, header.l1_offset, header.table_bytes)
            child.flush()
        finally:
            context.close(file)

    # -- information -----------------------------------------------------------------------------------------

    def info(self) -> DriverInfo | None:
        header = self.image.header
        return DriverInfo(cluster_size=header.cluster_size, is_dirty=bool(header.features & Feature.NEED_CHECK))

    def check(self, fix: frozenset[str] = frozenset()) -> CheckResult:
        """Check the tables; anything in *fix* has broken entries dropped. Errors: OSError."""
        from engine.drivers.format.qed.check import check

        return check(self.image, bool(fix))

    def has_zero_init(self) -> bool:
        return self.node.backing is None

    # -- data plane ------------------------------------------------------------------------------------------

    def read(self, offset: int, buffer: memoryview) -> None:
        self.image.read(offset, buffer)

    def write(self, offset: int, data: memoryview, flags: int = 0) -> None:
        self.image.write(offset, data)

    def write_zeroes(self, offset: int, length: int, flags: int = 0) -> None:
        self.image.write_zeroes(offset, length)

    def block_status(self, offset: int, length: int, want_zero: bool = True) -> Extent:
        kind, host, run = self.image.find(offset, length)
        if kind is Kind.FOUND:
            return Extent(run, _DATA_HERE, self.file.child, host)
        return Extent(run, _ZERO if kind is Kind.ZERO else 0)

    def truncate(self, length: int, *, exact: bool = True, prealloc: Prealloc = Prealloc.OFF) -> None:
        image = self.image
        header = image.header
        if prealloc is not Prealloc.OFF:
            raise GenericError(f"Unsupported preallocation mode '{prealloc.value}'")
        if not hdr.length_valid(length, header.cluster_size, header.table_size):
            raise GenericError("Invalid image size specified")
        if length < header.length:
            raise GenericError("Shrinking images is currently not supported")
        with image.allocating:
            old = header.length
            header.length = length
            try:
                image.write_header()
            except OSError as exc:
                header.length = old
                raise GenericError(f"Failed to update the image size: {os_error_text(exc)}") from exc
        self.length = length


def _header_for(options: BlockdevCreateOptionsQed) -> Header:
    """Errors: GenericError, in QEMU's words."""
    cluster = hdr.DEFAULT_CLUSTER if options.cluster_size is None else options.cluster_size
    table = hdr.DEFAULT_TABLE if options.table_size is None else options.table_size
    if not hdr.cluster_size_valid(cluster):
        raise GenericError(
            f"QED cluster size must be within range [{hdr.MIN_CLUSTER}, {hdr.MAX_CLUSTER}] and power of 2"
        )
    if not hdr.table_size_valid(table):
        raise GenericError(f"QED table size must be within range [{hdr.MIN_TABLE}, {hdr.MAX_TABLE}] and power of 2")
    if not hdr.length_valid(options.size, cluster, table):
        raise GenericError(
            "QED image size must be a non-zero multiple of cluster size and less than "
            f"{hdr.max_length(cluster, table)} bytes"
        )
    header = Header(cluster, table, l1_offset=cluster, length=options.size)
    if options.backing_file is not None:
        header.features |= Feature.BACKING_FILE
        header.backing_file = os.fsencode(options.backing_file)
        header.backing_offset, header.backing_size = hdr.SIZE, len(header.backing_file)
        if options.backing_fmt == "raw":
            header.features |= Feature.BACKING_RAW
        if hdr.SIZE + len(header.backing_file) > cluster:
            raise GenericError("QED backing filename does not fit into the header")
    return header
