"""The qcow driver: the graph's view of a QcowImage."""

from __future__ import annotations

import os

from engine.drivers.format.qcow import header as hdr
from engine.drivers.format.qcow.header import Header
from engine.drivers.format.qcow.image import COMPRESSED, QcowImage
from engine.drivers.format.qcow2.create import BackendChild
from engine.drivers.format.qcow2.options import QCryptoBlockCreateOptions, QCryptoBlockOptionsQCow
from engine.drivers.protocol.file import HostFileDriver
from engine.errors import GenericError
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
from engine.graph.options import BlockdevOptionsGenericCOWFormat, BlockdevRef
from engine.graph.permissions import Perm, Role
from engine.qapi import Enum, Size, Struct, Union, to_wire

_DATA_HERE = int(Status.DATA | Status.OFFSET_VALID)
_PACKED = int(Status.DATA | Status.COMPRESSED)
_ZERO_CHUNK = 1 << 20


class BlockdevQcowEncryptionFormat(Enum):
    """Kinds of encryption inside qcow images.

    aes: AES-CBC, unsafe
    """

    AES = "aes"


class BlockdevQcowEncryption(Union, tag="format", tag_enum=BlockdevQcowEncryptionFormat):
    """How to open an encrypted image."""

    format: BlockdevQcowEncryptionFormat


BlockdevQcowEncryption.add_branch("aes", QCryptoBlockOptionsQCow)


class BlockdevOptionsQcow(BlockdevOptionsGenericCOWFormat):
    """Options of qcow nodes. encrypt: how the image is encrypted; those that can be opened here are not."""

    encrypt: BlockdevQcowEncryption | None = None


class BlockdevCreateOptionsQcow(Struct):
    """A new qcow image. file: node to make it in. size: virtual size, bytes. backing_file: what the header names.
    encrypt: encryption, which is refused.
    """

    file: BlockdevRef
    size: Size
    backing_file: str | None = None
    encrypt: QCryptoBlockCreateOptions | None = None


@register
class QcowDriver(Driver):
    """QEMU's copy-on-write format, version 1."""

    name = "qcow"
    Options = BlockdevOptionsQcow
    CreateOptions = BlockdevCreateOptionsQcow
    supports_backing = True
    supports_compressed_writes = True
    strong_options = ("encrypt.",)

    image: QcowImage
    file: Edge

    @classmethod
    def probe(cls, head: bytes, filename: str) -> int:
        return 100 if head[:8] == hdr.MAGIC + hdr.VERSION.to_bytes(4, "big") else 0

    # -- control plane ---------------------------------------------------------------------------------------

    def open(self, opening: Opening) -> None:
        options: BlockdevOptionsQcow = opening.options
        file = opening.open_child("file", Role.IMAGE)
        assert file is not None
        self.file = file
        header = hdr.parse(file)
        if options.encrypt is not None:
            raise GenericError(
                f"No encryption in image header, but options specified format '{options.encrypt.format}'"
            )
        self.node.auto_backing_file = os.fsdecode(header.backing_file)
        self._use(header)

    def _use(self, header: Header) -> None:
        self.image = QcowImage(self.file, header, lambda: self.node.backing)
        self.length = header.length // hdr.SECTOR * hdr.SECTOR

    def refresh_limits(self) -> None:
        self.limits = Limits(request_alignment=hdr.SECTOR)

    def reopen_prepare(self, state: ReopenState) -> None:
        """Nothing of an open image depends on how it was opened."""

    def reopen_commit_post(self, state: ReopenState) -> None:
        if state.read_only:
            return
        # While it was read-only, somebody else may have written the image.
        child = self.file.child.driver
        try:
            if isinstance(child, HostFileDriver):
                child.refresh_length()
            self._use(hdr.parse(self.file))
        except (GenericError, OSError):
            self.node.ejected = True

    @classmethod
    def create(cls, options: BlockdevCreateOptionsQcow, context: CreateContext) -> None:
        if options.size == 0:
            raise GenericError("Image size is too small, cannot be zero length")
        if options.encrypt is not None:
            if options.encrypt.format != "qcow":
                raise GenericError("Unsupported encryption format")
            raise GenericError("Encrypted qcow images are not supported")
        header = _header_for(options)
        wire = options.file if isinstance(options.file, str) else to_wire(options.file)
        file = context.open(wire, Perm.CONSISTENT_READ | Perm.WRITE | Perm.RESIZE, Perm.ALL)
        try:
            child = BackendChild(file)
            child.write(0, memoryview(header.encode()))
            _write_zeros(child, header.l1_offset, -(-header.l1_entries * 8 // hdr.SECTOR) * hdr.SECTOR)
            child.flush()
        finally:
            context.close(file)

    # -- information -----------------------------------------------------------------------------------------

    def info(self) -> DriverInfo | None:
        return DriverInfo(cluster_size=self.image.cluster_size, is_dirty=False)

    def has_zero_init(self) -> bool:
        return self.node.backing is None

    # -- data plane ------------------------------------------------------------------------------------------

    def read(self, offset: int, buffer: memoryview) -> None:
        self.image.read(offset, buffer)

    def write(self, offset: int, data: memoryview, flags: int = 0) -> None:
        if flags & WriteFlag.COMPRESSED:
            self.image.write_compressed(offset, data)
        else:
            self.image.write(offset, data)

    def block_status(self, offset: int, length: int, want_zero: bool = True) -> Extent:
        entry, run = self.image.find(offset, length)
        if not entry:
            return Extent(run, 0)
        if entry & COMPRESSED:
            return Extent(run, _PACKED)
        return Extent(run, _DATA_HERE, self.file.child, entry)

    def make_empty(self) -> None:
        """Drop all data of this layer, so that the backing file shows everywhere. Errors: OSError."""
        self.image.make_empty()


def _write_zeros(child: BackendChild, offset: int, size: int) -> None:
    if size <= _ZERO_CHUNK:
        child.write(offset, memoryview(bytes(size)))
        return
    # Tables of big disks are long; where the file can, they take no space.
    child.write_zeroes(offset, size)
    if child.length < offset + size:
        child.truncate(offset + size)


def _header_for(options: BlockdevCreateOptionsQcow) -> Header:
    """Errors: GenericError."""
    header = Header(options.size, cluster_bits=12, l2_bits=9)
    if options.backing_file is not None:
        # Clusters of a sector: writes never have to copy from the backing file.
        header.cluster_bits, header.l2_bits = 9, 12
        # vvfat's own images, on top of what is no file, say so by this name.
        if options.backing_file != "fat:":
            header.backing_file = os.fsencode(options.backing_file)
            header.backing_offset = hdr.SIZE
        if len(header.backing_file) > hdr.MAX_NAME:
            raise GenericError("Backing file name too long")
    header.check_tables()
    header.l1_offset = len(header.encode())
    return header
