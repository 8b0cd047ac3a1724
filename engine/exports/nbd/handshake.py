"""The handshake: a client looks around, chooses an export, and agrees with the server on how to talk."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.exports.nbd.contexts import Context, matching
from engine.nbd import protocol as nbd

if TYPE_CHECKING:
    import ssl

    from engine.exports.nbd.export import NBDExport
    from engine.exports.nbd.server import NBDServer

TIME_LIMIT = 10.0
"""Seconds a client may take for the handshake, as in QEMU."""
_MAX_OPTION = 1 << 20
"""Longest data of an option that has any use, in bytes; what is longer is skipped and refused."""
_PREFERRED = 4096


class Disconnect(Exception):
    """The client has to go: it broke the protocol, or there is no other answer."""


class _Refused(Exception):
    """The option gets an error for an answer."""

    def __init__(self, reply: int, message: str) -> None:
        super().__init__(message)
        self.reply = reply
        self.message = message


@dataclass(slots=True)
class Chosen:
    """What a handshake came to."""

    export: NBDExport
    structured: bool
    extended: bool
    contexts: list[Context]


class Handshake:
    """The server's side of one handshake, on a blocking socket. Errors: Disconnect, OSError.

    start_tls(context, timeout): does the TLS handshake and gives the socket to go on with.
    join(export): makes the client one of the export's; false when that is going.
    """

    def __init__(
        self,
        sock: socket.socket,
        server: NBDServer,
        start_tls: Callable[[ssl.SSLContext, float], socket.socket],
        join: Callable[[NBDExport], bool],
    ) -> None:
        self._sock = sock
        self._server = server
        self._start_tls = start_tls
        self._join = join
        self._deadline = time.monotonic() + TIME_LIMIT
        self._plain = server.tls is not None
        self._no_zeroes = False
        self._structured = False
        self._extended = False
        self._contexts: list[Context] = []
        self._contexts_of: NBDExport | None = None

    def run(self) -> Chosen | None:
        """Return what the client chose; its export has been joined. None: it wants nothing more."""
        self._send(nbd.MAGIC + nbd.OPTION_MAGIC + struct.pack(">H", nbd.FLAG_FIXED_NEWSTYLE | nbd.FLAG_NO_ZEROES))
        (flags,) = struct.unpack(">I", self._receive(4))
        if flags & ~(nbd.FLAG_FIXED_NEWSTYLE | nbd.FLAG_NO_ZEROES):
            raise Disconnect(f"unknown client flags {flags:#x}")
        self._no_zeroes = bool(flags & nbd.FLAG_NO_ZEROES)
        while True:
            magic, option, length = nbd.OPTION.unpack(self._receive(nbd.OPTION.size))
            if magic != nbd.OPTION_MAGIC:
                raise Disconnect("not an option")
            if length > nbd.MAX_PAYLOAD:
                raise Disconnect(f"an option of {length} bytes")
            if not flags & nbd.FLAG_FIXED_NEWSTYLE and option != nbd.OPT_EXPORT_NAME:
                raise Disconnect(f"option {option} of a client of the old style")
            try:
                done = self._option(option, length)
            except _Refused as exc:
                self._reply(option, exc.reply, exc.message.encode(errors="replace"))
                continue
            if done:
                return self._done

    _done: Chosen | None = None

    def _option(self, option: int, length: int) -> bool:
        """Answer an option; tell whether the handshake is over."""
        if self._plain:
            return self._option_before_tls(option, length)
        if option == nbd.OPT_EXPORT_NAME:
            self._export_name(length)
            return True
        if option == nbd.OPT_ABORT:
            self._skip(length)
            self._reply(option, nbd.REP_ACK)
            return True
        if option in (nbd.OPT_INFO, nbd.OPT_GO):
            return self._info(option, self._data(length))
        if option in (nbd.OPT_LIST_META_CONTEXT, nbd.OPT_SET_META_CONTEXT):
            self._meta_context(option, self._data(length))
        elif option == nbd.OPT_LIST:
            self._no_data(length)
            for export in self._server.exports():
                self._reply(option, nbd.REP_SERVER, _string(export.name) + export.description.encode())
            self._reply(option, nbd.REP_ACK)
        elif option == nbd.OPT_STRUCTURED_REPLY:
            self._no_data(length)
            if self._extended:
                raise _Refused(nbd.REP_ERR_EXT_HEADER_REQD, "extended headers are negotiated already")
            if self._structured:
                raise _Refused(nbd.REP_ERR_INVALID, "structured replies are negotiated already")
            self._structured = True
            self._reply(option, nbd.REP_ACK)
        elif option == nbd.OPT_EXTENDED_HEADERS:
            self._no_data(length)
            if self._extended:
                raise _Refused(nbd.REP_ERR_INVALID, "extended headers are negotiated already")
            self._structured = self._extended = True
            self._reply(option, nbd.REP_ACK)
        elif option == nbd.OPT_STARTTLS:
            self._no_data(length)
            if self._server.tls is not None:
                raise _Refused(nbd.REP_ERR_INVALID, "TLS is enabled already")
            raise _Refused(nbd.REP_ERR_POLICY, "TLS is not configured")
        else:
            self._skip(length)
            raise _Refused(nbd.REP_ERR_UNSUP, f"unsupported option {option}")
        return False

    def _option_before_tls(self, option: int, length: int) -> bool:
        if option == nbd.OPT_STARTTLS:
            if length:
                raise Disconnect("STARTTLS with data")
            self._reply(option, nbd.REP_ACK)
            assert self._server.tls is not None
            self._sock = self._start_tls(self._server.tls, self._left())
            self._plain = False
            return False
        if option == nbd.OPT_EXPORT_NAME:
            raise Disconnect("EXPORT_NAME without TLS")
        self._skip(length)
        self._reply(option, nbd.REP_ERR_TLS_REQD, b"TLS is required")
        # Most clients give up here, and say so.
        return option == nbd.OPT_ABORT

    # -- choosing an export ----------------------------------------------------------------------------------

    def _flags(self, export: NBDExport) -> int:
        flags = export.flags | (nbd.SEND_DF if self._structured else 0)
        if self._extended and self._contexts and self._contexts_of is export:
            flags |= nbd.BLOCK_STAT_PAYLOAD
        return flags

    def _choose(self, export: NBDExport) -> bool:
        if not self._join(export):
            return False
        contexts = self._contexts if self._contexts_of is export else []
        self._done = Chosen(export, self._structured, self._extended, contexts)
        return True

    def _export_name(self, length: int) -> None:
        if length > nbd.MAX_STRING:
            raise Disconnect("the export's name is too long")
        if self._extended:
            raise Disconnect("EXPORT_NAME after extended headers")
        name = self._receive(length).decode("utf-8", "surrogateescape")
        export = self._server.find(name)
        if export is None or not self._choose(export):
            raise Disconnect(f"no export {name!r}")
        answer = struct.pack(">QH", export.size, self._flags(export))
        self._send(answer if self._no_zeroes else answer + bytes(124))

    def _info(self, option: int, data: memoryview) -> bool:
        name, rest = _take_name(data)
        if len(rest) < 2 or len(rest) - 2 != 2 * int.from_bytes(rest[:2]):
            raise _Refused(nbd.REP_ERR_INVALID, "the number of requests does not fit the length")
        wanted = set(struct.unpack(f">{len(rest) // 2 - 1}H", rest[2:]))
        export = self._server.find(name)
        if export is None:
            raise _Refused(nbd.REP_ERR_UNKNOWN, f"export '{name}' not present")
        if nbd.INFO_NAME in wanted:
            self._reply_info(option, nbd.INFO_NAME, export.name.encode())
        if export.description:
            self._reply_info(option, nbd.INFO_DESCRIPTION, export.description.encode())
        alignment = export.alignment
        told = alignment if option == nbd.OPT_INFO or nbd.INFO_BLOCK_SIZE in wanted else 1
        sizes = struct.pack(">III", told, max(_PREFERRED, told), export.max_transfer)
        self._reply_info(option, nbd.INFO_BLOCK_SIZE, sizes)
        self._reply_info(option, nbd.INFO_EXPORT, struct.pack(">QH", export.size, self._flags(export)))
        if option == nbd.OPT_INFO:
            if alignment > 1 and nbd.INFO_BLOCK_SIZE not in wanted:
                raise _Refused(nbd.REP_ERR_BLOCK_SIZE_REQD, "this export needs a client that heeds block sizes")
            self._reply(option, nbd.REP_ACK)
            return False
        if not self._choose(export):
            raise _Refused(nbd.REP_ERR_UNKNOWN, f"export '{name}' not present")
        self._reply(option, nbd.REP_ACK)
        return True

    # -- metadata contexts -----------------------------------------------------------------------------------

    def _meta_context(self, option: int, data: memoryview) -> None:
        listing = option == nbd.OPT_LIST_META_CONTEXT
        if not listing:
            self._contexts, self._contexts_of = [], None
        if not listing and not self._structured:
            raise _Refused(nbd.REP_ERR_INVALID, "structured replies come first")
        name, rest = _take_name(data)
        export = self._server.find(name)
        if export is None:
            raise _Refused(nbd.REP_ERR_UNKNOWN, f"export '{name}' not present")
        queries = _take_queries(rest)
        if listing and not queries:
            found = export.contexts
        else:
            ids = {each.id for query in set(queries) for each in matching(export.contexts, query, listing=listing)}
            found = [each for each in export.contexts if each.id in ids]
        if not listing:
            self._contexts, self._contexts_of = found, export
        for each in found:
            number = struct.pack(">I", 0 if listing else each.id)
            self._reply(option, nbd.REP_META_CONTEXT, number + each.name.encode())
        self._reply(option, nbd.REP_ACK)

    # -- bytes -----------------------------------------------------------------------------------------------

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise Disconnect("the handshake takes too long")
        return left

    def _receive(self, length: int) -> bytes:
        data = bytearray(length)
        view = memoryview(data)
        while view:
            self._sock.settimeout(self._left())
            got = self._sock.recv_into(view)
            if not got:
                raise Disconnect("the client has left")
            view = view[got:]
        return bytes(data)

    def _skip(self, length: int) -> None:
        while length:
            length -= len(self._receive(min(length, 1 << 16)))

    def _data(self, length: int) -> memoryview:
        """The data of an option. Refuses what is too long to mean anything."""
        if length > _MAX_OPTION:
            self._skip(length)
            raise _Refused(nbd.REP_ERR_INVALID, "the option is too long")
        return memoryview(self._receive(length))

    def _no_data(self, length: int) -> None:
        self._skip(length)
        if length:
            raise _Refused(nbd.REP_ERR_INVALID, "the option has no data")

    def _send(self, data: bytes) -> None:
        self._sock.settimeout(self._left())
        self._sock.sendall(data)

    def _reply(self, option: int, kind: int, data: bytes = b"") -> None:
        self._send(nbd.REPLY.pack(nbd.REPLY_MAGIC, option, kind, len(data)) + data)

    def _reply_info(self, option: int, kind: int, data: bytes) -> None:
        self._reply(option, nbd.REP_INFO, struct.pack(">H", kind) + data)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack(">I", len(data)) + data


def _take_string(data: memoryview) -> tuple[memoryview, memoryview]:
    """A length and as many bytes, and what is behind them."""
    length = int.from_bytes(data[:4])
    if len(data) < 4 or length > len(data) - 4:
        raise _Refused(nbd.REP_ERR_INVALID, "a length does not fit the option")
    return data[4 : 4 + length], data[4 + length :]


def _take_name(data: memoryview) -> tuple[str, memoryview]:
    name, rest = _take_string(data)
    if len(name) > nbd.MAX_STRING:
        raise _Refused(nbd.REP_ERR_INVALID, "the export's name is too long")
    return bytes(name).decode("utf-8", "surrogateescape"), rest


def _take_queries(data: memoryview) -> list[str]:
    if len(data) < 4:
        raise _Refused(nbd.REP_ERR_INVALID, "the number of queries is missing")
    number, data = int.from_bytes(data[:4]), data[4:]
    if number > len(data) // 4:
        raise _Refused(nbd.REP_ERR_INVALID, "the number of queries does not fit the length")
    queries = []
    for _ in range(number):
        query, data = _take_string(data)
        queries.append(bytes(query[: nbd.MAX_STRING + 1]).decode("utf-8", "surrogateescape"))
    if data:
        raise _Refused(nbd.REP_ERR_INVALID, "there is something behind the queries")
    return queries
