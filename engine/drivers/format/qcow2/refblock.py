"""Refcount blocks in memory: one class for entries of a byte and more, one for packed entries of 1, 2 and 4 bits."""

from __future__ import annotations

import abc
import sys
from array import array
from typing import Final

from engine.drivers.format.qcow2.cache import Table

_TYPECODES: Final = {3: "B", 4: "H", 5: "I", 6: "Q"}


class RefcountBlock(Table):
    """The refcounts of as many consecutive host clusters as a cluster holds entries."""

    __slots__ = ("_dirty",)

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self._dirty = False

    @property
    def dirty(self) -> bool:
        return self._dirty

    @dirty.setter
    def dirty(self, value: bool) -> None:
        self._dirty = value

    @abc.abstractmethod
    def get(self, index: int) -> int:
        """Refcount of entry *index*."""

    @abc.abstractmethod
    def fill(self, index: int, count: int, value: int) -> None:
        """Set *count* entries from *index* to *value*."""

    @abc.abstractmethod
    def all_equal(self, index: int, count: int, value: int) -> bool:
        """Whether *count* entries from *index* are all *value*."""

    @abc.abstractmethod
    def find_free(self, index: int) -> int:
        """The first entry from *index* on that is 0, or -1."""

    @abc.abstractmethod
    def free_run(self, index: int, limit: int) -> int:
        """How many entries from *index* on are 0, at most *limit*."""

    @abc.abstractmethod
    def last_used(self) -> int:
        """The last entry that is not 0, or -1."""

    @abc.abstractmethod
    def count_used(self) -> int:
        """How many entries are not 0."""

    def is_lone(self, index: int) -> bool:
        """Whether no entry before *index* is used."""
        return self.free_run(0, index) == index

    @abc.abstractmethod
    def to_disk(self) -> bytes:
        """The block as on disk."""


class WideBlock(RefcountBlock):
    """Entries of 8, 16, 32 or 64 bits."""

    __slots__ = ("values",)

    def __init__(self, offset: int, data: bytes | bytearray, order: int) -> None:
        super().__init__(offset)
        self.values = array(_TYPECODES[order], bytes(data))
        if order > 3 and sys.byteorder == "little":
            self.values.byteswap()

    def get(self, index: int) -> int:
        return self.values[index]

    def fill(self, index: int, count: int, value: int) -> None:
        values = self.values
        if count == 1:
            values[index] = value
        else:
            values[index : index + count] = array(values.typecode, [value]) * count

    def all_equal(self, index: int, count: int, value: int) -> bool:
        values = self.values
        if count == 1:
            return values[index] == value
        return values[index : index + count] == array(values.typecode, [value]) * count

    def find_free(self, index: int) -> int:
        if not self.values[index]:
            return index
        size = self.values.itemsize
        raw = memoryview(self.values).cast("B")[index * size :].tobytes()
        zero = bytes(size)
        at = raw.find(zero)
        while at >= 0:
            past = at % size
            if not past:
                return index + at // size
            # A match across two entries; only a high zero byte before a low one, so this is rare.
            at = raw.find(zero, at + 1)
        return -1

    def free_run(self, index: int, limit: int) -> int:
        part = self.values[index : index + limit].tobytes()
        return (len(part) - len(part.lstrip(b"\0"))) // self.values.itemsize

    def count_used(self) -> int:
        return len(self.values) - self.values.count(0)

    def last_used(self) -> int:
        return -(-len(self.values.tobytes().rstrip(b"\0")) // self.values.itemsize) - 1

    def to_disk(self) -> bytes:
        values = self.values
        if values.itemsize > 1 and sys.byteorder == "little":
            values = values[:]
            values.byteswap()
        return values.tobytes()


def _has_zero_table(order: int) -> bytes:
    bits = 1 << order
    mask = (1 << bits) - 1
    return bytes(any(not (byte >> at) & mask for at in range(0, 8, bits)) for byte in range(256))


_HAS_ZERO: Final = {order: _has_zero_table(order) for order in (0, 1, 2)}
_USED: Final = {
    order: bytes(
        sum(bool(byte >> at & ((1 << (1 << order)) - 1)) for at in range(0, 8, 1 << order)) for byte in range(256)
    )
    for order in (0, 1, 2)
}
"""Entries that are not 0, by byte."""


class NarrowBlock(RefcountBlock):
    """Entries of 1, 2 or 4 bits, packed with the lowest bits of a byte first."""

    __slots__ = ("_bits", "_mask", "_order", "_per_byte", "data")

    def __init__(self, offset: int, data: bytes | bytearray, order: int) -> None:
        super().__init__(offset)
        self.data = bytearray(data)
        self._order = order
        self._bits = 1 << order
        self._mask = (1 << self._bits) - 1
        self._per_byte = 8 // self._bits

    def get(self, index: int) -> int:
        byte, at = divmod(index, self._per_byte)
        return (self.data[byte] >> (at * self._bits)) & self._mask

    def _put(self, index: int, value: int) -> None:
        byte, at = divmod(index, self._per_byte)
        shift = at * self._bits
        self.data[byte] = (self.data[byte] & ~(self._mask << shift)) | (value << shift)

    def _whole(self, value: int) -> int:
        """A byte full of *value*."""
        return value * (0xFF // self._mask)

    def _split(self, index: int, count: int) -> tuple[range, int, int, range]:
        """Entries before, first whole byte, past the last whole byte, entries after."""
        stop = index + count
        per = self._per_byte
        first, last = -(-index // per), stop // per
        if first >= last:
            return range(index, stop), 0, 0, range(0)
        return range(index, first * per), first, last, range(last * per, stop)

    def fill(self, index: int, count: int, value: int) -> None:
        before, first, last, after = self._split(index, count)
        for entry in before:
            self._put(entry, value)
        self.data[first:last] = bytes([self._whole(value)]) * (last - first)
        for entry in after:
            self._put(entry, value)

    def all_equal(self, index: int, count: int, value: int) -> bool:
        before, first, last, after = self._split(index, count)
        return (
            all(self.get(entry) == value for entry in before)
            and self.data[first:last] == bytes([self._whole(value)]) * (last - first)
            and all(self.get(entry) == value for entry in after)
        )

    def find_free(self, index: int) -> int:
        per = self._per_byte
        while index % per:
            if not self.get(index):
                return index
            index += 1
        at = self.data[index // per :].translate(_HAS_ZERO[self._order]).find(1)
        if at < 0:
            return -1
        index += at * per
        while self.get(index):
            index += 1
        return index

    def free_run(self, index: int, limit: int) -> int:
        start, stop = index, index + limit
        per = self._per_byte
        while index < stop and index % per:
            if self.get(index):
                return index - start
            index += 1
        part = self.data[index // per : -(-stop // per)]
        index = min(index + (len(part) - len(part.lstrip(b"\0"))) * per, stop)
        while index < stop and not self.get(index):
            index += 1
        return index - start

    def count_used(self) -> int:
        return sum(self.data.translate(_USED[self._order]))

    def last_used(self) -> int:
        index = len(self.data.rstrip(b"\0")) * self._per_byte - 1
        while index >= 0 and not self.get(index):
            index -= 1
        return index

    def to_disk(self) -> bytes:
        return bytes(self.data)


def load_block(offset: int, data: bytes | bytearray, order: int) -> RefcountBlock:
    """A block from its bytes on disk; *order* is the binary logarithm of the width in bits."""
    return WideBlock(offset, data, order) if order >= 3 else NarrowBlock(offset, data, order)
