"""The log of a VHDX file: what a writer that was cut off left in it is brought to where it belongs."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine.drivers.format.qcow2.storage import read_bytes
from engine.drivers.format.vhdx.crc32c import is_sealed
from engine.drivers.format.vhdx.layout import MIB, Header, invalid
from engine.errors import GenericError

if TYPE_CHECKING:
    from engine.drivers.format.qcow2.storage import Child

SECTOR: Final = 4096
_ENTRY: Final = struct.Struct("<4sIIIQII16sQQ")
_DESCRIPTOR: Final = struct.Struct("<4sIQQQ")
_MAX_ENTRY: Final = 16 * MIB
_BUDGET: Final = 64 * MIB
"""Bytes looked at before a log counts as broken: whatever it holds, opening must not take for ever."""


@dataclass
class Entry:
    """One entry: start, size, tail in the log; sequence; descriptors and data; file lengths when it was written."""

    start: int
    tail: int
    sequence: int
    flushed_size: int
    last_size: int
    descriptors: int
    raw: bytes


class _Log:
    def __init__(self, file: Child, header: Header) -> None:
        self.file = file
        self.header = header
        self.budget = _BUDGET

    def bytes_at(self, start: int, size: int) -> bytes:
        """*size* bytes of the log, which goes on at its begin after its end."""
        self.budget -= size
        if self.budget < 0:
            raise invalid()
        length, base = self.header.log_length, self.header.log_offset
        first = min(size, length - start)
        raw = bytes(read_bytes(self.file, base + start, first))
        return raw + bytes(read_bytes(self.file, base, size - first)) if first < size else raw

    def entry(self, start: int) -> Entry | None:
        """The entry at *start*, if there is one that is whole and belongs to this log."""
        head = self.bytes_at(start, SECTOR)
        magic, _, size, tail, sequence, count, _, guid, flushed, last = _ENTRY.unpack_from(head)
        if magic != b"loge" or guid != self.header.log_guid or not sequence:
            return None
        if size % SECTOR or not SECTOR <= size <= min(self.header.log_length, _MAX_ENTRY):
            return None
        if tail % SECTOR or tail >= self.header.log_length or _ENTRY.size + count * _DESCRIPTOR.size > size:
            return None
        raw = self.bytes_at(start, size)
        if not is_sealed(raw):
            return None
        return Entry(start, tail, sequence, flushed, last, count, raw)

    def newest(self) -> list[Entry]:
        """The entries to be replayed, oldest first: of the run with the highest number, from its tail on."""
        length = self.header.log_length
        best: list[Entry] = []
        start = 0
        while start < length:
            first = self.entry(start)
            if first is None:
                start += SECTOR
                continue
            run = [first]
            taken = len(first.raw)
            while taken < length:
                following = self.entry((start + taken) % length)
                if following is None or following.sequence != run[-1].sequence + 1:
                    break
                taken += len(following.raw)
                if taken > length:
                    break
                run.append(following)
            starts = [entry.start for entry in run]
            if run[-1].tail in starts and (not best or run[-1].sequence > best[-1].sequence):
                best = run[starts.index(run[-1].tail) :]
            start += taken
        return best

    def apply(self, entry: Entry) -> None:
        """Write what one entry says. Errors: OSError, EINVAL if it contradicts itself."""
        raw = entry.raw
        at = -(-(_ENTRY.size + entry.descriptors * _DESCRIPTOR.size) // SECTOR) * SECTOR
        for number in range(entry.descriptors):
            kind, trailing, middle, offset, sequence = _DESCRIPTOR.unpack_from(
                raw, _ENTRY.size + number * _DESCRIPTOR.size
            )
            if sequence != entry.sequence or offset % SECTOR or offset >= 1 << 62:
                raise invalid()
            if kind == b"zero":
                if middle % SECTOR or middle >= 1 << 62:
                    raise invalid()
                self.file.write_zeroes(offset, middle)
            elif kind == b"desc":
                sector = raw[at : at + SECTOR]
                numbers = sector[4:8] + sector[SECTOR - 4 :]
                if len(sector) < SECTOR or sector[:4] != b"data":
                    raise invalid()
                if int.from_bytes(numbers[:4], "little") << 32 | int.from_bytes(numbers[4:], "little") != sequence:
                    raise invalid()
                # The marks of the sector in the log stand where these bytes of the data belong.
                data = middle.to_bytes(8, "little") + sector[8 : SECTOR - 4] + trailing.to_bytes(4, "little")
                self.file.write(offset, memoryview(data))
                at += SECTOR
            else:
                raise invalid()


def check_place(header: Header) -> None:
    """Whether the log is where one can be. Errors: OSError EINVAL."""
    if header.log_offset < MIB or header.log_offset % MIB or header.log_offset >= 1 << 62:
        raise invalid()
    if header.log_length == 0 or header.log_length % MIB:
        raise invalid()


def replay(file: Child, header: Header, filename: str, *, writable: bool) -> bool:
    """Replay the log, if there is anything in it; whether there was. The header still names the log afterwards.

    Errors: GenericError, OSError.
    """
    log = _Log(file, header)
    entries = log.newest()
    if not entries:
        return False
    if not writable:
        raise GenericError(
            f"VHDX image file '{filename}' opened read-only, but contains a log that needs to be replayed"
        )
    if file.length < entries[-1].flushed_size:
        raise invalid()
    for entry in entries:
        log.apply(entry)
    if file.length < entries[-1].last_size < 1 << 62:
        file.truncate(-(-entries[-1].last_size // MIB) * MIB)
    file.flush()
    return True
