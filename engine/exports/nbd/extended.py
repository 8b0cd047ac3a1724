"""The transmission with extended headers: lengths of 64 bits, and a form of its own for requests and answers."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from engine.exports.nbd.transmission import Invalid, Transmission
from engine.nbd import protocol as nbd

if TYPE_CHECKING:
    import socket

    from engine.exports.nbd.contexts import Context
    from engine.exports.nbd.handshake import Chosen

_HEAD = nbd.EXT_CHUNK.size
_HOLE = struct.Struct(">QI")
_ERROR = struct.Struct(">IH")
_STATUS = struct.Struct(">II")


class ExtendedTransmission(Transmission):
    """Serves a client that has agreed on extended headers. Every answer is a chunk."""

    _head = nbd.EXT_REQUEST.size
    _magic = nbd.EXT_REQUEST_MAGIC
    _unpack = staticmethod(nbd.EXT_REQUEST.unpack_from)
    _carries = nbd.FLAG_PAYLOAD_LEN

    def __init__(self, sock: socket.socket, chosen: Chosen) -> None:
        super().__init__(sock, chosen)
        self._data_size = _HEAD + 8

    def _chunk(self, done: int, kind: int, cookie: int, asked: int, length: int) -> memoryview:
        """The place for *length* bytes of payload, behind the chunk's head."""
        place = self._reserve(_HEAD + length)
        nbd.EXT_CHUNK.pack_into(place, 0, nbd.EXT_CHUNK_MAGIC, done, kind, cookie, asked, length)
        return place[_HEAD:]

    def _done(self, cookie: int) -> None:
        self._chunk(nbd.CHUNK_DONE, nbd.CHUNK_NONE, cookie, self._asked, 0)

    def _nothing(self, cookie: int) -> None:
        self._done(cookie)

    def _error(self, cookie: int, number: int, message: str) -> None:
        text = message.encode()
        place = self._chunk(nbd.CHUNK_DONE, nbd.CHUNK_ERROR, cookie, self._asked, _ERROR.size + len(text))
        _ERROR.pack_into(place, 0, number, len(text))
        place[_ERROR.size :] = text

    def _data_head(self, place: memoryview, done: int, cookie: int, asked: int, offset: int, length: int) -> None:
        nbd.EXT_CHUNK.pack_into(place, 0, nbd.EXT_CHUNK_MAGIC, done, nbd.CHUNK_OFFSET_DATA, cookie, asked, length + 8)
        place[_HEAD : _HEAD + 8] = offset.to_bytes(8)

    def _hole(self, done: int, cookie: int, asked: int, offset: int, length: int) -> None:
        _HOLE.pack_into(self._chunk(done, nbd.CHUNK_OFFSET_HOLE, cookie, asked, _HOLE.size), 0, offset, length)

    def _status(self, done: int, cookie: int, context: int, extents: list[int]) -> None:
        size = _STATUS.size + 8 * len(extents)
        place = self._chunk(done, nbd.CHUNK_BLOCK_STATUS_EXT, cookie, self._asked, size)
        _STATUS.pack_into(place, 0, context, len(extents) // 2)
        struct.pack_into(f">{len(extents)}Q", place, _STATUS.size, *extents)

    def _filter(self, kind: int, payload: memoryview) -> tuple[int, list[Context]]:
        if kind != nbd.CMD_BLOCK_STATUS:
            return super()._filter(kind, payload)
        if not 12 <= len(payload) <= 8 + 4 * len(self._contexts) or len(payload) % 4:
            raise Invalid("the payload has the wrong length")
        wanted = struct.unpack(f">{len(payload) // 4 - 2}I", payload[8:])
        by_id = {context.id: context for context in self._contexts}
        if len(set(wanted)) < len(wanted) or not by_id.keys() >= set(wanted):
            raise Invalid("the payload does not name contexts that were negotiated")
        found = sorted(wanted)
        return int.from_bytes(payload[:8]), [by_id[each] for each in found]
