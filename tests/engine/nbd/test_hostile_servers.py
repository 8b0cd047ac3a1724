"""The client on servers that say anything: an error each time, and nothing that hangs or stays."""

from __future__ import annotations

import contextlib
import random
import re
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import GenericError
from engine.nbd import protocol as nbd
from engine.nbd.channel import Channel, ConnectionLost
from engine.nbd.negotiation import Wishes, negotiate
from engine.nbd.stream import Stream

STREAMS = 10_000
EDGES = (0, 1, 2, 8, 4096, 65536, 32 << 20, (64 << 20) + 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
SIZE = 1 << 20


def reply(option: int, kind: int, data: bytes = b"") -> bytes:
    return nbd.REPLY.pack(nbd.REPLY_MAGIC, option, kind, len(data)) + data


def good_streams() -> Iterator[bytes]:
    """What decent servers say to talk(): with extended headers, structured replies, neither; old ones."""
    greeting = nbd.MAGIC + nbd.OPTION_MAGIC
    flags = nbd.HAS_FLAGS | nbd.SEND_FLUSH | nbd.SEND_WRITE_ZEROES
    export = struct.pack(">HQH", nbd.INFO_EXPORT, SIZE, flags)
    blocks = struct.pack(">HIII", nbd.INFO_BLOCK_SIZE, 1, 4096, 32 << 20)
    infos = reply(nbd.OPT_GO, nbd.REP_INFO, export) + reply(nbd.OPT_GO, nbd.REP_INFO, blocks)
    go = infos + reply(nbd.OPT_GO, nbd.REP_ACK)
    context = reply(nbd.OPT_SET_META_CONTEXT, nbd.REP_META_CONTEXT, b"\0\0\0\5base:allocation")
    context += reply(nbd.OPT_SET_META_CONTEXT, nbd.REP_ACK)
    extended, refused = (reply(nbd.OPT_EXTENDED_HEADERS, kind) for kind in (nbd.REP_ACK, nbd.REP_ERR_UNSUP))
    chunks, none = (reply(nbd.OPT_STRUCTURED_REPLY, kind) for kind in (nbd.REP_ACK, nbd.REP_ERR_UNSUP))
    yield greeting + b"\0\3" + extended + context + go + answers(nbd.EXT_CHUNK, nbd.EXT_CHUNK_MAGIC)
    yield greeting + b"\0\3" + refused + chunks + context + go + answers(nbd.CHUNK, nbd.CHUNK_MAGIC)
    simple = b"".join(
        nbd.SIMPLE.pack(nbd.SIMPLE_MAGIC, 0, cookie) + bytes(70_000 if cookie == 1 else 0) for cookie in (1, 2, 3, 4)
    )
    yield greeting + b"\0\3" + refused + none + go + simple
    listed = reply(nbd.OPT_LIST, nbd.REP_SERVER, bytes(4)) + reply(nbd.OPT_LIST, nbd.REP_ACK)
    go_unknown = reply(nbd.OPT_GO, nbd.REP_ERR_UNSUP)
    yield greeting + b"\0\3" + refused + none + go_unknown + listed + struct.pack(">QH", SIZE, flags) + simple
    yield greeting + b"\0\0" + struct.pack(">QH", SIZE, flags) + bytes(124) + simple
    yield nbd.MAGIC + struct.pack(">QQI", 0x00420281861253, SIZE, flags) + bytes(124) + simple


def answers(layout: struct.Struct, magic: int) -> bytes:
    """Chunks for a read of 70,000 bytes at 0, a write, a flush, and a status."""
    wide = layout is nbd.EXT_CHUNK

    def chunk(cookie: int, kind: int, data: bytes, done: int = 1) -> bytes:
        place = (cookie, 0, len(data)) if wide else (cookie, len(data))
        return layout.pack(magic, done, kind, *place) + data

    status = struct.pack(">IIQQ", 5, 1, SIZE, 3) if wide else struct.pack(">III", 5, SIZE, 3)
    return (
        chunk(1, nbd.CHUNK_OFFSET_DATA, bytes(8) + b"d" * 4096, 0)
        + chunk(1, nbd.CHUNK_OFFSET_HOLE, struct.pack(">QI", 4096, 60_000), 0)
        + chunk(1, nbd.CHUNK_OFFSET_DATA, (64096).to_bytes(8) + b"e" * 5904)
        + chunk(2, nbd.CHUNK_NONE, b"")
        + chunk(3, nbd.CHUNK_ERROR, struct.pack(">IH", nbd.ENOSPC, 4) + b"full")
        + chunk(4, nbd.CHUNK_BLOCK_STATUS_EXT if wide else nbd.CHUNK_BLOCK_STATUS, status)
    )


def talk(stream: bytes) -> str:
    """Connect to a server that says *stream* and no more; the last thing that went well."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.setblocking(False)
        said = threading.Thread(target=say, args=(theirs, stream)) if len(stream) > 100_000 else None
        if said is None:
            say(theirs, stream)
        else:
            said.start()
        connection = Stream(ours)
        connection.set_timeout(20)
        try:
            connection, info = negotiate(connection, Wishes())
        except GenericError:
            connection.close()
            return "connected"
        finally:
            if said is not None:
                said.join()
        channel, state = Channel(connection, info), "negotiated"
        try:
            with contextlib.suppress(OSError):
                channel.read(0, memoryview(bytearray(70_000)))
                state = "read"
            with contextlib.suppress(OSError):
                channel.write(0, memoryview(bytes(512)), 0)
                state = "written"
            with contextlib.suppress(OSError):
                channel.simple(nbd.CMD_FLUSH, 0, 0)
            if info.context_id is not None:
                with contextlib.suppress(OSError):
                    run, _ = channel.block_status(0, SIZE)
                    assert 0 < run <= SIZE
                    state = "status"
        except ConnectionLost:
            pass
        channel.close()
        return state


def say(sock: socket.socket, stream: bytes) -> None:
    sock.settimeout(20)
    with contextlib.suppress(OSError):
        sock.sendall(stream)
        sock.shutdown(socket.SHUT_WR)


def malformed(good: list[bytes], chance: random.Random) -> bytes:
    if chance.random() < 0.05:
        return chance.randbytes(chance.randrange(300))
    stream = bytearray(chance.choice(good))
    whole = len(stream)
    for _ in range(chance.randrange(1, 5)):
        # Most of the long streams is data, where nothing matters.
        at = chance.randrange(min(len(stream), 400) or 1) if chance.random() < 0.7 else chance.randrange(whole)
        match chance.randrange(6):
            case 0:
                stream[at : at + 1] = chance.randbytes(1)
            case 1:
                del stream[at:]
            case 2:
                del stream[at : at + chance.randrange(20)]
            case 3:
                stream[at:at] = chance.randbytes(chance.randrange(20))
            case 4:
                stream[at : at + 4] = struct.pack(">I", chance.choice(EDGES))
            case _:
                stream[at : at + 8] = struct.pack(">Q", chance.choice(EDGES) << chance.choice((0, 31, 32)))
    return bytes(stream)


def memory() -> int:
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


@pytest.mark.parametrize("number", range(6))
def test_good_streams_are_understood(number: int) -> None:
    assert talk(list(good_streams())[number]) == ("status" if number < 2 else "written")


def test_malformed_servers(caplog: pytest.LogCaptureFixture) -> None:
    chance, good = random.Random(4), list(good_streams())
    found = {"connected": 0, "negotiated": 0, "read": 0, "written": 0, "status": 0}
    for number in range(STREAMS):
        if number == STREAMS // 4:
            before = memory()
        found[talk(malformed(good, chance))] += 1
    assert all(found.values()), found  # mistakes everywhere
    assert memory() - before < 16 << 20
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("nbd")]
    assert not caplog.records
