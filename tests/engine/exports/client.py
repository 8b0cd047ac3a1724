"""A small NBD client that can say anything, also what no decent client would."""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from typing import NamedTuple

from engine.nbd import protocol as nbd


class Reply(NamedTuple):
    """An answer to a request. error: 0 or the number on the wire. data: what was read, holes filled with zeros."""

    cookie: int
    error: int
    data: bytes
    kinds: list[int]
    """Types of the chunks; empty for a simple reply."""


class Gone(Exception):
    """The server has closed the connection."""


class Client:
    """A connection to the server at *path*, past the first flags."""

    extended = False
    """Whether headers are extended."""
    offset = 0
    """Offset that the last extended header told."""

    def __init__(self, path: Path, flags: int = 3) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(str(path))
        assert self.receive(18) == nbd.MAGIC + nbd.OPTION_MAGIC + b"\0\3"
        self.send(struct.pack(">I", flags))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except ConnectionError:
            raise Gone from None

    def receive(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            try:
                more = self.socket.recv(length - len(data))
            except ConnectionError:
                raise Gone from None
            if not more:
                raise Gone
            data += more
        return data

    @property
    def gone(self) -> bool:
        """Wait for the server to close the connection; false when it says something instead."""
        try:
            return not self.socket.recv(1)
        except ConnectionError:
            return True

    # -- handshake -------------------------------------------------------------------------------------------

    def option(self, option: int, data: bytes = b"", length: int | None = None) -> list[tuple[int, bytes]]:
        """Send an option and return the replies, (type, data), up to the one that ends it."""
        self.send(nbd.OPTION.pack(nbd.OPTION_MAGIC, option, len(data) if length is None else length) + data)
        replies = []
        while True:
            magic, of, kind, size = nbd.REPLY.unpack(self.receive(nbd.REPLY.size))
            assert (magic, of) == (nbd.REPLY_MAGIC, option)
            replies.append((kind, self.receive(size)))
            if kind == nbd.REP_ACK or kind >> 31:
                return replies

    def structured(self) -> Client:
        assert self.option(nbd.OPT_STRUCTURED_REPLY) == [(nbd.REP_ACK, b"")]
        return self

    def extend(self) -> Client:
        """Agree on extended headers."""
        assert self.option(nbd.OPT_EXTENDED_HEADERS) == [(nbd.REP_ACK, b"")]
        self.extended = True
        return self

    def contexts(self, name: str, *queries: str) -> list[str]:
        """SET_META_CONTEXT; the names of those that there are."""
        data = string(name) + struct.pack(">I", len(queries)) + b"".join(map(string, queries))
        *found, last = self.option(nbd.OPT_SET_META_CONTEXT, data)
        assert last == (nbd.REP_ACK, b"")
        return [text[4:].decode() for _, text in found]

    def go(self, name: str = "") -> tuple[int, int]:
        """Choose an export; its size and flags."""
        *infos, last = self.option(nbd.OPT_GO, string(name) + b"\0\0")
        if last != (nbd.REP_ACK, b""):
            raise Gone(last)
        size, flags = next(struct.unpack(">QH", data[2:]) for _, data in infos if data[:2] == b"\0\0")
        return size, flags

    # -- transmission ----------------------------------------------------------------------------------------

    def request(
        self, kind: int, offset: int = 0, length: int = 0, flags: int = 0, data: bytes = b"", cookie: int = 7
    ) -> None:
        if not self.extended:
            self.send(nbd.REQUEST.pack(nbd.REQUEST_MAGIC, flags, kind, cookie, offset, length) + data)
            return
        if kind == nbd.CMD_WRITE:
            flags |= nbd.FLAG_PAYLOAD_LEN
        self.send(nbd.EXT_REQUEST.pack(nbd.EXT_REQUEST_MAGIC, flags, kind, cookie, offset, length) + data)

    def chunk(self, begun: bytes = b"") -> tuple[bool, int, int, bytes]:
        """The next chunk, of which *begun* has been received: whether it is the last, type, cookie, payload."""
        head = nbd.EXT_CHUNK if self.extended else nbd.CHUNK
        begun += self.receive(head.size - len(begun))
        if self.extended:
            magic, flags, kind, cookie, self.offset, size = head.unpack(begun)
            assert magic == nbd.EXT_CHUNK_MAGIC
        else:
            magic, flags, kind, cookie, size = head.unpack(begun)
            assert magic == nbd.CHUNK_MAGIC
        return bool(flags & nbd.CHUNK_DONE), kind, cookie, self.receive(size)

    def reply(self, length: int = 0) -> Reply:
        """The next answer; *length*: how many bytes a simple reply without an error brings."""
        magic = self.receive(4)
        if magic == struct.pack(">I", nbd.SIMPLE_MAGIC):
            assert not self.extended
            error, cookie = struct.unpack(">IQ", self.receive(12))
            return Reply(cookie, error, b"" if error else self.receive(length), [])
        pieces: dict[int, bytes] = {}
        kinds, error = [], 0
        while True:
            done, kind, cookie, body = self.chunk(magic)
            magic = b""
            kinds.append(kind)
            if kind == nbd.CHUNK_OFFSET_DATA:
                pieces[int.from_bytes(body[:8])] = body[8:]
            elif kind == nbd.CHUNK_OFFSET_HOLE:
                pieces[int.from_bytes(body[:8])] = bytes(int.from_bytes(body[8:]))
            elif kind == nbd.CHUNK_ERROR:
                error = int.from_bytes(body[:4])
            if done:
                return Reply(cookie, error, b"".join(pieces[at] for at in sorted(pieces)), kinds)

    def ask(self, kind: int, offset: int = 0, length: int = 0, flags: int = 0, data: bytes = b"") -> Reply:
        self.request(kind, offset, length, flags, data)
        return self.reply(length if kind == nbd.CMD_READ else 0)

    def read(self, offset: int, length: int, flags: int = 0) -> bytes:
        reply = self.ask(nbd.CMD_READ, offset, length, flags)
        assert not reply.error
        return reply.data

    def write(self, offset: int, data: bytes, flags: int = 0) -> int:
        """Write; the error, 0 for none."""
        return self.ask(nbd.CMD_WRITE, offset, len(data), flags, data).error

    def status(self, offset: int, length: int, flags: int = 0, data: bytes = b"") -> list[list[tuple[int, int]]]:
        """BLOCK_STATUS: the extents (length, flags) of each context."""
        self.request(nbd.CMD_BLOCK_STATUS, offset, length, flags, data)
        found = []
        while True:
            done, kind, _, body = self.chunk()
            if self.extended:
                assert kind == nbd.CHUNK_BLOCK_STATUS_EXT
                numbers = struct.unpack(f">{len(body) // 8 - 1}Q", body[8:])
                assert int.from_bytes(body[4:8]) == len(numbers) // 2
            else:
                assert kind == nbd.CHUNK_BLOCK_STATUS
                numbers = struct.unpack(f">{len(body) // 4 - 1}I", body[4:])
            found.append(list(zip(numbers[::2], numbers[1::2], strict=True)))
            if done:
                return found


def string(text: str) -> bytes:
    data = text.encode()
    return struct.pack(">I", len(data)) + data
