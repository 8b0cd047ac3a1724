"""nbd: a disk that an NBD server offers (qemu-nbd, nbdkit, qemu-storage-daemon, this engine)."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any, Final

from engine.drivers.protocol import nbd_options
from engine.drivers.protocol.nbd_options import BlockdevOptionsNbd, NbdOpenOptions
from engine.errors import GenericError
from engine.graph.driver import Driver, Extent, Limits, Opening, Prealloc, ReopenState, Status, WriteFlag, register
from engine.nbd import protocol as nbd
from engine.nbd.channel import Channel
from engine.nbd.client import Client
from engine.nbd.negotiation import Wishes, negotiate
from engine.nbd.stream import Stream
from engine.objects.tls import QCryptoTLSCredsEndpoint, find_tls_creds
from engine.qapi import from_wire
from engine.sockets.addresses import Address, InetSocketAddress, SocketAddress, UnixSocketAddress, address_of
from engine.sockets.streams import connect

_MAX_LENGTH: Final = (1 << 32) - (4 << 10)
"""Longest zeros, trim or status in one request: what 32 bits hold, in whole pages."""
_ALLOCATION_DEPTH: Final = "qemu:allocation-depth"
_MAX_EXTENDED: Final = 1 << 62
"""The same with extended headers."""
_FUA, _MAY_UNMAP, _NO_FALLBACK = int(WriteFlag.FUA), int(WriteFlag.MAY_UNMAP), int(WriteFlag.NO_FALLBACK)
HANDSHAKE_LIMIT = 30.0
"""Seconds that a server may be silent in the handshake."""
_MAX_NAME: Final = 4096
"""Bytes from which on there is no name but the options."""
_DATA, _ZERO, _VALID = int(Status.DATA), int(Status.ZERO), int(Status.OFFSET_VALID)


@register
class NbdDriver(Driver):
    """A node whose data an NBD server has. Requests of several threads are on their way together."""

    name = "nbd"
    Options = BlockdevOptionsNbd
    OpenOptions = NbdOpenOptions
    is_protocol = True
    protocol_prefixes = ("nbd", "nbd+tcp", "nbd+unix")
    strong_options = ("path", "host", "port", "export", "tls-creds", "tls-hostname", "server.")

    _client: Client
    _pending: Stream | None = None
    """The connection that is at its handshake."""
    _cancelled: Stream | None = None

    @classmethod
    def parse_filename(cls, filename: str) -> dict[str, Any]:
        return nbd_options.parse_filename(filename)

    def open(self, opening: Opening) -> None:
        options: NbdOpenOptions = opening.options
        nbd_options.check_strings(options)
        self._address = _address(options)
        self._export = options.export or ""
        wishes = self._wishes(options)
        self._client = Client(lambda: self._connect(wishes), float(options.reconnect_delay or 0), self._cancel)
        self._client.open(float(options.open_timeout or 0))
        info = self._client.info
        self._depth = options.x_dirty_bitmap == _ALLOCATION_DEPTH
        try:
            if options.x_dirty_bitmap is not None and info.context_id is None:
                raise GenericError("Could not open image: Invalid argument")  # so QEMU says it
            if info.flags & nbd.READ_ONLY:
                # So QEMU says it.
                opening.fall_back_to_read_only("Could not open image: Permission denied")
        except GenericError:
            self._client.close()
            raise
        self.length = info.size
        self._most = min(info.max_block or nbd.MAX_PAYLOAD, nbd.MAX_PAYLOAD) & -info.min_block
        self._most_zeroes = (_MAX_EXTENDED if info.extended else _MAX_LENGTH) & -info.min_block
        self.supports_fua = bool(info.flags & nbd.SEND_FUA)  # type: ignore[misc]  # this server's

    def _wishes(self, options: NbdOpenOptions) -> Wishes:
        context = "base:allocation" if options.x_dirty_bitmap is None else options.x_dirty_bitmap
        if options.tls_creds is None:
            return Wishes(self._export, context)
        creds = find_tls_creds(self.node.graph.objects, options.tls_creds, QCryptoTLSCredsEndpoint.CLIENT)
        tls = creds.context()
        hostname = options.tls_hostname
        if hostname is None and isinstance(self._address, InetSocketAddress):
            hostname = self._address.host
        tls.check_hostname = bool(tls.verify_mode) and hostname is not None
        return Wishes(self._export, context, tls, hostname)

    def _connect(self, wishes: Wishes) -> Channel:
        """A new connection to the export. Errors: GenericError. Any thread."""
        self._pending = pending = Stream(connect(self._address))
        # Who takes the connection and is silent is no server (one that has enough clients does so, qemu-nbd for one).
        pending.set_timeout(HANDSHAKE_LIMIT)
        try:
            stream, info = negotiate(pending, wishes)
        except BaseException:
            pending.close()
            if self._cancelled is pending:
                raise GenericError("Connection attempt cancelled by timeout") from None
            raise
        finally:
            self._pending = None
        stream.set_timeout(None)
        return Channel(stream, info)

    def _cancel(self) -> None:
        """Let the handshake that goes on fail, if there is one. Any thread."""
        self._cancelled = pending = self._pending
        if pending is not None:
            pending.cut()

    def close(self) -> None:
        self._client.close()

    def cancel_in_flight(self) -> None:
        self._client.give_up_waiting()

    def refresh_limits(self) -> None:
        info = self._client.info
        self.limits = Limits(
            request_alignment=info.min_block,
            max_transfer=self._most,
            opt_transfer=info.opt_block if info.opt_block > info.min_block else 0,
            write_zeroes_alignment=info.min_block,
            discard_alignment=info.min_block,
        )

    # -- names -----------------------------------------------------------------------------------------------

    def exact_filename(self) -> str | None:
        if self.node.options.get("tls-creds") is not None:
            return ""
        given = self.node.options.get("export") is not None
        export = f"/{self._export}" if given else ""
        address = self._address
        name = ""
        if isinstance(address, UnixSocketAddress):
            name = f"nbd+unix://{export}?socket={address.path}"
        elif isinstance(address, InetSocketAddress) and (address.ipv4, address.ipv6, address.to) == (None, None, None):
            name = f"nbd://{address.host}:{address.port}{export}"
        return name if len(os.fsencode(name)) < _MAX_NAME else ""

    def dirname(self) -> str | None:
        raise GenericError("Cannot generate a base directory for NBD nodes")

    # -- reopen ----------------------------------------------------------------------------------------------

    def reopen_prepare(self, state: ReopenState) -> None:
        if not state.read_only and self._client.info.flags & nbd.READ_ONLY:
            raise GenericError("Can't reopen read-only NBD mount as read/write")

    # -- data plane ------------------------------------------------------------------------------------------

    def read(self, offset: int, buffer: memoryview) -> None:
        most = self._most
        if len(buffer) <= most:
            self._client.call(lambda channel: channel.read(offset, buffer))
            return
        for start in range(0, len(buffer), most):
            self.read(offset + start, buffer[start : start + most])

    def write(self, offset: int, data: memoryview, flags: int = 0) -> None:
        if offset + len(data) > self.length:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        most, wire = self._most, nbd.FLAG_FUA if flags & _FUA else 0
        for start in range(0, len(data), most):
            self._write(offset + start, data[start : start + most], wire)

    def _write(self, offset: int, data: memoryview, flags: int) -> None:
        self._client.call(lambda channel: channel.write(offset, data, flags))

    def write_zeroes(self, offset: int, length: int, flags: int = 0) -> None:
        able = self._client.info.flags
        if not able & nbd.SEND_WRITE_ZEROES or (flags & _NO_FALLBACK and not able & nbd.SEND_FAST_ZERO):
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        wire = 0 if flags & _MAY_UNMAP else nbd.FLAG_NO_HOLE
        wire |= nbd.FLAG_FUA if flags & _FUA else 0
        wire |= nbd.FLAG_FAST_ZERO if flags & _NO_FALLBACK else 0
        self._long(nbd.CMD_WRITE_ZEROES, offset, length, wire)

    def discard(self, offset: int, length: int) -> None:
        if self._client.info.flags & nbd.SEND_TRIM:
            self._long(nbd.CMD_TRIM, offset, length, 0)

    def _long(self, kind: int, offset: int, length: int, flags: int) -> None:
        while length:
            step = min(length, self._most_zeroes)
            self._simple(kind, offset, step, flags)
            offset += step
            length -= step

    def _simple(self, kind: int, offset: int, length: int, flags: int) -> None:
        self._client.call(lambda channel: channel.simple(kind, offset, length, flags))

    def flush(self) -> None:
        if self._client.info.flags & nbd.SEND_FLUSH:
            self._simple(nbd.CMD_FLUSH, 0, 0, 0)

    def block_status(self, offset: int, length: int, want_zero: bool = True) -> Extent:
        if self._client.info.context_id is None:
            return Extent(length, _DATA | _VALID, self.node, offset)
        asked = min(length, self._most_zeroes)
        run, state = self._client.call(lambda channel: channel.block_status(offset, asked))
        least = self._client.info.min_block
        if run % least:
            # Against the protocol, but some servers do so. What holds for a part of a block only is not told.
            run, state = (run - run % least, state) if run > least else (least, 0)
        if self._depth and state > 2:
            state = 2  # as in QEMU: where the data is, is not in the top layer
        flags = (0 if state & nbd.STATE_HOLE else _DATA) | (_ZERO if state & nbd.STATE_ZERO else 0)
        return Extent(run, flags | _VALID, self.node, offset)

    def truncate(self, length: int, *, exact: bool = True, prealloc: Prealloc = Prealloc.OFF) -> None:
        if exact and length != self.length:
            raise GenericError("Cannot resize NBD nodes")
        if length > self.length:
            raise GenericError("Cannot grow NBD nodes")

    def allocated_size(self) -> int | None:
        return None

    def unmaps_zeroes(self) -> bool:
        return bool(self._client.info.flags & nbd.SEND_WRITE_ZEROES)


def _address(options: NbdOpenOptions) -> Address:
    """Where the server is. Errors: GenericError."""
    path, host, port, server = options.path, options.host, options.port, options.server
    if path is None and host is None and port is None:
        if not isinstance(server, Mapping):
            raise GenericError("NBD server address missing")
        return address_of(from_wire(SocketAddress, server, keyval=True))
    if isinstance(server, Mapping):
        raise GenericError("Cannot use 'server' and path/host/port at the same time")
    if path is not None and host is not None:
        raise GenericError("path and host may not be used at the same time")
    if path is not None:
        if port is not None:
            raise GenericError("port may not be used without host")
        return UnixSocketAddress(path=path)
    if host is None:
        raise GenericError("NBD server address missing")
    return InetSocketAddress(host=host, port=port if port is not None else nbd_options.DEFAULT_PORT)
