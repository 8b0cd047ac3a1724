"""The transmission: requests of one client, served in its thread.

All requests that a receive brought are served before anything is sent, and then in one send: with sixteen requests in
flight that is two system calls instead of thirty-two, and as few changes of threads. Replies are built in place in one
buffer, data included. The export's door is held while requests are served, never while the socket is waited for.
Requests that wait for a slow disk are served side by side instead.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.exports.nbd.handshake import Disconnect
from engine.exports.nbd.polling import BusyPoll
from engine.exports.nbd.replies import KEPT, OUT, ROOM, SIMPLE_SIZE, Replies, memory
from engine.exports.nbd.side_by_side import MOST, SideBySide, Span
from engine.graph.driver import Status, WriteFlag
from engine.graph.requests import is_zero
from engine.graph.status import status_above
from engine.nbd import protocol as nbd

if TYPE_CHECKING:
    from engine.exports.nbd.contexts import Context
    from engine.exports.nbd.handshake import Chosen
    from engine.graph.node import Node

log = logging.getLogger("engine.nbd")

_IN = 256 << 10
"""Bytes received at a time."""
_SPARSE = 64 << 10
"""Shortest read whose holes are asked for first; a shorter one is just read."""
_PATIENCE = 0.01
"""Seconds after which what is done is answered, before the next slow request."""
_UNASKED = 8
"""After a read without holes, so many are done without asking for any: it may cost more than reading (tmpfs)."""
_MOST_UNASKED = 1024
"""Every time that there was none again the number doubles, up to this: tmpfs looks through all of a file for a hole."""
_MAX_RUNS = 256
"""Most pieces that the answer to one read falls into."""

_FUA = int(WriteFlag.FUA)
_MAY_UNMAP, _NO_FALLBACK = int(WriteFlag.MAY_UNMAP), int(WriteFlag.NO_FALLBACK)
_ZERO = int(Status.ZERO)
_LONGER = 4
"""Bytes that a hole takes more than data of no length."""
_WRITES = (nbd.CMD_WRITE, nbd.CMD_WRITE_ZEROES, nbd.CMD_TRIM)
_NAMES = {
    nbd.CMD_READ: "read",
    nbd.CMD_WRITE: "write",
    nbd.CMD_FLUSH: "flush",
    nbd.CMD_TRIM: "trim",
    nbd.CMD_CACHE: "cache",
    nbd.CMD_WRITE_ZEROES: "write zeroes",
    nbd.CMD_BLOCK_STATUS: "block status",
}


class Invalid(Exception):
    """The request can't be done as it is; the text says why. number: of the error on the wire."""

    def __init__(self, message: str, number: int = nbd.EINVAL) -> None:
        super().__init__(message)
        self.number = number


class Transmission(Replies):
    """Serves a client's requests until it leaves. Errors: Disconnect, OSError (the socket's).

    What requests and answers look like when headers are extended, a subclass says.
    """

    _head = nbd.REQUEST.size
    """Bytes of a request without what it carries."""
    _magic = nbd.REQUEST_MAGIC
    _unpack = staticmethod(nbd.REQUEST.unpack_from)
    _carries = 0
    """Flag of requests other than writes that bring a payload along."""

    def __init__(self, sock: socket.socket, chosen: Chosen) -> None:
        super().__init__(sock, chosen.structured)
        self._chosen = chosen
        self._contexts = chosen.contexts
        export = chosen.export
        self._size = export.size
        self._read_only = not export.writable
        self._backend = export.backend
        self._always = 0 if export.backend.write_cache else _FUA
        self._in = memory(_IN)
        self._long = memoryview(b"")
        """For writes that are longer than the in buffer."""
        self._patience = _UNASKED
        self._unasked = 0
        """How many of the next long reads are not asked for holes."""
        self._needed = 0
        """Why serving stopped: bytes of the in buffer that the next request takes, if more than there are."""
        self._batch = 0
        """Reads and writes served at once last."""
        self._side_by_side = SideBySide()

    def run(self) -> None:
        """Serve until the client leaves."""
        try:
            self._run()
        finally:
            self._side_by_side.close()

    def _run(self) -> None:
        view = self._in
        receive = self._sock.recv_into
        # A TLS session may hold data that the socket has no more.
        polling = BusyPoll(self._sock, self._backend) if type(self._sock) is socket.socket else None
        start = end = 0
        while True:
            if polling is not None:
                if self._batch == 1:
                    polling.wait()
                else:
                    polling.pass_by()
            if start == end:
                start = end = 0
            elif start + max(self._needed, self._head) > _IN:
                view[: end - start] = view[start:end]
                start, end = 0, end - start
            got = receive(view[end:] if end else view)
            if not got:
                return
            end += got
            while end - start >= self._head:
                before = start
                if self._side_by_side.wanted and len(spans := self._spans(start, end)) > 1:
                    for answer in self._side_by_side.serve(spans, self._helper):
                        self._sock.sendall(answer)
                    start, self._batch = spans[-1][1], len(spans)
                    continue
                try:
                    start = self._serve(start, end)
                finally:
                    self._flush_out()
                if self._needed > _IN:
                    self._serve_long(start, end)
                    start = end = 0
                elif self._needed or start == before:
                    break

    # -- side by side ----------------------------------------------------------------------------------------

    def _spans(self, start: int, end: int) -> list[Span]:
        """The short reads and writes that the in buffer begins with at *start*, whole ones."""
        spans: list[Span] = []
        while end - start >= self._head and len(spans) < MOST:
            told, flags, kind, _, _, length = self._unpack(self._in, start)
            stop = start + self._head
            if kind == nbd.CMD_WRITE:
                stop += length
            elif kind != nbd.CMD_READ or flags:
                break
            if told != self._magic or length >= _SPARSE or stop > end:
                break
            spans.append((start, stop))
            start = stop
        return spans

    def _helper(self) -> Callable[[Span], bytes]:
        """What serves a request in another thread."""
        helper = type(self)(self._sock, self._chosen)
        helper._in = self._in

        def serve(span: Span) -> bytes:
            helper._end = 0
            helper._serve(*span)
            return bytes(helper._out[: helper._end])

        return serve

    # -- the loop --------------------------------------------------------------------------------------------

    def _serve(self, start: int, end: int) -> int:
        """Serve the requests in the in buffer from *start* to *end*; return where the first one not served begins.

        It stops at a write whose data are not all there (``_needed``), when the replies fill the out buffer, when
        it takes long: somebody may wait for it to stop.
        """
        view, out, at = self._in, self._out, self._end
        room = len(out)
        unpack, structured, size = self._unpack, self._structured, self._size
        head, before, magic, carries = self._data_size, self._head, self._magic, self._carries
        backend = self._backend
        reads = read_bytes = writes = written = 0
        self._needed = 0
        door, now = backend.door, time.monotonic
        with door:
            node = backend.node
            until = now() + _PATIENCE
            while end - start >= before:
                told, flags, kind, cookie, offset, length = unpack(view, start)
                if told != magic:
                    raise Disconnect("not a request")
                if kind == nbd.CMD_READ and not flags and 0 < length < _SPARSE and offset + length <= size:
                    body = at + head
                    if body + length + _LONGER > room:
                        break
                    part = out[body : body + length]
                    start += before
                    try:
                        node.read(offset, part)
                    except OSError as exc:
                        self._end, self._asked = at, offset
                        self._fail(cookie, exc, "reading failed")
                        out, at, room = self._out, self._end, len(self._out)
                        if now() > until:
                            break
                        continue
                    reads += 1
                    read_bytes += length
                    if not structured:
                        nbd.SIMPLE.pack_into(out, at, nbd.SIMPLE_MAGIC, 0, cookie)
                        at = body + length
                    elif carries:  # headers are extended
                        self._end = at
                        if is_zero(part):
                            self._hole(nbd.CHUNK_DONE, cookie, offset, offset, length)
                        else:
                            self._data_head(out[at:], nbd.CHUNK_DONE, cookie, offset, offset, length)
                            self._end = body + length
                        at = self._end
                    elif part[0] or part[-1] or not is_zero(part):
                        nbd.DATA_CHUNK.pack_into(
                            *(out, at, nbd.CHUNK_MAGIC, nbd.CHUNK_DONE, nbd.CHUNK_OFFSET_DATA),
                            *(cookie, length + 8, offset),
                        )
                        at = body + length
                    else:
                        nbd.HOLE_CHUNK.pack_into(
                            *(out, at, nbd.CHUNK_MAGIC, nbd.CHUNK_DONE, nbd.CHUNK_OFFSET_HOLE),
                            *(cookie, 12, offset, length),
                        )
                        at += nbd.HOLE_CHUNK.size
                    if now() > until:
                        break
                    continue
                self._end = at
                if at and (room - at < ROOM or at >= OUT):
                    break
                if kind == nbd.CMD_WRITE or (flags & carries and kind != nbd.CMD_DISC):
                    if length > nbd.MAX_PAYLOAD:
                        # What follows can't be told from requests.
                        self._asked = offset
                        self._error(cookie, nbd.EINVAL, f"a payload of {length} bytes is too long")
                        self._flush_out()
                        raise Disconnect("a payload that is too long")
                    data = start + before
                    if end - data < length:
                        self._needed = before + length
                        break
                    start = data + length
                    if kind == nbd.CMD_WRITE:
                        self._write(node, flags, cookie, offset, view[data:start])
                        writes += 1
                        written += length
                    else:
                        self._other(node, kind, flags, cookie, offset, length, view[data:start])
                elif kind == nbd.CMD_DISC:
                    self._flush_out()
                    raise Disconnect("it said so")
                elif kind == nbd.CMD_READ and at and length <= nbd.MAX_PAYLOAD and at + length + ROOM > room:
                    break
                else:
                    start += before
                    self._other(node, kind, flags, cookie, offset, length)
                    if kind == nbd.CMD_READ:
                        reads += 1
                        read_bytes += length
                out, at = self._out, self._end
                room = len(out)
                if now() > until:
                    break
            self._end = at
        self._batch = number = reads + writes
        if (number > 1 or (number and end - start >= before)) and read_bytes + written < number * _SPARSE:
            self._side_by_side.alone(now() + _PATIENCE - until, number)
        stats = backend.stats
        stats.rd_operations += reads
        stats.rd_bytes += read_bytes
        stats.wr_operations += writes
        stats.wr_bytes += written
        stats.last_access_ns = time.monotonic_ns()
        return start

    def _serve_long(self, start: int, end: int) -> None:
        """Receive and serve the write at *start*, which is longer than the in buffer and takes all of it."""
        _, flags, kind, cookie, offset, length = self._unpack(self._in, start)
        start += self._head
        data = self._long[:length]
        if len(data) < length:
            data = memory(length)
            if length <= KEPT:
                self._long = data
        have = end - start
        data[:have] = self._in[start:end]
        # A TLS socket is of a class of its own, and knows no flags.
        wait = socket.MSG_WAITALL if type(self._sock) is socket.socket else 0
        while have < length:
            got = self._sock.recv_into(data[have:], 0, wait)
            if not got:
                raise Disconnect("the client has left in the middle of a write")
            have += got
        backend = self._backend
        with backend.door:
            if kind == nbd.CMD_WRITE:
                self._write(backend.node, flags, cookie, offset, data)
                backend.stats.wr_operations += 1
                backend.stats.wr_bytes += length
            else:
                self._other(backend.node, kind, flags, cookie, offset, length, data)
        self._flush_out()
        self._needed = 0

    # -- requests --------------------------------------------------------------------------------------------

    def _check(self, kind: int, flags: int, offset: int, length: int) -> None:
        """Errors: Invalid."""
        if kind not in _NAMES:
            raise Invalid(f"invalid request type ({kind}) received")
        if kind in (nbd.CMD_READ, nbd.CMD_CACHE) and length > nbd.MAX_PAYLOAD:
            raise Invalid(f"len ({length}) is larger than max len ({nbd.MAX_PAYLOAD})")
        if self._read_only and kind in _WRITES:
            # This and ENOSPC are the specification's; QEMU makes EINVAL of both.
            raise Invalid("Export is read-only", nbd.EPERM)
        if offset + length > self._size:
            number = nbd.ENOSPC if kind in (nbd.CMD_WRITE, nbd.CMD_WRITE_ZEROES) else nbd.EINVAL
            raise Invalid(f"operation past EOF; From: {offset}, Len: {length}, Size: {self._size}", number)
        allowed = nbd.FLAG_FUA
        if kind == nbd.CMD_WRITE:
            allowed |= self._carries
        if kind == nbd.CMD_READ and self._structured:
            allowed |= nbd.FLAG_DF
        elif kind == nbd.CMD_WRITE_ZEROES:
            allowed |= nbd.FLAG_NO_HOLE | nbd.FLAG_FAST_ZERO
        elif kind == nbd.CMD_BLOCK_STATUS:
            allowed |= nbd.FLAG_REQ_ONE
        if flags & ~allowed:
            raise Invalid(f"unsupported flags for command {_NAMES[kind]} (got {flags:#x})")
        if kind == nbd.CMD_BLOCK_STATUS:
            if not length:
                raise Invalid("need non-zero length")
            if not self._contexts:
                raise Invalid("CMD_BLOCK_STATUS not negotiated")

    def _write(self, node: Node, flags: int, cookie: int, offset: int, data: memoryview) -> None:
        self._asked = offset
        try:
            self._check(nbd.CMD_WRITE, flags, offset, len(data))
            node.write(offset, data, self._always | (_FUA if flags & nbd.FLAG_FUA else 0))
        except Invalid as exc:
            self._error(cookie, exc.number, str(exc))
        except OSError as exc:
            self._fail(cookie, exc, "writing to file failed")
        else:
            self._done(cookie)

    def _other(
        self,
        node: Node,
        kind: int,
        flags: int,
        cookie: int,
        offset: int,
        length: int,
        payload: memoryview | None = None,
    ) -> None:
        """Serve anything but a write. length: of *payload* where there is one."""
        before, self._asked = self._end, offset
        fua = bool(flags & nbd.FLAG_FUA)
        message = f"{_NAMES.get(kind)} failed"
        try:
            contexts = self._contexts
            if payload is not None:
                length, contexts = self._filter(kind, payload)
                flags &= ~self._carries
            self._check(kind, flags, offset, length)
            if kind == nbd.CMD_READ:
                if fua:
                    node.flush()
                self._read(node, flags, cookie, offset, length)
            elif kind == nbd.CMD_BLOCK_STATUS:
                self._block_status(contexts, cookie, offset, length, bool(flags & nbd.FLAG_REQ_ONE))
            else:
                if kind == nbd.CMD_FLUSH:
                    node.flush()
                elif kind == nbd.CMD_TRIM:
                    node.discard(offset, length)
                    if fua or self._always:
                        node.flush()
                elif kind == nbd.CMD_CACHE:
                    self._cache(node, offset, length)
                else:
                    how = self._always | (_FUA if fua else 0)
                    how |= 0 if flags & nbd.FLAG_NO_HOLE else _MAY_UNMAP
                    how |= _NO_FALLBACK if flags & nbd.FLAG_FAST_ZERO else 0
                    node.write_zeroes(offset, length, how)
                self._done(cookie)
        except Invalid as exc:
            self._error(cookie, exc.number, str(exc))
        except OSError as exc:
            self._end = before
            self._fail(cookie, exc, message)

    def _read(self, node: Node, flags: int, cookie: int, offset: int, length: int) -> None:
        if not self._structured:
            place = self._reserve(SIMPLE_SIZE + length)
            if length:
                node.read(offset, place[SIMPLE_SIZE:])
            nbd.SIMPLE.pack_into(place, 0, nbd.SIMPLE_MAGIC, 0, cookie)
            return
        if not length:
            self._nothing(cookie)
            return
        asked, end, head = offset, offset + length, self._data_size
        whole = bool(flags & nbd.FLAG_DF)
        if whole or self._unasked:
            runs = [(length, False)]
            self._unasked -= not whole
        else:
            runs = self._runs(node, offset, length)
            if any(zero for _, zero in runs):
                self._unasked, self._patience = 0, _UNASKED
            else:
                self._unasked = self._patience
                self._patience = min(2 * self._patience, _MOST_UNASKED)
        for run, zero in runs:
            done = nbd.CHUNK_DONE if offset + run == end else 0
            if not zero:
                before = self._end
                place = self._reserve(head + run)
                node.read(offset, place[head:])
                zero = not whole and is_zero(place[head:])
                if zero:
                    self._end, self._unasked, self._patience = before, 0, _UNASKED
                else:
                    self._data_head(place, done, cookie, asked, offset, run)
            if zero:
                self._hole(done, cookie, asked, offset, run)
            offset += run

    @staticmethod
    def _runs(node: Node, offset: int, length: int) -> list[tuple[int, bool]]:
        """(length, whether it is zeros) of the pieces of a range."""
        runs: list[tuple[int, bool]] = []
        while length:
            extent, _ = status_above(node, None, offset, length)
            run, zero = min(extent.length, length), bool(extent.flags & _ZERO)
            if len(runs) >= _MAX_RUNS:
                run, zero = length, False
            if runs and runs[-1][1] == zero:
                runs[-1] = (runs[-1][0] + run, zero)
            else:
                runs.append((run, zero))
            offset += run
            length -= run
        return runs

    @staticmethod
    def _cache(node: Node, offset: int, length: int) -> None:
        buffer = memoryview(bytearray(min(length, OUT)))
        while length:
            part = buffer[: min(length, len(buffer))]
            node.read(offset, part)
            offset += len(part)
            length -= len(part)

    def _filter(self, kind: int, payload: memoryview) -> tuple[int, list[Context]]:
        """Length and contexts that the payload of a BLOCK_STATUS asks for. Errors: Invalid."""
        raise Invalid(f"unsupported payload for command {_NAMES.get(kind)}")

    def _block_status(self, contexts: list[Context], cookie: int, offset: int, length: int, one: bool) -> None:
        for context in contexts:
            extents = context.extents(offset, length, one)
            self._status(nbd.CHUNK_DONE if context is contexts[-1] else 0, cookie, context.id, extents)
