"""Putting the bitmaps extension into the header, changing it and taking it out, without a moment at which a power cut
leaves a header that is neither the old nor the new one.

The autoclear bit says whether the extension counts, and lies in the header's first sector, which is written as a
whole. The extension and the backing file's name may lie in others. So the bit is cleared first, unless the change is
within one sector; then the chain of extensions is changed at its end in steps of which each is one write inside a
sector that changes the meaning (the rest of a step goes to where nothing is read); then the bit is set. A crash
between leaves an image without bitmaps, whose clusters have leaked. Headers laid out in a way that does not allow
these steps are written anew as a whole, as QEMU does always.

The callers hold the image's locks. Errors: OSError.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, NamedTuple

from engine.drivers.format.qcow2 import header as hdr
from engine.drivers.format.qcow2.header import Autoclear, BitmapsExtension, ExtensionType
from engine.drivers.format.qcow2.storage import error, read_bytes, round_up

if TYPE_CHECKING:
    from engine.drivers.format.qcow2.image import Image

SECTOR = 512
_HEAD = struct.Struct(">II")
_DATA_SIZE = 24
_SIZE = _HEAD.size + _DATA_SIZE
_BACKING_FIELDS = 8
"""Offset of the backing file name's offset (8 bytes) and size (4) in the header."""


class _Layout(NamedTuple):
    """Where things are: the extension (0: nowhere), the end marker (0: none), the backing file name."""

    extension: int
    end: int
    name: int
    name_size: int


def set_extension(image: Image, found: BitmapsExtension | None) -> None:
    """Make *found* the header's bitmaps extension, None for none. All it refers to is on disk already.

    After an error either may be on disk, or none.
    """
    header = image.header
    old, header.bitmaps, header.stale_bitmaps = header.bitmaps, found, b""
    try:
        _change(image, found, in_place=old is not None)
    except OSError:
        header.bitmaps = old if header.autoclear & Autoclear.BITMAPS else None
        raise
    finally:
        image.overlap_areas_changed()


def _change(image: Image, found: BitmapsExtension | None, *, in_place: bool) -> None:
    layout = _read(image)
    if found is not None and layout.extension and in_place:
        at = layout.extension + _HEAD.size
        if at // SECTOR == (at + _DATA_SIZE - 1) // SECTOR:
            image.file.write(at, memoryview(hdr.encode_bitmaps(found)))
            image.sync()
            return
    _set_bit(image, False)
    if found is None:
        if layout.extension and layout.extension + _SIZE == layout.end:
            _write(image, layout.extension, _HEAD.pack(ExtensionType.END, 0))
        elif layout.extension:
            image.rewrite_header()
        return
    if layout.extension:
        _write(image, layout.extension + _HEAD.size, hdr.encode_bitmaps(found))
    elif not _append(image, layout, hdr.encode_bitmaps(found)):
        image.rewrite_header()
    _set_bit(image, True)


def _set_bit(image: Image, value: bool) -> None:
    header = image.header
    bit = int(Autoclear.BITMAPS)
    if bool(header.autoclear & bit) != value:
        header.autoclear ^= bit
        image.write_header_field(*hdr.encode_features(header))
        image.sync()


def _write(image: Image, offset: int, data: bytes) -> None:
    image.file.write(offset, memoryview(data))
    image.sync()


def _read(image: Image) -> _Layout:
    area = bytes(read_bytes(image.file, 0, image.cluster_size))
    name, name_size = struct.unpack_from(">QI", area, _BACKING_FIELDS)
    at = hdr.V2_HEADER_SIZE if image.header.version == 2 else int.from_bytes(area[100:104], "big")
    stop = name or image.cluster_size
    extension = 0
    while at + _HEAD.size <= stop:
        kind, size = _HEAD.unpack_from(area, at)
        if kind == ExtensionType.END:
            return _Layout(extension, at, name, name_size)
        if kind == ExtensionType.BITMAPS:
            extension = at if size == _DATA_SIZE else 0
        at += _HEAD.size + round_up(size, 8)
    return _Layout(extension, 0, name, name_size)


def _append(image: Image, layout: _Layout, data: bytes) -> bool:
    """Put the extension in the place of the end marker; False where that can't be done in safe steps."""
    at = layout.end
    if not at or at % 8:
        return False
    after = at + _SIZE + _HEAD.size
    if layout.name:
        name = bytes(read_bytes(image.file, layout.name, layout.name_size))
        place = max(after, layout.name + layout.name_size)
        if place + len(name) > image.cluster_size:
            return False
        if layout.name < after:
            _write(image, place, name)
            _write(image, _BACKING_FIELDS, struct.pack(">Q", place))
    elif after > image.cluster_size:
        raise error(errno.ENOSPC)
    _write(image, at + _HEAD.size, data + _HEAD.pack(ExtensionType.END, 0))
    _write(image, at, _HEAD.pack(ExtensionType.BITMAPS, _DATA_SIZE))
    return True
