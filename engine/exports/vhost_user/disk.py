"""virtio-blk: what the requests of a queue do to the disk."""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from engine.exports.vhost_user import wire
from engine.graph.driver import WriteFlag

if TYPE_CHECKING:
    from engine.exports.vhost_user.virtqueue import Element
    from engine.graph.backend import BlockBackend

log = logging.getLogger("engine.vhost-user")

SECTOR: Final = 512
_SEGMENTS: Final = 128 - 2
_MAX_SECTORS: Final = (1 << 31) // SECTOR
_MAY_UNMAP = int(WriteFlag.MAY_UNMAP)
_UNMAP: Final = 1
_SERIAL: Final = b"vhost_user_blk".ljust(wire.ID_BYTES, b"\0")
"""Every disk's, as it is QEMU's."""


class Disk:
    """The device behind all queues of a connection. Requests come from any thread.

    block: logical block size, bytes.
    """

    def __init__(self, backend: BlockBackend, *, writable: bool, block: int, queues: int) -> None:
        self._backend = backend
        self._writable = writable
        self._block = block
        self._queues = queues

    def features(self) -> int:
        """Bits of the virtio features that the device has."""
        bits = [
            wire.BLK_SEG_MAX,
            wire.BLK_TOPOLOGY,
            wire.BLK_BLK_SIZE,
            wire.BLK_FLUSH,
            wire.BLK_CONFIG_WCE,
            wire.BLK_MQ,
        ]
        bits += [wire.BLK_DISCARD, wire.BLK_WRITE_ZEROES] if self._writable else [wire.BLK_RO]
        return sum(1 << bit for bit in bits)

    def config(self) -> bytes:
        """The configuration space."""
        sectors = self._sectors()
        return wire.BLK_CONFIG.pack(
            *(sectors, 0, _SEGMENTS, 0, 0, 0, self._block, 0, 0, 1, 1, self._backend.write_cache, 0, self._queues),
            *(_MAX_SECTORS, 1, self._block // SECTOR, _MAX_SECTORS, 1, 1),
        )

    def _sectors(self) -> int:
        return -(-self._backend.node.length // SECTOR)

    def set_write_cache(self, on: bool) -> None:
        """The driver chooses between writeback and writethrough."""
        self._backend.write_cache = on

    def serve(self, element: Element) -> int:
        """Do a request; returns how many bytes were written to the driver's memory."""
        if not element.writable or len(element.writable[-1]) < 1:
            return 0  # there is no place for the answer
        last = element.writable[-1]
        status, data = last[len(last) - 1 :], [*element.writable[:-1], last[: len(last) - 1]]
        written = 0
        try:
            kind, sector, readable = _head(element.readable)
            written = self._do(kind, sector, readable, [part for part in data if len(part)])
            status[0] = wire.STATUS_OK
        except OSError as exc:
            status[0] = wire.STATUS_UNSUPP if exc.errno == errno.ENOTSUP else wire.STATUS_IOERR
        except Exception:
            log.exception("vhost-user-blk")
            status[0] = wire.STATUS_IOERR
        return written + 1

    def _do(self, kind: int, sector: int, readable: list[memoryview], writable: list[memoryview]) -> int:
        if kind == wire.BLK_IN:
            self._check(sector, writable)
            return self._read(sector * SECTOR, writable)
        if kind == wire.BLK_FLUSH_REQUEST:
            self._backend.flush()
            return 0
        if kind == wire.BLK_GET_ID:
            return _scatter(_SERIAL, writable)
        if kind not in (wire.BLK_OUT, wire.BLK_DISCARD_REQUEST, wire.BLK_WRITE_ZEROES_REQUEST):
            raise OSError(errno.ENOTSUP, "unknown request")
        if not self._writable:
            raise OSError(errno.EROFS, "the disk is read-only")
        if kind == wire.BLK_OUT:
            self._check(sector, readable)
            offset = sector * SECTOR
            for part in readable:
                self._backend.write(offset, part)
                offset += len(part)
        else:
            self._range(kind, b"".join(readable))
        return 0

    def _check(self, sector: int, parts: Sequence[memoryview]) -> None:
        size = sum(map(len, parts))
        if size % SECTOR or sector % (self._block // SECTOR):
            raise OSError(errno.EINVAL, "a request that is not aligned")
        if sector + size // SECTOR > self._sectors():
            raise OSError(errno.EINVAL, "a request beyond the end")

    def _read(self, offset: int, writable: list[memoryview]) -> int:
        start = offset
        for part in writable:
            self._backend.read(offset, part)
            offset += len(part)
        return offset - start

    def _range(self, kind: int, data: bytes) -> None:
        if len(data) < wire.BLK_RANGE.size:
            raise OSError(errno.EINVAL, "not a whole range")
        if len(data) > wire.BLK_RANGE.size:
            raise OSError(errno.ENOTSUP, "one range at a time")
        sector, count, flags = wire.BLK_RANGE.unpack(data)
        if count > _MAX_SECTORS or sector + count > self._sectors():
            raise OSError(errno.EINVAL, "a range beyond the end")
        if kind == wire.BLK_DISCARD_REQUEST:
            if flags:
                raise OSError(errno.ENOTSUP, "unknown flags")
            self._backend.discard(sector * SECTOR, count * SECTOR)
        else:
            if flags & ~_UNMAP:
                raise OSError(errno.ENOTSUP, "unknown flags")
            self._backend.write_zeroes(sector * SECTOR, count * SECTOR, _MAY_UNMAP if flags & _UNMAP else 0)


def _head(readable: list[memoryview]) -> tuple[int, int, list[memoryview]]:
    """Kind and sector of a request, and what it brings. The head may lie in several pieces."""
    size = wire.BLK_HEAD.size
    head, rest = b"", list(readable)
    while len(head) < size:
        if not rest:
            raise OSError(errno.EINVAL, "a request without a head")
        part = rest.pop(0)
        need = size - len(head)
        head += part[:need]
        if len(part) > need:
            rest.insert(0, part[need:])
    kind, _, sector = wire.BLK_HEAD.unpack(head)
    return kind, sector, rest


def _scatter(data: bytes, parts: list[memoryview]) -> int:
    done = 0
    for part in parts:
        piece = data[done : done + len(part)]
        part[: len(piece)] = piece
        done += len(piece)
    return done
