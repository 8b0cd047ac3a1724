"""Reading guest data, and telling what is where."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine.drivers.format.qcow2.compress import decompress
from engine.drivers.format.qcow2.mapping import long_run, map_range
from engine.drivers.format.qcow2.storage import io_error, read_bytes
from engine.drivers.format.qcow2.tables import (
    COMPRESSED_DATA,
    MAX_HOST_OFFSET,
    NORMAL,
    UNALLOCATED,
    UNALLOCATED_OWNED,
    ZERO_ALLOCATED,
    ZERO_PLAIN,
    compressed_location,
)
from engine.graph.driver import Status

if TYPE_CHECKING:
    from engine.drivers.format.qcow2.image import Image

_ZEROS: Final = memoryview(bytes(1 << 16))
_DATA, _ZERO, _VALID, _RECURSE = int(Status.DATA), int(Status.ZERO), int(Status.OFFSET_VALID), int(Status.RECURSE)
_COMPRESSED: Final = int(Status.COMPRESSED)


def fill_zero(buffer: memoryview) -> None:
    """Make all of *buffer* zero."""
    size = len(buffer)
    step = len(_ZEROS)
    for at in range(0, size, step):
        part = min(step, size - at)
        buffer[at : at + part] = _ZEROS[:part]


def read(image: Image, offset: int, buffer: memoryview) -> None:
    """Fill *buffer* from guest *offset*; the range lies within the image. Errors: OSError."""
    traffic = image.traffic
    with image.lock:
        image.check_alive()
        runs = map_range(image, offset, len(buffer))
        epoch = traffic.enter() if image.writable else -1
    try:
        if len(runs) == 1:
            kind, _, host = runs[0]
            if kind == NORMAL:
                image.announce("read_aio")
                image.data.read(host, buffer)
            else:
                _read_run(image, kind, offset, host, buffer)
            return
        at = 0
        for kind, length, host in runs:
            _read_run(image, kind, offset + at, host, buffer[at : at + length])
            at += length
    finally:
        if epoch >= 0:
            traffic.leave(epoch)


def _read_run(image: Image, kind: int, offset: int, host: int, buffer: memoryview) -> None:
    if kind == NORMAL:
        image.announce("read_aio")
        image.data.read(host, buffer)
    elif kind in (ZERO_PLAIN, ZERO_ALLOCATED):
        fill_zero(buffer)
    elif kind in (UNALLOCATED, UNALLOCATED_OWNED):
        backing = image.backing()
        if backing is None:
            fill_zero(buffer)
        else:
            image.announce("read_backing_aio")
            backing.read(offset, buffer)
    elif kind == COMPRESSED_DATA:
        inside = offset & image.cluster_mask
        buffer[:] = memoryview(read_compressed(image, host))[inside : inside + len(buffer)]


def read_compressed(image: Image, entry: int) -> bytes:
    """The cluster that compressed L2 entry *entry* describes. The caller has entered the traffic. Errors: OSError
    EIO.
    """
    cache = image.compressed
    found = cache.get(entry)
    if found is None:
        version = cache.version
        offset, size = compressed_location(entry, image.cluster_bits)
        if offset + size > MAX_HOST_OFFSET:
            raise io_error()
        image.announce("read_compressed")
        data = read_bytes(image.file, offset, size)
        found = decompress(data, image.cluster_size, cache.compression_type)
        cache.put(entry, found, version)
    return found


def read_for_copy(image: Image, offset: int, buffer: memoryview) -> None:
    """As read(), but the range may reach past the image's end, where it reads as zeros."""
    inside = max(min(len(buffer), image.size - offset), 0)
    if inside:
        image.announce("cow_read")
        read(image, offset, buffer[:inside])
    fill_zero(buffer[inside:])


def block_map(image: Image, offset: int, length: int) -> list[tuple[int, int, int]]:
    """All of a range as block_status() tells it. Errors: OSError."""
    with image.lock:
        image.check_alive()
        runs = map_range(image, offset, length)
    data = _DATA | _VALID
    if any(kind == NORMAL for kind, _, _ in runs) and image.sparse_data():
        data |= _RECURSE
    flags = {
        NORMAL: data,
        ZERO_ALLOCATED: _ZERO | _VALID,
        ZERO_PLAIN: _ZERO,
        COMPRESSED_DATA: _DATA | _COMPRESSED,
        UNALLOCATED_OWNED: _VALID,
    }
    return [(run, flags.get(kind, 0), host if kind <= UNALLOCATED_OWNED else 0) for kind, run, host in runs]


def block_status(image: Image, offset: int, length: int) -> tuple[int, int, int]:
    """(length, Status bits, host offset in the data child): one run of this layer, as long as it goes on. Errors:
    OSError.
    """
    with image.lock:
        image.check_alive()
        kind, run, host = long_run(image, offset, length)
    if kind == NORMAL:
        recurse = _RECURSE if image.sparse_data() else 0
        return run, _DATA | _VALID | recurse, host
    if kind == ZERO_ALLOCATED:
        return run, _ZERO | _VALID, host
    if kind == ZERO_PLAIN:
        return run, _ZERO, 0
    if kind == COMPRESSED_DATA:
        return run, _DATA | _COMPRESSED, 0
    if kind == UNALLOCATED_OWNED:
        return run, _VALID, host
    return run, 0, 0
