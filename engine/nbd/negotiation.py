"""The client's side of the NBD handshake (doc/proto.md of the NBD project); error texts are those of QEMU's client."""

from __future__ import annotations

import ssl
import struct
from dataclasses import dataclass
from typing import Final, NoReturn

from engine.errors import GenericError, os_error_text
from engine.nbd import protocol as nbd
from engine.nbd.stream import Stream

_OLD_STYLE: Final = 0x00420281861253
_NEW_STYLE: Final = int.from_bytes(nbd.OPTION_MAGIC, "big")
_INITIAL: Final = int.from_bytes(nbd.MAGIC, "big")
_MAX_REPLY: Final = 32 << 20
_OPTIONS: Final = {
    nbd.OPT_EXPORT_NAME: "export name",
    nbd.OPT_ABORT: "abort",
    nbd.OPT_LIST: "list",
    nbd.OPT_STARTTLS: "starttls",
    nbd.OPT_INFO: "info",
    nbd.OPT_GO: "go",
    nbd.OPT_STRUCTURED_REPLY: "structured reply",
    nbd.OPT_LIST_META_CONTEXT: "list meta context",
    nbd.OPT_SET_META_CONTEXT: "set meta context",
    nbd.OPT_EXTENDED_HEADERS: "extended headers",
}


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the client asks a server for. context: the metadata context that BLOCK_STATUS is to tell of."""

    export: str = ""
    context: str = "base:allocation"
    tls: ssl.SSLContext | None = None
    hostname: str | None = None


@dataclass(slots=True)
class ExportInfo:
    """What a server tells of an export; sizes in bytes.

    extended: lengths have 64 bits. context_id: None when BLOCK_STATUS can't be asked.
    """

    size: int = 0
    flags: int = 0
    min_block: int = 1
    opt_block: int = 0
    max_block: int = 0
    structured: bool = False
    extended: bool = False
    context_id: int | None = None


def negotiate(stream: Stream, wishes: Wishes) -> tuple[Stream, ExportInfo]:
    """Come to the transmission of an export. The stream returned is the one to use. Errors: GenericError."""
    return _Negotiation(stream, wishes).run()


class _Unsupported(Exception):
    """The server does not know the option."""


class _Refusal(GenericError):
    """The server answers an option with an error."""


class _Negotiation:
    def __init__(self, stream: Stream, wishes: Wishes) -> None:
        self._stream = stream
        self._wishes = wishes
        self._info = ExportInfo()
        self._no_zeroes = False

    def run(self) -> tuple[Stream, ExportInfo]:
        magic = self._number(">Q", "Failed to read initial magic")
        if magic != _INITIAL:
            raise GenericError(f"Bad initial magic received: 0x{magic:016x}")
        magic = self._number(">Q", "Failed to read server magic")
        if magic == _OLD_STYLE:
            self._old_style()
        elif magic == _NEW_STYLE:
            self._new_style()
        else:
            raise GenericError(f"Bad server magic received: 0x{magic:016x}")
        return self._stream, self._info

    # -- bytes -----------------------------------------------------------------------------------------------

    def _take(self, size: int, failure: str) -> bytes:
        try:
            if size <= 4096:
                return bytes(self._stream.take(size))
            data = bytearray(size)
            self._stream.take_into(memoryview(data))
            return bytes(data)
        except TimeoutError:
            raise GenericError(f"{failure}: Connection timed out") from None
        except ConnectionError as exc:
            if exc.errno is not None:
                raise GenericError(f"{failure}: Unable to read from socket: {os_error_text(exc)}") from None
            raise GenericError(f"{failure}: Unexpected end-of-file before all data were read") from None
        except OSError as exc:
            raise _failed(failure, exc) from None

    def _number(self, layout: str, failure: str) -> int:
        (value,) = struct.unpack(layout, self._take(struct.calcsize(layout), failure))
        return int(value)

    def _send(self, data: bytes, failure: str) -> None:
        try:
            self._stream.send([data])
        except ConnectionError as exc:
            raise GenericError(f"{failure}: Unable to write to socket: {os_error_text(exc)}") from None
        except OSError as exc:
            raise _failed(failure, exc) from None

    # -- styles ----------------------------------------------------------------------------------------------

    def _old_style(self) -> None:
        if self._wishes.tls is not None:
            raise GenericError("Server does not support STARTTLS")
        if self._wishes.export:
            raise GenericError("Server does not support non-empty export names")
        self._info.size = self._number(">Q", "Failed to read export length")
        flags = self._number(">I", "Failed to read export flags")
        if flags & ~0xFFFF:
            raise GenericError(f"Unexpected export flags 0x{flags:x}")
        self._info.flags = flags
        self._take(124, "Failed to read reserved block")

    def _new_style(self) -> None:
        flags = self._number(">H", "Failed to read server flags")
        self._no_zeroes = bool(flags & nbd.FLAG_NO_ZEROES)
        ours = flags & (nbd.FLAG_FIXED_NEWSTYLE | nbd.FLAG_NO_ZEROES)
        self._send(struct.pack(">I", ours), "Failed to send clientflags field")
        fixed = bool(flags & nbd.FLAG_FIXED_NEWSTYLE)
        if self._wishes.tls is not None:
            if not fixed:
                raise GenericError("Server does not support STARTTLS")
            self._start_tls(self._wishes.tls)
        if not fixed:
            self._export_name()
            return
        self._info.extended = self._ask(nbd.OPT_EXTENDED_HEADERS, needed=False)
        self._info.structured = self._info.extended or self._ask(nbd.OPT_STRUCTURED_REPLY, needed=False)
        if self._info.structured:
            self._set_context()
        try:
            self._go()
        except _Unsupported:
            self._find_in_list()
            self._export_name()

    def _start_tls(self, context: ssl.SSLContext) -> None:
        if not self._ask(nbd.OPT_STARTTLS, needed=True):
            raise GenericError("Server don't support STARTTLS option")
        self._stream = self._stream.start_tls(context, self._wishes.hostname)

    # -- options ---------------------------------------------------------------------------------------------

    def _option(self, option: int, data: bytes = b"") -> None:
        self._send(nbd.OPTION.pack(nbd.OPTION_MAGIC, option, len(data)) + data, "Failed to send option request header")

    def _reply(self, option: int) -> tuple[int, bytes]:
        """Type and data of the answer to *option*. Errors: _Unsupported, GenericError (an error reply)."""
        head = self._take(nbd.REPLY.size, "Failed to read option reply")
        magic, told, kind, length = nbd.REPLY.unpack(head)
        if magic != nbd.REPLY_MAGIC:
            raise GenericError("Unexpected option reply magic")
        if told != option:
            raise GenericError(
                f"Unexpected option type {told} ({_OPTIONS.get(told, '<unknown>')}), "
                f"expected {option} ({_OPTIONS[option]})"
            )
        if length > _MAX_REPLY:
            raise GenericError(f"Server's reply to option {option} ({_OPTIONS[option]}) is too long")
        data = self._take(length, "Failed to read option reply")
        if kind & 1 << 31:
            self._refused(option, kind, data)
        return kind, data

    def _refused(self, option: int, kind: int, message: bytes) -> NoReturn:
        name = f"option {option} ({_OPTIONS[option]})"
        if kind == nbd.REP_ERR_UNSUP:
            raise _Unsupported
        text = {
            nbd.REP_ERR_POLICY: f"Denied by server for {name}",
            nbd.REP_ERR_INVALID: f"Invalid parameters for {name}",
            nbd.REP_ERR_PLATFORM: f"Server lacks support for {name}",
            nbd.REP_ERR_TLS_REQD: f"Server requires TLS for {name}",
            nbd.REP_ERR_UNKNOWN: "Requested export not available",
            nbd.REP_ERR_SHUTDOWN: f"Server shutting down before {name}",
            nbd.REP_ERR_BLOCK_SIZE_REQD: f"Server requires INFO_BLOCK_SIZE for {name}",
        }.get(kind, f"Unknown error code when asking for {name}")
        hints = []
        if kind == nbd.REP_ERR_TLS_REQD:
            hints.append("Did you forget a valid tls-creds?")
        if message and len(message) <= nbd.MAX_STRING:
            hints.append(f"server reported: {message.decode(errors='replace')}")
        raise _Refusal(text, "\n".join(hints) or None)

    def _ask(self, option: int, *, needed: bool) -> bool:
        """Whether the server agrees to an option without data; needed: its reasons not to are errors.

        Errors: GenericError.
        """
        self._option(option)
        try:
            kind, data = self._reply(option)
        except _Unsupported:
            return False
        except _Refusal:
            if needed:
                raise
            return False
        if kind != nbd.REP_ACK:
            raise GenericError(f"Server answered option {option} ({_OPTIONS[option]}) with unexpected reply {kind:x}")
        if data:
            raise GenericError(f"Server answered option {option} ({_OPTIONS[option]}) with unexpected length")
        return True

    def _set_context(self) -> None:
        option, wanted = nbd.OPT_SET_META_CONTEXT, self._wishes.context.encode()
        name = self._wishes.export.encode()
        data = struct.pack(">I", len(name)) + name + struct.pack(">II", 1, len(wanted)) + wanted
        self._option(option, data)
        while True:
            try:
                kind, data = self._reply(option)
            except (_Unsupported, _Refusal):
                return  # what is wrong with the export, GO says better
            if kind == nbd.REP_ACK:
                return
            if kind != nbd.REP_META_CONTEXT or len(data) < 4:
                raise GenericError(
                    f"Unexpected reply type {kind:x} ({len(data)} bytes), expected {nbd.REP_META_CONTEXT:x}"
                )
            if data[4:] != wanted:
                raise GenericError(
                    f"Failed to negotiate query '{self._wishes.context}', "
                    f"server answered with different context '{data[4:].decode(errors='replace')}'"
                )
            self._info.context_id = int.from_bytes(data[:4], "big")

    def _go(self) -> None:
        name = self._wishes.export.encode()
        asked = struct.pack(">I", len(name)) + name + struct.pack(">HH", 1, nbd.INFO_BLOCK_SIZE)
        self._option(nbd.OPT_GO, asked)
        found = False
        while True:
            kind, data = self._reply(nbd.OPT_GO)
            if kind == nbd.REP_ACK:
                if not found:
                    raise GenericError("broken server omitted NBD_INFO_EXPORT")
                return
            if kind != nbd.REP_INFO:
                raise GenericError(f"unexpected reply type {kind:x} (<unknown>), expected {nbd.REP_INFO:x}")
            if len(data) < 2:
                raise GenericError(f"info length {len(data)} for option is too short")
            found |= self._learn(int.from_bytes(data[:2], "big"), data[2:])

    def _learn(self, kind: int, data: bytes) -> bool:
        """Take a piece of information in; tell whether it was the export's size and flags."""
        info = self._info
        if kind == nbd.INFO_EXPORT:
            if len(data) != 10:
                raise GenericError(f"remaining export info len {len(data)} is unexpected size")
            info.size, info.flags = struct.unpack(">QH", data)
            if info.size % info.min_block:
                raise GenericError(f"export size {info.size} is not multiple of minimum block size {info.min_block}")
            return True
        if kind == nbd.INFO_BLOCK_SIZE:
            if len(data) != 12:
                raise GenericError(f"remaining export info len {len(data)} is unexpected size")
            info.min_block, info.opt_block, info.max_block = struct.unpack(">III", data)
            if not _power_of_two(info.min_block):
                raise GenericError(f"server minimum block size {info.min_block} is not a power of two")
            if not _power_of_two(info.opt_block) or info.opt_block < info.min_block:
                raise GenericError(f"server preferred block size {info.opt_block} is not valid")
            if info.max_block < info.min_block:
                raise GenericError(f"server maximum block size {info.max_block} is not valid")
        return False

    def _find_in_list(self) -> None:
        """Make sure that there is the export: the option below can't tell."""
        wanted = self._wishes.export.encode()
        self._option(nbd.OPT_LIST)
        found, nothing = False, True
        while True:
            try:
                kind, data = self._reply(nbd.OPT_LIST)
            except _Unsupported:
                return  # such a server has one export, and does not care for the name
            if kind == nbd.REP_ACK:
                break
            if kind != nbd.REP_SERVER or len(data) < 4:
                raise GenericError(f"Unexpected reply type {kind:x} (<unknown>), expected {nbd.REP_SERVER:x}")
            nothing = False
            size = int.from_bytes(data[:4], "big")
            if size > len(data) - 4:
                raise GenericError("incorrect option name length")
            found |= data[4 : 4 + size] == wanted
        if not found and not (nothing and not wanted):
            raise GenericError(f"No export with name '{self._wishes.export}' available")

    def _export_name(self) -> None:
        self._option(nbd.OPT_EXPORT_NAME, self._wishes.export.encode())
        self._info.size = self._number(">Q", "Failed to read export length")
        self._info.flags = self._number(">H", "Failed to read export flags")
        if not self._no_zeroes:
            self._take(124, "Failed to read reserved block")


def _power_of_two(value: int) -> bool:
    return value > 0 and not value & (value - 1)


def _failed(doing: str, exc: OSError) -> GenericError:
    """The error for *exc*, which happened at *doing*."""
    return GenericError(f"{doing}: {os_error_text(exc)}", "\n".join(getattr(exc, "__notes__", ())) or None)
