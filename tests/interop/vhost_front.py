"""A vhost-user front end with one queue, as well behaved as the test wants it."""

from __future__ import annotations

import array
import mmap
import os
import select
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.exports.vhost_user import wire

SIZE = 1 << 20
"""Bytes of memory shared. Descriptors are at 0, the rings behind them, data from DATA on."""
DATA = 0x10000
_AVAILABLE, _USED = 0x1000, 0x2000
_USER = 0x7F0000000000
_ENTRIES = 16
_TIMEOUT = 20


class Front:
    """A connection to the export at a Unix socket. call: what the export is to wake it by, in place of an eventfd."""

    def __init__(self, path: Path, call: int | None = None) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_TIMEOUT)
        self.sock.connect(str(path))
        self._fd = os.memfd_create("guest")
        os.ftruncate(self._fd, SIZE)
        self.memory = mmap.mmap(self._fd, SIZE)
        self._kick = os.eventfd(0, os.EFD_NONBLOCK)
        self._call = os.eventfd(0, os.EFD_NONBLOCK) if call is None else call
        self._posted = 0
        features = self._features() & ~(1 << wire.RING_EVENT_IDX)
        self._send(wire.SET_FEATURES, wire.U64.pack(features))
        region = wire.MEM_TABLE.pack(1, 0) + wire.REGION.pack(0, SIZE, _USER, 0)
        self._send(wire.SET_MEM_TABLE, region, [self._fd])
        self._send(wire.SET_VRING_NUM, wire.VRING_STATE.pack(0, _ENTRIES))
        addresses = (_USER, _USER + _USED, _USER + _AVAILABLE)
        self._send(wire.SET_VRING_ADDR, wire.VRING_ADDR.pack(0, 0, *addresses, 0))
        self._send(wire.SET_VRING_CALL, wire.U64.pack(0), [self._call])
        self._send(wire.SET_VRING_KICK, wire.U64.pack(0), [self._kick])
        self._send(wire.SET_VRING_ENABLE, wire.VRING_STATE.pack(0, 1))

    def _features(self) -> int:
        self._send(wire.GET_FEATURES)
        answer = self.sock.recv(wire.HEADER.size + 8, socket.MSG_WAITALL)
        return int(wire.U64.unpack_from(answer, wire.HEADER.size)[0])

    def _send(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.sendmsg([wire.HEADER.pack(request, wire.VERSION, len(payload)) + payload], rights)

    def describe(self, index: int, address: int, length: int, flags: int = 0, follows: int = 0) -> None:
        """Write a descriptor."""
        wire.DESC.pack_into(self.memory, wire.DESC.size * index, address, length, flags, follows)

    def post(self, head: int) -> None:
        """Have the export do the request that begins at the descriptor *head*."""
        struct.pack_into("<H", self.memory, _AVAILABLE + 4 + 2 * (self._posted % _ENTRIES), head)
        self._posted += 1
        struct.pack_into("<H", self.memory, _AVAILABLE + 2, self._posted)
        os.eventfd_write(self._kick, 1)

    def done(self) -> bool:
        """Whether all that was posted has been done."""
        return bool(struct.unpack_from("<H", self.memory, _USED + 2)[0] == self._posted)

    def request(self, kind: int, sector: int = 0, data: bytes = b"", wanted: int = 0) -> tuple[int, bytes]:
        """Do a request and wait for it: its status, and what it brought."""
        memory = self.memory
        memory[DATA : DATA + 16] = wire.BLK_HEAD.pack(kind, 0, sector)
        body = DATA + 512
        memory[body : body + len(data)] = data
        both = wire.DESC_NEXT | (wire.DESC_WRITE if wanted else 0)
        self.describe(0, DATA, 16, wire.DESC_NEXT, 1 if data or wanted else 2)
        self.describe(1, body, len(data) or wanted, both, 2)
        self.describe(2, DATA + 16, 1, wire.DESC_WRITE)
        self.post(0)
        ready, _, _ = select.select([self._call], [], [], _TIMEOUT)
        assert ready
        assert self.done()
        os.eventfd_read(self._call)
        return memory[DATA + 16], memory[body : body + wanted]

    def cut_off(self) -> bool:
        """Whether the export hangs up."""
        try:
            return not self.sock.recv(1)
        except ConnectionError:
            return True

    def close(self) -> None:
        """Be gone, as a machine that was killed."""
        self.sock.close()
        for fd in (self._fd, self._kick, self._call):
            os.close(fd)

    def __enter__(self) -> Front:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()
