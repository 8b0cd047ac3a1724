"""cloop: compressed loopback images, read-only. Error texts are QEMU's."""

from __future__ import annotations

import sys
import threading
import zlib
from array import array
from typing import Final

from engine.drivers.format.qcow2.storage import io_error, read_bytes
from engine.drivers.format.tablepages import ENTRY, TablePages
from engine.errors import GenericError
from engine.graph.driver import Driver, Limits, Opening, register
from engine.graph.edge import Edge
from engine.graph.options import BlockdevOptionsGenericFormat
from engine.graph.permissions import Role

_PREAMBLE: Final = b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n"
_SECTOR: Final = 512
_BLOCK_SIZE_AT, _TABLE_AT = 128, 136
_MAX_BLOCK: Final = 64 << 20
_MAX_BLOCKS: Final = 0xFFFFFFFF // 8
_MAX_TABLE: Final = 512 << 20
_STEP: Final = 1 << 20


@register
class CloopDriver(Driver):
    """Blocks of one size, each compressed by zlib, and a table of where they begin."""

    name = "cloop"
    Options = BlockdevOptionsGenericFormat

    file: Edge

    @classmethod
    def probe(cls, head: bytes, filename: str) -> int:
        size = min(len(head), len(_PREAMBLE))
        return 2 if head[:size] == _PREAMBLE[:size] else 0

    def open(self, opening: Opening) -> None:
        opening.fall_back_to_read_only("Image is read-only")
        file = opening.open_child("file", Role.IMAGE)
        assert file is not None
        self.file = file
        head = read_bytes(file, _BLOCK_SIZE_AT, 8)
        size, blocks = int.from_bytes(head[:4], "big"), int.from_bytes(head[4:], "big")
        if size % _SECTOR:
            raise GenericError(f"block_size {size} must be a multiple of 512")
        if size == 0:
            raise GenericError("block_size cannot be zero")
        if size > _MAX_BLOCK:
            raise GenericError(f"block_size {size} must be {_MAX_BLOCK >> 20} MB or less")
        if blocks > _MAX_BLOCKS:
            raise GenericError(f"n_blocks {blocks} must be {_MAX_BLOCKS} or less")
        if (blocks + 1) * ENTRY > _MAX_TABLE:
            raise GenericError("image requires too many offsets, try increasing block size")
        self._check_table(blocks + 1)
        self._table = TablePages(file, "big")
        self._block_size = size
        self._lock = threading.Lock()
        self._last: tuple[int, bytes] = (-1, b"")
        self.length = blocks * size

    def _check_table(self, entries: int) -> None:
        """Whether the offsets rise, and no compressed block is too long. Only a part of the table is in memory."""
        zeros = bytes(_STEP)
        last: int | None = None
        for at in range(0, entries * ENTRY, _STEP):
            raw = bytes(read_bytes(self.file, _TABLE_AT + at, min(_STEP, entries * ENTRY - at)))
            if not last and raw == zeros[: len(raw)]:
                # A hole in a file that is mostly table must not take long.
                last = 0
                continue
            part = array("Q", raw)
            if sys.byteorder == "little":
                part.byteswap()
            for index, offset in enumerate(part, at // ENTRY):
                if last is not None:
                    if offset < last:
                        raise GenericError(
                            f"offsets not monotonically increasing at index {index}, image file is corrupt"
                        )
                    if offset - last > 2 * _MAX_BLOCK:
                        raise GenericError(f"invalid compressed block size at index {index}, image file is corrupt")
                last = offset

    def refresh_limits(self) -> None:
        self.limits = Limits(request_alignment=_SECTOR)

    def read(self, offset: int, buffer: memoryview) -> None:
        at = 0
        while at < len(buffer):
            number, inside = divmod(offset + at, self._block_size)
            run = min(len(buffer) - at, self._block_size - inside)
            with self._lock:
                block = self._block(number)
            buffer[at : at + run] = memoryview(block)[inside : inside + run]
            at += run

    def _block(self, number: int) -> bytes:
        """The block of this number; the last one is kept. Errors: OSError EIO."""
        if self._last[0] == number:
            return self._last[1]
        start, end = (self._table.get(_TABLE_AT + (number + i) * ENTRY) for i in (0, 1))
        # The table was checked when the image was opened, but the file may have been changed since.
        if not 0 <= end - start <= 2 * _MAX_BLOCK:
            raise io_error()
        unpacker = zlib.decompressobj()
        try:
            block = unpacker.decompress(read_bytes(self.file, start, end - start), self._block_size)
            complete = unpacker.eof or not unpacker.decompress(unpacker.unconsumed_tail, 1)
        except zlib.error as exc:
            raise io_error() from exc
        if len(block) != self._block_size or not complete or not unpacker.eof:
            raise io_error()
        self._last = number, block
        return block
