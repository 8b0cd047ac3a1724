"""dmg: Apple's universal disk images, read-only. Chunks may be raw, zeros, or packed by zlib or bzip2.

Chunks packed in other ways (ADC, LZFSE) can't be read: EIO, as in a QEMU without the modules for them.
"""

from __future__ import annotations

import base64
import binascii
import bz2
import errno
import logging
import os
import struct
import threading
import zlib
from array import array
from bisect import bisect_right
from typing import Final

from engine.drivers.format.qcow2.storage import io_error, read_bytes, round_up
from engine.errors import GenericError, os_error_text
from engine.graph.driver import Driver, Limits, Opening, register
from engine.graph.edge import Edge
from engine.graph.options import BlockdevOptionsGenericFormat
from engine.graph.permissions import Role

log = logging.getLogger(__name__)

_SECTOR: Final = 512
_MAX_LIST: Final = 16 << 20
"""Longest property list, or resource data, in bytes."""
_MAX_PACKED: Final = 64 << 20
_MAX_SECTORS: Final = _MAX_PACKED // _SECTOR
_ZERO, _RAW, _IGNORE, _ZLIB, _BZIP2 = 0, 1, 2, 0x80000005, 0x80000006
_COMMENT, _LAST = 0x7FFFFFFE, 0xFFFFFFFF
_READABLE: Final = frozenset({_ZERO, _RAW, _IGNORE, _ZLIB, _BZIP2})
_CHUNK: Final = struct.Struct(">I4x4Q")
_CHUNKS_AT: Final = 204
_MIN_TABLE: Final = 244
_WORD: Final = (1 << 64) - 1


def _invalid() -> OSError:
    return OSError(errno.EINVAL, os.strerror(errno.EINVAL))


class _Chunks:
    """All chunks of an image. starts, counts: sectors of the disk; offsets, sizes: bytes in the file."""

    def __init__(self) -> None:
        self.kinds = array("I")
        self.starts = array("Q")
        self.counts = array("Q")
        self.offsets = array("Q")
        self.sizes = array("Q")

    def add_table(self, table: bytes, data_fork: int) -> None:
        """Take the chunks of a block table; data that are none are passed over. Errors: OSError EINVAL."""
        if table[:4] != b"mish" or len(table) < _MIN_TABLE:
            return
        first = int.from_bytes(table[8:16], "big")
        base = int.from_bytes(table[0x18:0x20], "big") + data_fork
        for at in range(_CHUNKS_AT, len(table) - _CHUNK.size + 1, _CHUNK.size):
            kind, start, count, offset, size = _CHUNK.unpack_from(table, at)
            if kind not in _READABLE:
                if kind not in (_COMMENT, _LAST):
                    log.warning("dmg: chunks of type %x can't be read, accessing them will result in I/O errors", kind)
                continue
            number = len(self.kinds)
            # Zeros take no memory, and may be many.
            if kind not in (_ZERO, _IGNORE) and count > _MAX_SECTORS:
                log.error("sector count %d for chunk %d is larger than max (%d)", count, number, _MAX_SECTORS)
                raise _invalid()
            if size > _MAX_PACKED:
                log.error("length %d for chunk %d is larger than max (%d)", size, number, _MAX_PACKED)
                raise _invalid()
            self.kinds.append(kind)
            self.starts.append((start + first) & _WORD)
            self.counts.append(count)
            self.offsets.append((offset + base) & _WORD)
            self.sizes.append(size)

    def find(self, sector: int) -> int:
        """The chunk that holds *sector*. Errors: OSError EIO if none does."""
        number = bisect_right(self.starts, sector) - 1
        if number < 0 or sector >= self.starts[number] + self.counts[number]:
            raise io_error()
        return number


@register
class DmgDriver(Driver):
    """UDIF images: a trailer, lists of chunks, and the chunks."""

    name = "dmg"
    Options = BlockdevOptionsGenericFormat

    file: Edge

    @classmethod
    def probe(cls, head: bytes, filename: str) -> int:
        return 2 if len(filename) > 4 and filename.endswith(".dmg") else 0

    def open(self, opening: Opening) -> None:
        opening.fall_back_to_read_only("Image is read-only")
        file = opening.open_child("file", Role.IMAGE)
        assert file is not None
        self.file = file
        self._chunks = _Chunks()
        self._lock = threading.Lock()
        self._last: tuple[int, bytes] = (-1, b"")
        trailer = self._find_trailer()
        data_fork = self._number(trailer + 0x18)
        if data_fork > trailer:
            raise _invalid()
        resources, resources_size = self._number(trailer + 0x28), self._number(trailer + 0x30)
        xml, xml_size = self._number(trailer + 0xD8), self._number(trailer + 0xE0)
        for start, size in ((resources, resources_size), (xml, xml_size)):
            if start >= trailer or size > trailer - start:
                raise _invalid()
        sectors = self._number(trailer + 0x1EC)
        if resources_size:
            self._read_resources(resources, resources_size, data_fork)
        elif xml_size:
            self._read_property_list(xml, xml_size, data_fork)
        else:
            raise _invalid()
        self.length = sectors * _SECTOR

    def _number(self, offset: int, size: int = 8) -> int:
        return int.from_bytes(read_bytes(self.file, offset, size), "big")

    def _find_trailer(self) -> int:
        """Where the trailer is: in the last sector, or across the last two of a file that ends inside one."""
        length = round_up(self.file.length, _SECTOR)
        if length < _SECTOR:
            raise GenericError("dmg file must be at least 512 bytes long")
        offset = max(length - 2 * _SECTOR + 1, 0)
        try:
            head = read_bytes(self.file, offset, min(length, _SECTOR + 3))
        except OSError as exc:
            raise GenericError(f"Failed while reading UDIF trailer: {os_error_text(exc)}") from exc
        found = head.find(b"koly")
        if found < 0:
            raise GenericError("Could not locate UDIF trailer in dmg file")
        return offset + found

    def _read_resources(self, start: int, size: int, data_fork: int) -> None:
        skip, count = self._number(start, 4), self._number(start + 8, 4)
        if skip > size or count == 0 or skip + count > size or count > _MAX_LIST:
            raise _invalid()
        at, end = start + skip, start + skip + count
        while at < end:
            length = self._number(at, 4)
            if length == 0 or length > end - at:
                raise _invalid()
            at += 4
            self._chunks.add_table(bytes(read_bytes(self.file, at, length)), data_fork)
            at += length

    def _read_property_list(self, start: int, size: int, data_fork: int) -> None:
        if size > _MAX_LIST:
            raise _invalid()
        text = bytes(read_bytes(self.file, start, size)).partition(b"\0")[0]
        end = 0
        while (begin := text.find(b"<data>", end)) >= 0:
            end = text.find(b"</data>", begin)
            if end < 0:
                raise _invalid()
            try:
                table = base64.b64decode(text[begin + 6 : end])
            except binascii.Error as exc:
                raise _invalid() from exc
            self._chunks.add_table(table, data_fork)

    def refresh_limits(self) -> None:
        self.limits = Limits(request_alignment=_SECTOR)

    # -- data plane ------------------------------------------------------------------------------------------

    def read(self, offset: int, buffer: memoryview) -> None:
        chunks = self._chunks
        at = 0
        while at < len(buffer):
            number = chunks.find((offset + at) // _SECTOR)
            inside = offset + at - chunks.starts[number] * _SECTOR
            run = min(len(buffer) - at, chunks.counts[number] * _SECTOR - inside)
            part = buffer[at : at + run]
            kind = chunks.kinds[number]
            if kind in (_ZERO, _IGNORE):
                part[:] = bytes(run)
            elif kind == _RAW:
                there = max(min(run, chunks.sizes[number] - inside), 0)
                self.file.read(chunks.offsets[number] + inside, part[:there])
                part[there:] = bytes(run - there)
            else:
                with self._lock:
                    content = self._unpacked(number)
                part[:] = memoryview(content)[inside : inside + run]
            at += run

    def _unpacked(self, number: int) -> bytes:
        """The content of a packed chunk; the last one is kept. Errors: OSError EIO."""
        if self._last[0] == number:
            return self._last[1]
        chunks = self._chunks
        packed = read_bytes(self.file, chunks.offsets[number], chunks.sizes[number])
        size = chunks.counts[number] * _SECTOR
        try:
            if chunks.kinds[number] == _ZLIB:
                unzip = zlib.decompressobj()
                content = unzip.decompress(packed, size)
                rest, ended = unzip.decompress(unzip.unconsumed_tail, 1), unzip.eof
            else:
                bunzip = bz2.BZ2Decompressor()
                content = bunzip.decompress(packed, size)
                rest = b"" if bunzip.eof else bunzip.decompress(b"", 1)
                ended = bunzip.eof
        except (zlib.error, OSError, ValueError, EOFError) as exc:
            raise io_error() from exc
        if len(content) != size or rest or not ended:
            raise io_error()
        self._last = number, content
        return content
