"""The qcow2 driver: the graph's view of an Image."""

from __future__ import annotations

import errno
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from engine.drivers.format.qcow2 import compress, hostplan, packing, reading, resize, unmap, writing
from engine.drivers.format.qcow2 import header as hdr
from engine.drivers.format.qcow2 import settings as cfg
from engine.drivers.format.qcow2 import snapshots as snap
from engine.drivers.format.qcow2.bitmap_node import NodeBitmaps
from engine.drivers.format.qcow2.hostplan import Filling, Reservation
from engine.drivers.format.qcow2.image import Image
from engine.drivers.format.qcow2.options import (
    BlockdevAmendOptionsQcow2,
    BlockdevCreateOptionsQcow2,
    BlockdevOptionsQcow2,
    ImageInfoSpecificQCow2,
    Qcow2BitmapInfo,
    Qcow2BitmapInfoFlags,
    Qcow2CompressionType,
)
from engine.drivers.format.qcow2.storage import error
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
    WriteFlag,
    WritePlan,
    register,
)
from engine.graph.edge import Edge
from engine.graph.info import SnapshotInfo
from engine.graph.permissions import Role
from engine.qapi import Struct

if TYPE_CHECKING:
    from engine.drivers.format.qcow2.findings import CheckResult
    from engine.graph.node import Node

_COMPRESSED = int(WriteFlag.COMPRESSED)


def _snapshot_info(item: snap.Snapshot) -> SnapshotInfo:
    return SnapshotInfo(
        id=item.id,
        name=item.name,
        vm_state_size=item.vm_state_size,
        date_sec=item.date_sec,
        date_nsec=item.date_nsec,
        vm_clock_sec=item.vm_clock_nsec // 10**9,
        vm_clock_nsec=item.vm_clock_nsec % 10**9,
        icount=item.icount,
    )


@register
class Qcow2Driver(Driver):
    """QEMU's copy-on-write format, versions 2 and 3."""

    name = "qcow2"
    Options = BlockdevOptionsQcow2
    CreateOptions = BlockdevCreateOptionsQcow2
    AmendOptions = BlockdevAmendOptionsQcow2
    SpecificInfo = ImageInfoSpecificQCow2
    supports_backing = True
    supports_compressed_writes = True
    supports_snapshots = True
    child_options = frozenset({"file", "backing", "data-file"})
    strong_options = ("encrypt.key-secret",)
    mutable_options = frozenset(
        {
            "lazy-refcounts",
            "pass-discard-request",
            "pass-discard-snapshot",
            "pass-discard-other",
            "overlap-check",
            "cache-size",
            "l2-cache-size",
            "l2-cache-entry-size",
            "refcount-cache-size",
            "cache-clean-interval",
        }
    )

    image: Image
    file: Edge
    options: BlockdevOptionsQcow2
    bitmaps: NodeBitmaps

    # -- control plane ---------------------------------------------------------------------------------------

    @classmethod
    def probe(cls, head: bytes, filename: str) -> int:
        return 100 if head[:4] == hdr.MAGIC and int.from_bytes(head[4:8], "big") >= 2 else 0

    def open(self, opening: Opening) -> None:
        options: BlockdevOptionsQcow2 = opening.options
        self._growing = threading.Lock()
        file = opening.open_child("file", Role.IMAGE)
        assert file is not None
        self.file = file
        writable = not opening.read_only
        header = hdr.parse(file, writable=writable)
        if header.crypt_method:
            raise GenericError("Encrypted qcow2 images are not supported")
        compress.require(header.compression_type)
        settings = cfg.from_options(options, header, self.node.discard_unmap)
        self.options = options
        data_file = self._open_data_file(opening, header)
        table = snap.read(file, header)
        self.node.auto_backing_file = header.backing_file
        self.node.auto_backing_format = header.backing_format
        self.image = image = self._load(header, settings, data_file, table, writable)
        self.length = image.size
        self.bitmaps = NodeBitmaps(self.node)
        try:
            self.bitmaps.load(image)
            if writable:
                self._take_for_writing(image)
        except BaseException:
            image.close()
            raise

    def _load(
        self,
        header: hdr.Header,
        settings: cfg.Settings,
        data_file: Edge | None,
        table: list[snap.Snapshot],
        writable: bool,
    ) -> Image:
        self.file.child.driver.debug_event("reftable_load")
        try:
            image = Image(
                self.file,
                header,
                settings,
                data_file=data_file,
                backing=lambda: self.node.backing,
                report=self.node.report_corruption,
                writable=writable,
                snapshots=table,
            )
        except OSError as exc:
            raise GenericError(f"Could not read L1 table: {os_error_text(exc)}") from exc
        image.allocated_size = lambda: self.file.child.driver.allocated_size()
        image.announce = lambda event: self.file.child.driver.debug_event(event)
        return image

    def _open_data_file(self, opening: Opening, header: hdr.Header) -> Edge | None:
        """The external data file's edge. Its name in the image is taken as a plain file name (CVE-2024-4467)."""
        if not header.has_data_file:
            if opening.open_child("data-file", Role.DATA, required=False) is not None:
                raise GenericError("'data-file' can only be set for images with an external data file")
            return None
        edge = opening.open_child(
            "data-file", Role.DATA, filename=header.data_file or None, required=False, parse_filename=False
        )
        if edge is None:
            raise GenericError("'data-file' is required for this image")
        # The file itself no longer holds guest data.
        self.file.role &= ~Role.DATA
        return edge

    def _take_for_writing(self, image: Image) -> None:
        """What a read-write open changes in the image at once: unknown autoclear bits go, a dirty image is repaired,
        bitmaps are marked in use.
        """
        header = image.header
        image.keeps_bitmaps = True
        if header.incompatible & hdr.Incompatible.DIRTY:
            try:
                image.prepare_modify()
            except OSError as exc:
                raise GenericError(f"Could not repair dirty image: {os_error_text(exc)}") from exc
        elif header.autoclear & ~int(hdr.Autoclear.ALL):
            header.autoclear &= int(hdr.Autoclear.ALL)
            try:
                image.write_header_field(*hdr.encode_features(header))
                image.sync()
            except OSError as exc:
                raise GenericError(f"Could not update qcow2 header: {os_error_text(exc)}") from exc
        self.bitmaps.take(image)

    def close(self) -> None:
        image: Image | None = getattr(self, "image", None)
        if image is None:
            return
        image.close()
        self.bitmaps.store_last(image)
        if image.writable and not image.dead:
            try:
                image.mark_clean()
            except OSError:
                # The storage refuses: what is not on disk is lost as in a crash, which the write order has made
                # harmless.
                return

    def refresh_limits(self) -> None:
        # Zero writes of any alignment are taken: those that don't fill a cluster are looked at here.
        self.limits = Limits(discard_alignment=self.image.cluster_size)

    def reopen_prepare(self, state: ReopenState) -> None:
        image = self.image
        options: BlockdevOptionsQcow2 = state.options or self.options
        settings = cfg.from_options(options, image.header, state.discard_unmap)
        if "encrypt.format" in state.effective:
            cfg.refuse_encryption(state.effective["encrypt.format"])
        if image.writable and not image.dead:
            if state.read_only:
                self.bitmaps.become_read_only(image)
            try:
                # The permissions to write are still there. Going read-only ends the dirty state.
                if state.read_only or (image.lazy and not settings.lazy_refcounts):
                    image.mark_clean()
                else:
                    image.ordering.write_back()
            except OSError as exc:
                self.bitmaps.stay_writable(image)
                raise GenericError(f"Failed to flush the image: {os_error_text(exc)}") from exc
        if not image.writable and not state.read_only:
            state.prepared = self._reread(settings)
        else:
            state.prepared = settings

    def _reread(self, settings: cfg.Settings) -> Image:
        """The image as it is on disk now: while it was read-only, somebody else may have written it."""
        old = self.image.header
        for edge in (self.file, self.node.children.get("data-file")):
            if edge is not None and isinstance(edge.child.driver, HostFileDriver):
                edge.child.driver.refresh_length()
        header = hdr.parse(self.file, writable=True)
        state_bits = int(hdr.Incompatible.DIRTY | hdr.Incompatible.CORRUPT)
        for name in ("version", "cluster_bits", "refcount_order", "compression_type", "crypt_method", "size"):
            if getattr(header, name) != getattr(old, name):
                raise GenericError("The image was changed by another program; it has to be opened anew")
        if (header.incompatible ^ old.incompatible) & ~state_bits:
            raise GenericError("The image was changed by another program; it has to be opened anew")
        return self._load(
            header, settings, self.node.children.get("data-file"), snap.read(self.file, header), writable=True
        )

    def reopen_commit(self, state: ReopenState) -> None:
        self.options = state.options or self.options
        if isinstance(state.prepared, Image):
            self.image.close()
            self.image = state.prepared
        else:
            self.image.writable = not state.read_only
            self.image.change_settings(state.prepared)

    def reopen_commit_post(self, state: ReopenState) -> None:
        if isinstance(state.prepared, Image):
            # Only now nobody else can write the image: what was read while preparing may be out of date.
            try:
                fresh = self._reread(self.image.settings)
            except (GenericError, OSError):
                self.image.dead = True
                return
            self.image.close()
            self.image = fresh
            fresh.keeps_bitmaps = True
            self.bitmaps.become_writable(fresh)

    def reopen_abort(self, state: ReopenState) -> None:
        if isinstance(state.prepared, Image):
            state.prepared.close()
        elif self.image.writable and not self.image.dead:
            self.bitmaps.stay_writable(self.image)

    def check_bitmap_storable(self, name: str, granularity: int) -> None:
        self.bitmaps.check_storable(self.image, name, granularity)

    def remove_stored_bitmap(self, name: str) -> None:
        self.bitmaps.remove(self.image, name)

    def change_backing_string(self, filename: str | None, fmt: str | None) -> None:
        image = self.image
        image.check_alive()
        header = image.header
        if header.data_file_raw and filename:
            raise error(errno.EINVAL)
        old = header.backing_file, header.backing_format
        header.backing_file, header.backing_format = filename or "", (fmt or "") if filename else ""
        try:
            if len(header.backing_format.encode()) > 15:
                raise error(errno.EINVAL)
            with image.flush_lock, image.lock:
                image.rewrite_header()
        except OSError:
            header.backing_file, header.backing_format = old
            raise
        self.node.auto_backing_file = header.backing_file
        self.node.auto_backing_format = header.backing_format

    @classmethod
    def create(cls, options: Any, context: CreateContext) -> None:
        # Imported when needed, as are the other rare parts: programs that only open images start faster.
        from engine.drivers.format.qcow2 import create

        create.create(options, context)

    def amend(self, options: BlockdevAmendOptionsQcow2, force: bool) -> None:
        # Key slots are all there is to change, and no image with any can be opened here.
        if options.encrypt is not None:
            raise GenericError("image is not encrypted, can't amend")

    # -- information -----------------------------------------------------------------------------------------

    def info(self) -> DriverInfo | None:
        image = self.image
        return DriverInfo(
            cluster_size=image.cluster_size,
            vm_state_offset=image.header.l1_entries_for(image.size) << image.l1_shift,
            is_dirty=bool(image.header.incompatible & hdr.Incompatible.DIRTY),
        )

    def format_specific(self) -> tuple[str, Struct] | None:
        header = self.image.header
        kind = Qcow2CompressionType.ZSTD if header.compression_type == hdr.ZSTD else Qcow2CompressionType.ZLIB
        data = ImageInfoSpecificQCow2(
            compat="0.10" if header.version < 3 else "1.1",
            refcount_bits=1 << header.refcount_order,
            compression_type=kind,
        )
        if header.version >= 3:
            data.lazy_refcounts = bool(header.compatible & hdr.Compatible.LAZY_REFCOUNTS)
            data.corrupt = bool(header.incompatible & hdr.Incompatible.CORRUPT)
            data.extended_l2 = header.extended_l2
            if header.data_file and header.has_data_file:
                data.data_file = header.data_file
            if header.has_data_file:
                data.data_file_raw = header.data_file_raw
            data.bitmaps = self._bitmaps()
        return "qcow2", data

    def _bitmaps(self) -> list[Qcow2BitmapInfo] | None:
        from engine.drivers.format.qcow2 import bitmaps

        try:
            entries = bitmaps.read_directory(self.file, self.image.header)
        except (GenericError, OSError):
            # An unreadable directory is a finding of check(); here there is just nothing to tell.
            return None
        if not entries:
            return None
        return [
            Qcow2BitmapInfo(
                name=entry.name,
                granularity=entry.granularity,
                flags=[
                    flag
                    for bit, flag in (
                        (bitmaps.IN_USE, Qcow2BitmapInfoFlags.IN_USE),
                        (bitmaps.AUTO, Qcow2BitmapInfoFlags.AUTO),
                    )
                    if entry.flags & bit
                ],
            )
            for entry in entries
        ]

    def snapshots(self) -> list[snap.Snapshot]:
        """The internal snapshots of the image."""
        return list(self.image.snapshots)

    def snapshot_list(self) -> list[SnapshotInfo]:
        return [_snapshot_info(item) for item in self.image.snapshots]

    def holds_snapshots(self) -> bool:
        return self.image.data_file is None

    def snapshot_size(self, id_or_name: str) -> int | None:
        from engine.drivers.format.qcow2 import snapshotting

        found = snapshotting.find_any(self.image, id_or_name)
        return found.disk_size if found is not None else None

    def snapshot_create(self, info: SnapshotInfo) -> SnapshotInfo:
        from engine.drivers.format.qcow2 import snapshotting

        clock = info.vm_clock_sec * 10**9 + info.vm_clock_nsec
        moment = snapshotting.Moment(info.date_sec, info.date_nsec, clock, info.icount)
        return _snapshot_info(snapshotting.create(self.image, info.name, moment))

    def snapshot_delete(self, snapshot_id: str | None, name: str | None) -> None:
        from engine.drivers.format.qcow2 import snapshotting

        found = snapshotting.find(self.image, snapshot_id, name)
        if found is None:
            raise GenericError("Can't find the snapshot")
        snapshotting.delete(self.image, found)

    def snapshot_goto(self, id_or_name: str) -> None:
        from engine.drivers.format.qcow2 import snapshotting

        found = snapshotting.find_any(self.image, id_or_name)
        if found is None:
            raise error(errno.ENOENT)
        try:
            snapshotting.go_back(self.image, found)
        finally:
            self.length = self.image.size

    def check(self, fix: frozenset[str] = frozenset()) -> CheckResult:
        """Check the metadata, and repair what *fix* ("leaks", "errors") names. Errors: OSError when checking itself
        fails.
        """
        from engine.drivers.format.qcow2 import check

        return check.check(self.image, fix)

    # -- data plane ------------------------------------------------------------------------------------------

    def read(self, offset: int, buffer: memoryview) -> None:
        reading.read(self.image, offset, buffer)

    def write(self, offset: int, data: memoryview, flags: int = 0) -> None:
        if offset + len(data) > self.length:
            self._grow(offset + len(data))
        if flags & _COMPRESSED:
            packing.write(self.image, offset, data)
        else:
            writing.write(self.image, offset, data)

    def write_zeroes(self, offset: int, length: int, flags: int = 0) -> None:
        if offset + length > self.length:
            self._grow(offset + length)
        unmap.write_zeroes(self.image, offset, length, flags)

    def _grow(self, end: int) -> None:
        """An image inside of this one writes past the end. Errors: OSError."""
        with self._growing:
            if end > self.length:
                unit = resize.MIN_SIZE_UNIT
                try:
                    self.truncate(-(-end // unit) * unit)
                except GenericError as exc:
                    raise OSError(errno.EFBIG, exc.desc) from exc

    def discard(self, offset: int, length: int) -> None:
        unmap.discard(self.image, offset, length)

    def flush(self) -> None:
        self.announce_flush()
        self.image.ordering.write_back()

    def block_status(self, offset: int, length: int, want_zero: bool = True) -> Extent:
        run, flags, host = reading.block_status(self.image, offset, length)
        if flags & 0x04:
            edge = self.node.children.get("data-file") or self.file
            return Extent(run, flags, edge.child, host)
        return Extent(run, flags)

    def block_map(self, offset: int, length: int) -> list[tuple[int, int, Node | None, int]]:
        child = (self.node.children.get("data-file") or self.file).child
        return [
            (run, flags, child if flags & 0x04 else None, host)
            for run, flags, host in reading.block_map(self.image, offset, length)
        ]

    def truncate(self, length: int, *, exact: bool = True, prealloc: Prealloc = Prealloc.OFF) -> None:
        if not length % resize.MIN_SIZE_UNIT:
            self.bitmaps.check_resizable(self.image)
        resize.truncate(self.image, length, exact=exact, prealloc=prealloc)
        self.length = self.image.size

    def begin_write(self, offset: int, length: int) -> WritePlan | None:
        node = (self.node.children.get("data-file") or self.file).child
        if not node.driver.is_protocol:
            return None
        return self._plan(node, hostplan.reserve(self.image, offset, offset + length))

    def begin_writes(self, offset: int, runs: Sequence[tuple[int, int]], settle: bool) -> WritePlan | None:
        node = self.file.child
        return self._plan(node, hostplan.fill(self.image, offset, runs, settle)) if node.driver.is_protocol else None

    def _plan(self, node: Node, reservation: Reservation | Filling | None) -> WritePlan | None:
        if reservation is None:
            return None

        def commit() -> None:
            node.mark_unflushed()
            reservation.commit()

        return WritePlan([(node, host, size) for host, size in reservation.extents], commit, reservation.abort)

    def make_empty(self) -> None:
        """Drop all data of this layer, so that the backing file shows everywhere (commit does so). Errors: OSError."""
        resize.make_empty(self.image)

    def has_zero_init(self) -> bool:
        if self.node.backing is not None:
            return False
        # A preallocated image has all its L2 tables from the start; then it depends on what lies below.
        image = self.image
        preallocated = bool(image.l1) and image.l1[0] != 0
        edge = self.node.children.get("data-file") or self.file
        return not preallocated or edge.child.driver.has_zero_init()

    def unmaps_zeroes(self) -> bool:
        return self.image.header.version >= 3
