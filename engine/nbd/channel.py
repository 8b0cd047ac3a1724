"""One NBD connection in transmission, seen from the client. Any number of threads make requests at the same time.

There is no thread that receives: of those who wait for an answer, one reads replies, its own and the others', until
its own is there, and then leaves the reading to the next. A lone request so costs no change of threads.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from typing import Final

from engine.errors import os_error_text
from engine.nbd import protocol as nbd
from engine.nbd.negotiation import ExportInfo
from engine.nbd.stream import Stream

_ERRNO: Final = {
    nbd.EPERM: errno.EPERM,
    nbd.EIO: errno.EIO,
    nbd.ENOMEM: errno.ENOMEM,
    nbd.EINVAL: errno.EINVAL,
    nbd.ENOSPC: errno.ENOSPC,
    nbd.EOVERFLOW: errno.EOVERFLOW,
    nbd.ENOTSUP: errno.ENOTSUP,
    nbd.ESHUTDOWN: errno.ESHUTDOWN,
}
_ERROR_BIT: Final = 1 << 15
_MAX_CHUNK: Final = 64 << 20
"""Longest chunk, in bytes, that is no sign of a broken server."""
_SIMPLE_HEAD: Final = nbd.SIMPLE.size
_REST: Final = nbd.CHUNK.size - _SIMPLE_HEAD
_EXT_HEAD: Final = nbd.EXT_CHUNK.size
_RUN, _EXT_RUN = struct.Struct(">II"), struct.Struct(">QQ")


class ConnectionLost(Exception):
    """The connection is gone, and with it every answer that it owed. broken: the server broke the protocol."""

    def __init__(self, text: str, *, broken: bool = False) -> None:
        super().__init__(text)
        self.broken = broken


class _Protocol(Exception):
    """The server broke the protocol."""


def _lost(exc: OSError | ValueError) -> ConnectionLost:
    return ConnectionLost(os_error_text(exc) if isinstance(exc, OSError) else str(exc))


class _Request:
    """A request on its way. extents: (length, flags) of BLOCK_STATUS. missing: bytes of a read still to come."""

    __slots__ = ("kind", "offset", "into", "missing", "extents", "error", "done")

    def __init__(self, kind: int, offset: int, into: memoryview | None) -> None:
        self.kind = kind
        self.offset = offset
        self.into = into
        self.missing = len(into) if into is not None else 0
        self.extents: list[tuple[int, int]] = []
        self.error = 0
        self.done = False


class Channel:
    """Requests on a negotiated connection. What a request raises: OSError (the server's answer), ConnectionLost."""

    def __init__(self, stream: Stream, info: ExportInfo) -> None:
        self.info = info
        self._stream = stream
        if info.extended:
            self._pack, self._magic = nbd.EXT_REQUEST.pack, nbd.EXT_REQUEST_MAGIC
            self._read_reply = self._read_extended
        else:
            self._pack, self._magic = nbd.REQUEST.pack, nbd.REQUEST_MAGIC
            self._read_reply = self._read_compact
        self._carries = nbd.FLAG_PAYLOAD_LEN if info.extended else 0
        self._sending = threading.Lock()
        self._state = threading.Condition(threading.Lock())
        self._requests: dict[int, _Request] = {}
        self._cookie = 0
        self._reading = False
        self._lost: ConnectionLost | None = None

    @property
    def in_flight(self) -> int:
        """How many requests wait for their answers."""
        return len(self._requests)

    def read(self, offset: int, into: memoryview) -> None:
        """Fill *into*."""
        self._do(_Request(nbd.CMD_READ, offset, into), 0, len(into), None)

    def write(self, offset: int, data: memoryview, flags: int) -> None:
        """Write *data*."""
        self._do(_Request(nbd.CMD_WRITE, offset, None), flags | self._carries, len(data), data)

    def simple(self, kind: int, offset: int, length: int, flags: int = 0) -> None:
        """A request without data: flush, trim, zeros."""
        self._do(_Request(kind, offset, None), flags, length, None)

    def block_status(self, offset: int, length: int) -> tuple[int, int]:
        """(length, flags) of the first extent from *offset* on."""
        request = _Request(nbd.CMD_BLOCK_STATUS, offset, None)
        self._do(request, nbd.FLAG_REQ_ONE, length, None)
        if not request.extents:
            self._fail(ConnectionLost("the server told no extent", broken=True))
            raise self._lost  # type: ignore[misc]
        run, state = request.extents[0]
        return min(run, length), state

    # -- requests --------------------------------------------------------------------------------------------

    def _do(self, request: _Request, flags: int, length: int, data: memoryview | None) -> None:
        with self._state:
            if self._lost is not None:
                raise self._lost
            self._cookie = cookie = self._cookie + 1
            self._requests[cookie] = request
        head = self._pack(self._magic, flags, request.kind, cookie, request.offset, length)
        try:
            with self._sending:
                self._stream.send([head] if data is None else [head, data])
        except (OSError, ValueError) as exc:  # ValueError: closed meanwhile
            self._fail(_lost(exc))
        self._wait(request)
        if request.error:
            raise OSError(request.error, os.strerror(request.error))

    def _wait(self, request: _Request) -> None:
        state = self._state
        with state:
            while not request.done:
                if self._lost is not None:
                    raise self._lost
                if self._reading:
                    state.wait()
                    continue
                self._reading = True
                state.release()
                try:
                    self._read_until(request)
                finally:
                    state.acquire()
                    self._reading = False
                    state.notify_all()

    def _read_until(self, request: _Request) -> None:
        try:
            while not request.done:
                done = self._read_reply()
                if done is not None and done is not request:
                    with self._state:
                        self._state.notify_all()
        except _Protocol as exc:
            self._fail(ConnectionLost(str(exc), broken=True))
        except (OSError, ValueError) as exc:
            self._fail(_lost(exc))

    def _fail(self, lost: ConnectionLost) -> None:
        with self._state:
            if self._lost is None:
                self._lost = lost
            self._requests.clear()
            self._state.notify_all()
        self._stream.cut()

    # -- replies: in the thread that reads -------------------------------------------------------------------

    # Each reads one reply or chunk, and returns the request that it ends, if it ends one.

    def _read_compact(self) -> _Request | None:
        magic, word, cookie = nbd.SIMPLE.unpack(self._stream.take(_SIMPLE_HEAD))
        request = self._find(cookie)
        if magic == nbd.SIMPLE_MAGIC:
            self._simple_reply(request, word)
            done = True
        elif magic == nbd.CHUNK_MAGIC and self.info.structured:
            (length,) = struct.unpack(">I", self._stream.take(_REST))
            done = bool(word >> 16 & nbd.CHUNK_DONE)
            self._chunk(request, word & 0xFFFF, length, done)
        else:
            raise _Protocol(f"bad reply magic {magic:#x}")
        return self._end(cookie, request) if done else None

    def _read_extended(self) -> _Request | None:
        magic, flags, kind, cookie, offset, length = nbd.EXT_CHUNK.unpack(self._stream.take(_EXT_HEAD))
        if magic != nbd.EXT_CHUNK_MAGIC:
            raise _Protocol(f"bad reply magic {magic:#x}")
        request = self._find(cookie)
        if offset != request.offset:
            raise _Protocol("a reply with another request's offset")
        done = bool(flags & nbd.CHUNK_DONE)
        self._chunk(request, kind, length, done)
        return self._end(cookie, request) if done else None

    def _find(self, cookie: int) -> _Request:
        request = self._requests.get(cookie)
        if request is None:
            raise _Protocol("a reply to no request")
        return request

    def _end(self, cookie: int, request: _Request) -> _Request:
        if request.missing and not request.error:
            raise _Protocol("a read without all of its data")
        self._requests.pop(cookie, None)
        request.done = True
        return request

    def _simple_reply(self, request: _Request, code: int) -> None:
        if code:
            request.error = _ERRNO.get(code, errno.EINVAL)
        elif request.into is not None:
            if self.info.structured:
                raise _Protocol("simple reply when structured reply chunk was expected")
            self._stream.take_into(request.into)
            request.missing = 0

    def _chunk(self, request: _Request, kind: int, length: int, last: bool) -> None:
        if length > _MAX_CHUNK:
            raise _Protocol(f"a chunk of {length} bytes")
        if kind == nbd.CHUNK_OFFSET_DATA:
            self._data(request, length)
        elif kind == nbd.CHUNK_OFFSET_HOLE:
            self._hole(request, length)
        elif kind == nbd.CHUNK_BLOCK_STATUS:
            self._extents(request, length, 4, _RUN)
        elif kind == nbd.CHUNK_BLOCK_STATUS_EXT and self.info.extended:
            self._extents(request, length, 8, _EXT_RUN)
        elif kind & _ERROR_BIT:
            self._error(request, length)
        elif kind != nbd.CHUNK_NONE or length or not last:
            raise _Protocol(f"unexpected chunk of type {kind}")

    def _place(self, request: _Request, at: int, size: int) -> memoryview:
        """The part of the reader's buffer for *size* bytes that lie at *at*."""
        into = request.into
        start = at - request.offset
        if into is None or not size or start < 0 or start + size > len(into):
            raise _Protocol("data that was not asked for")
        request.missing = max(request.missing - size, 0)
        return into[start : start + size]

    def _data(self, request: _Request, length: int) -> None:
        if length <= 8:
            raise _Protocol("a chunk of data without any")
        at = int.from_bytes(self._stream.take(8), "big")
        self._stream.take_into(self._place(request, at, length - 8))

    def _hole(self, request: _Request, length: int) -> None:
        if length != 12:
            raise _Protocol("a hole of the wrong length")
        at, size = struct.unpack(">QI", self._stream.take(12))
        self._place(request, at, size)[:] = bytes(size)

    def _extents(self, request: _Request, length: int, head: int, layout: struct.Struct) -> None:
        """A block status of *length* bytes: *head* bytes, and extents of *layout* behind them."""
        number, odd = divmod(length - head, layout.size)
        if request.kind != nbd.CMD_BLOCK_STATUS or number < 1 or odd or request.extents:
            raise _Protocol("a block status that does not fit")
        if int.from_bytes(self._stream.take(4), "big") != self.info.context_id:
            raise _Protocol("a block status of another context")
        if head == 8 and int.from_bytes(self._stream.take(4), "big") not in (0, number):
            raise _Protocol("a block status that counts its extents wrong")
        run, state = layout.unpack(self._stream.take(layout.size))
        self._stream.skip(length - head - layout.size)
        if not run:
            raise _Protocol("an extent of no length")
        request.extents.append((run, state))

    def _error(self, request: _Request, length: int) -> None:
        if length < 6:
            raise _Protocol("an error without a number")
        code, size = struct.unpack(">IH", self._stream.take(6))
        if size > length - 6 or not code:
            raise _Protocol("an error that does not fit")
        self._stream.skip(length - 6)
        request.error = request.error or _ERRNO.get(code, errno.EINVAL)

    # -- ends ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Take leave of the server, and let go. No request is on its way, or each gets ConnectionLost."""
        head = self._pack(self._magic, 0, nbd.CMD_DISC, 0, 0, 0)
        if self._lost is None:
            try:
                self._stream.set_timeout(1.0)
                with self._sending:
                    self._stream.send([head])
            except (OSError, ValueError):
                pass  # the server has gone by itself
        self._fail(ConnectionLost("closed"))
        with self._state:
            while self._reading:
                self._state.wait()
        self._stream.close()

    def abandon(self) -> None:
        """Let go of a lost connection as soon as nobody reads from it any more."""
        self._fail(ConnectionLost("abandoned"))
        with self._state:
            while self._reading:
                self._state.wait()
        self._stream.close()
