"""What a client gets: replies, built in place in one buffer, data included, and sent together."""

from __future__ import annotations

import errno
import mmap
import socket
import struct
from typing import Final

from engine.nbd import protocol as nbd

OUT: Final = 1 << 20
"""Bytes of replies collected before they are sent. A longer reply gets a buffer of its own."""
ROOM: Final = 1 << 10
"""Bytes of the out buffer that any reply without data fits into."""
KEPT: Final = 4 << 20
"""Largest buffer kept for the next request."""
SIMPLE_SIZE: Final = nbd.SIMPLE.size
_TO_NBD = {
    0: 0,
    errno.EPERM: nbd.EPERM,
    errno.EROFS: nbd.EPERM,
    errno.EIO: nbd.EIO,
    errno.ENOMEM: nbd.ENOMEM,
    errno.ENOSPC: nbd.ENOSPC,
    errno.EFBIG: nbd.ENOSPC,
    errno.EDQUOT: nbd.ENOSPC,
    errno.EOVERFLOW: nbd.EOVERFLOW,
    errno.ENOTSUP: nbd.ENOTSUP,
    errno.ESHUTDOWN: nbd.ESHUTDOWN,
}


def memory(size: int) -> memoryview:
    """A buffer that goes back to the system when it is dropped: what malloc() has of a thread, it keeps."""
    return memoryview(mmap.mmap(-1, size))


class Replies:
    """The replies to one client, in the form of simple and structured ones. Errors: OSError (the socket's)."""

    def __init__(self, sock: socket.socket, structured: bool) -> None:
        self._sock = sock
        self._structured = structured
        self._data_size = nbd.DATA_CHUNK.size if structured else SIMPLE_SIZE
        """Bytes of an answer to a read before the data."""
        self._asked = 0
        """Offset of the request that is answered."""
        self._out = memory(OUT)
        self._end = 0
        """How much of the out buffer waits to be sent."""

    def _flush_out(self) -> None:
        if self._end:
            self._sock.sendall(self._out[: self._end])
            self._end = 0
            if len(self._out) > KEPT:
                self._out = memory(OUT)

    def _reserve(self, length: int) -> memoryview:
        """*length* more bytes of the out buffer; it grows as needed."""
        at = self._end
        self._end = end = at + length
        if end > len(self._out):
            larger = memory(max(end + ROOM, 2 * len(self._out)))
            larger[:at] = self._out[:at]
            self._out = larger
        return self._out[at:end]

    def _done(self, cookie: int) -> None:
        nbd.SIMPLE.pack_into(self._reserve(SIMPLE_SIZE), 0, nbd.SIMPLE_MAGIC, 0, cookie)

    def _nothing(self, cookie: int) -> None:
        """The answer to a read of no bytes."""
        nbd.CHUNK.pack_into(
            *(self._reserve(nbd.CHUNK.size), 0, nbd.CHUNK_MAGIC, nbd.CHUNK_DONE, nbd.CHUNK_NONE, cookie, 0)
        )

    def _data_head(self, place: memoryview, done: int, cookie: int, asked: int, offset: int, length: int) -> None:
        """Say at *place* that *length* bytes of data follow, which lie at *offset*; the read began at *asked*."""
        nbd.DATA_CHUNK.pack_into(place, 0, nbd.CHUNK_MAGIC, done, nbd.CHUNK_OFFSET_DATA, cookie, length + 8, offset)

    def _hole(self, done: int, cookie: int, asked: int, offset: int, length: int) -> None:
        place = self._reserve(nbd.HOLE_CHUNK.size)
        nbd.HOLE_CHUNK.pack_into(place, 0, nbd.CHUNK_MAGIC, done, nbd.CHUNK_OFFSET_HOLE, cookie, 12, offset, length)

    def _status(self, done: int, cookie: int, context: int, extents: list[int]) -> None:
        """An answer to BLOCK_STATUS. extents: length, flags, length, flags, ..."""
        place = self._reserve(nbd.STATUS_CHUNK.size + 4 * len(extents))
        nbd.STATUS_CHUNK.pack_into(
            place, 0, nbd.CHUNK_MAGIC, done, nbd.CHUNK_BLOCK_STATUS, cookie, 4 + 4 * len(extents), context
        )
        struct.pack_into(f">{len(extents)}I", place, nbd.STATUS_CHUNK.size, *extents)

    def _fail(self, cookie: int, exc: OSError, message: str) -> None:
        self._error(cookie, _TO_NBD.get(exc.errno or errno.EIO, nbd.EINVAL), message)

    def _error(self, cookie: int, number: int, message: str) -> None:
        if not self._structured:
            nbd.SIMPLE.pack_into(self._reserve(SIMPLE_SIZE), 0, nbd.SIMPLE_MAGIC, number, cookie)
            return
        text = message.encode()
        size = nbd.ERROR_CHUNK.size
        place = self._reserve(size + len(text))
        nbd.ERROR_CHUNK.pack_into(
            *(place, 0, nbd.CHUNK_MAGIC, nbd.CHUNK_DONE, nbd.CHUNK_ERROR, cookie, 6 + len(text), number, len(text))
        )
        place[size:] = text
