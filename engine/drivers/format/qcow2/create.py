"""Making a new qcow2 image: a minimal one is written, then grown by the ordinary code. Texts are QEMU's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from engine.drivers.format.qcow2 import compress, resize
from engine.drivers.format.qcow2 import header as hdr
from engine.drivers.format.qcow2.header import Autoclear, Compatible, Header, Incompatible
from engine.drivers.format.qcow2.image import Image
from engine.drivers.format.qcow2.refblock import load_block
from engine.drivers.format.qcow2.settings import from_options
from engine.errors import GenericError, os_error_text
from engine.graph.driver import CreateContext, Extent, Prealloc
from engine.graph.permissions import Perm
from engine.graph.requests import MAX_LENGTH
from engine.qapi import to_wire

if TYPE_CHECKING:
    from engine.drivers.format.qcow2.options import BlockdevCreateOptionsQcow2
    from engine.drivers.format.qcow2.storage import Child
    from engine.graph.backend import BlockBackend

DEFAULT_CLUSTER_SIZE: Final = 65536
MIN_EXTENDED_CLUSTER: Final = hdr.SUBCLUSTERS * hdr.MIN_SUBCLUSTER_SIZE
_COMPAT: Final = "with compatibility level 1.1 and above (use version=v3 or greater)"
_R = TypeVar("_R")


class BackendChild:
    """A BlockBackend as the child of an image under construction; may write past the end. Drains wait for each call."""

    def __init__(self, backend: BlockBackend) -> None:
        self._backend = backend

    def _call(self, function: Callable[[], _R]) -> _R:
        with self._backend.door:
            return function()

    @property
    def length(self) -> int:
        return self._backend.node.length

    def read(self, offset: int, buffer: memoryview) -> None:
        self._call(lambda: self._backend.node.read(offset, buffer))

    def write(self, offset: int, data: memoryview, flags: int = 0) -> None:
        self._call(lambda: self._backend.node.write(offset, data, flags))

    def write_zeroes(self, offset: int, length: int, flags: int = 0) -> None:
        self._call(lambda: self._backend.node.write_zeroes(offset, length, flags))

    def discard(self, offset: int, length: int) -> None:
        self._call(lambda: self._backend.node.discard(offset, length))

    def flush(self) -> None:
        self._call(lambda: self._backend.node.flush())

    def block_status(self, offset: int, length: int, want_zero: bool = True) -> Extent:
        return self._call(lambda: self._backend.node.block_status(offset, length, want_zero))

    def truncate(self, length: int, *, exact: bool = True, prealloc: Prealloc = Prealloc.OFF) -> None:
        self._call(lambda: self._backend.node.truncate(length, exact=exact, prealloc=prealloc))


def header_for(options: BlockdevCreateOptionsQcow2) -> Header:
    """Check the options against each other and make the header of an image of size 0. Errors: GenericError."""
    version = 2 if options.version == "v2" else 3
    header = Header(version=version)
    if options.size < 0 or options.size % 512:
        raise GenericError("Image size must be a multiple of 512 bytes")
    if options.encrypt is not None:
        raise GenericError("Encrypted qcow2 images are not supported")
    cluster_size = DEFAULT_CLUSTER_SIZE if options.cluster_size is None else options.cluster_size
    header.cluster_bits = cluster_size.bit_length() - 1
    in_range = hdr.MIN_CLUSTER_BITS <= header.cluster_bits <= hdr.MAX_CLUSTER_BITS
    if not in_range or cluster_size & (cluster_size - 1):
        raise GenericError("Cluster size must be a power of two between 512 and 2048k")
    if options.extended_l2:
        if version < 3:
            raise GenericError(f"Extended L2 entries are only supported {_COMPAT}")
        if cluster_size < MIN_EXTENDED_CLUSTER:
            raise GenericError(
                f"Extended L2 entries are only supported with cluster sizes of at least {MIN_EXTENDED_CLUSTER} bytes"
            )
        header.incompatible |= Incompatible.EXTENDED_L2
    preallocates = options.preallocation is not None and options.preallocation != "off"
    if preallocates and options.backing_file and not options.extended_l2:
        raise GenericError("Backing file and preallocation can only be used at the same time if extended_l2 is on")
    if options.backing_fmt and not options.backing_file:
        raise GenericError("Backing format cannot be used without backing file")
    if options.lazy_refcounts:
        if version < 3:
            raise GenericError(f"Lazy refcounts only supported {_COMPAT}")
        header.compatible |= Compatible.LAZY_REFCOUNTS
    bits = 16 if options.refcount_bits is None else options.refcount_bits
    if not 1 <= bits <= 64 or bits & (bits - 1):
        raise GenericError("Refcount width must be a power of two and may not exceed 64 bits")
    if version < 3 and bits != 16:
        raise GenericError(
            "Different refcount widths than 16 bits require compatibility level 1.1 or above "
            "(use version=v3 or greater)"
        )
    header.refcount_order = bits.bit_length() - 1
    _data_file_options(options, header)
    if options.compression_type is not None and options.compression_type != "zlib":
        if version < 3:
            raise GenericError(f"Non-zlib compression type is only supported {_COMPAT}")
        compress.require(hdr.ZSTD)
        header.compression_type = hdr.ZSTD
        header.incompatible |= Incompatible.COMPRESSION
    return header


def _data_file_options(options: BlockdevCreateOptionsQcow2, header: Header) -> None:
    if options.data_file_raw and options.data_file is None:
        raise GenericError("data-file-raw requires data-file")
    if options.data_file_raw and options.backing_file:
        raise GenericError("Backing file and data-file-raw cannot be used at the same time")
    if options.data_file is not None:
        if header.version < 3:
            raise GenericError(f"External data files are only supported {_COMPAT}")
        header.incompatible |= Incompatible.DATA_FILE
        if options.data_file_raw:
            header.autoclear |= Autoclear.RAW_DATA_FILE


def create(options: BlockdevCreateOptionsQcow2, context: CreateContext) -> None:
    """blockdev-create for qcow2. Errors: GenericError, OSError."""
    file = _open(context, options.file)
    try:
        header = header_for(options)
        if options.data_file is None:
            build(BackendChild(file), None, header, options)
            return
        data = _open(context, options.data_file)
        try:
            if data.node is file.node:
                raise GenericError(
                    f"Permission conflict on node '{data.node.name}': permissions 'resize' are both required by the "
                    "new image (uses it as 'file' child) and unshared by the new image (uses it as 'data-file' child)."
                )
            header.data_file = data.node.filename
            build(BackendChild(file), BackendChild(data), header, options)
        finally:
            context.close(data)
    finally:
        context.close(file)


def _open(context: CreateContext, reference: Any) -> BlockBackend:
    wire = reference if isinstance(reference, str) else to_wire(reference)
    return context.open(wire, Perm.CONSISTENT_READ | Perm.WRITE | Perm.RESIZE, Perm.ALL)


def build(file: Child, data_file: Child | None, header: Header, options: BlockdevCreateOptionsQcow2) -> None:
    """Write an empty image into *file* and give it its size, preallocation and backing file. Errors: GenericError,
    OSError.
    """
    write_skeleton(file, header)
    image = Image(file, header, from_options(None, header, False), data_file=data_file, writable=True)
    try:
        image.settings = _without_lazy_refcounts(image)
        prealloc = Prealloc(str(options.preallocation or "off"))
        try:
            _check_size(options.size)
            resize.truncate(image, options.size, prealloc=prealloc)
        except GenericError as exc:
            raise GenericError(f"Could not resize image: {exc.desc}") from exc
        except OSError as exc:
            raise GenericError(f"Could not resize image: {os_error_text(exc)}") from exc
        image.ordering.write_back()
        if options.backing_file:
            header.backing_file = options.backing_file
            header.backing_format = options.backing_fmt or ""
        try:
            image.rewrite_header()
        except OSError as exc:
            name, fmt = options.backing_file or "", options.backing_fmt or ""
            raise GenericError(
                f"Could not assign backing file '{name}' with format '{fmt}': {os_error_text(exc)}"
            ) from exc
    finally:
        image.close()


def _check_size(size: int) -> None:
    if size >= 1 << 63:
        raise GenericError("Image size cannot be negative")
    if size > MAX_LENGTH:
        raise GenericError(f"offset({size}) exceeds maximum({MAX_LENGTH})")


def _without_lazy_refcounts(image: Image) -> Any:
    from dataclasses import replace

    return replace(image.settings, lazy_refcounts=False, clean_interval=0)


def write_skeleton(file: Child, header: Header) -> None:
    """Header, refcount table and first refcount block of an image of size 0. The header comes last. Errors: OSError."""
    size = header.cluster_size
    header.reftable_offset, header.reftable_clusters = size, 1
    block = load_block(2 * size, bytes(size), header.refcount_order)
    block.fill(0, 3, 1)
    table = (2 * size).to_bytes(8, "big")
    file.write(size, memoryview(table + bytes(size - 8) + block.to_disk()))
    head = hdr.encode(header)
    file.write(0, memoryview(head + bytes(size - len(head))))
    file.flush()
