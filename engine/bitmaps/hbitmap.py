"""HBitmap: one bit for every granule of an image, in two levels: large images cost little while few bits are set."""

from __future__ import annotations

import re
from collections.abc import Iterator

from engine.bitmaps.scaling import fold, spread

PAGE_BYTES = 4096
PAGE_BITS = PAGE_BYTES * 8
_PAGE_SHIFT = PAGE_BYTES.bit_length() - 1
_CLEAR = bytes(PAGE_BYTES)
_FULL = b"\xff" * PAGE_BYTES
_SET_BYTE = re.compile(rb"[^\x00]")
_UNSET_BYTE = re.compile(rb"[^\xff]")


class HBitmap:
    """Bits for [0, length) bytes, one for every *granularity* (a power of two). Offsets and lengths are bytes.

    The upper level is a list of pages of bits; pages that are all clear or all set are shared constants and take no
    memory of their own. Not locked: the owner does that.
    """

    def __init__(self, length: int, granularity: int) -> None:
        if granularity <= 0 or granularity & (granularity - 1):
            raise ValueError("the granularity is not a power of two")
        self.length = length
        self.granularity = granularity
        self._shift = granularity.bit_length() - 1
        self._bits = self._granules(length)
        self._pages: list[bytes | bytearray] = [_CLEAR] * -(-self._bits // PAGE_BITS)
        self._count = 0

    def _granules(self, length: int) -> int:
        return (length + self.granularity - 1) >> self._shift

    @property
    def count(self) -> int:
        """Bytes covered by set bits; the last granule counts whole."""
        return self._count << self._shift

    def _span(self, offset: int, length: int) -> tuple[int, int]:
        if length <= 0:
            return 0, 0
        first = offset >> self._shift
        last = min((offset + length + self.granularity - 1) >> self._shift, self._bits)
        return first, max(first, last)

    def set(self, offset: int, length: int) -> None:
        """Set every bit that the range touches."""
        self._fill(*self._span(offset, length), True)

    def reset(self, offset: int, length: int) -> None:
        """Clear every bit that the range touches."""
        self._fill(*self._span(offset, length), False)

    def _fill(self, first: int, last: int, value: bool) -> None:
        while first < last:
            number, start = divmod(first, PAGE_BITS)
            stop = min(PAGE_BITS, start + last - first)
            page = self._pages[number]
            constant = _FULL if value else _CLEAR
            if page is not constant:
                if start == 0 and stop == PAGE_BITS:
                    self._count += (PAGE_BITS if value else 0) - _ones(page)
                    self._pages[number] = constant
                else:
                    if not isinstance(page, bytearray):
                        page = self._pages[number] = bytearray(page)
                    self._count += _fill_bits(page, start, stop, value)
            first += stop - start

    def get(self, offset: int) -> bool:
        """Whether the bit that covers byte *offset* is set."""
        bit = offset >> self._shift
        page, at = divmod(bit, PAGE_BITS)
        return bool(self._pages[page][at >> 3] >> (at & 7) & 1)

    # -- searching -------------------------------------------------------------------------------------------

    def next_dirty(self, offset: int, end: int | None = None) -> int | None:
        """The first byte at or after *offset*, below *end*, that a set bit covers."""
        return self._next(offset, end, True)

    def next_zero(self, offset: int, end: int | None = None) -> int | None:
        """The first byte at or after *offset*, below *end*, that no set bit covers."""
        return self._next(offset, end, False)

    def _next(self, offset: int, end: int | None, value: bool) -> int | None:
        end = self.length if end is None else min(end, self.length)
        if offset >= end:
            return None
        found = self._find(offset >> self._shift, value)
        if found is None or found >= self._bits:
            return None
        at = max(found << self._shift, offset)
        return at if at < end else None

    def _find(self, bit: int, value: bool) -> int | None:
        number, start = divmod(bit, PAGE_BITS)
        skipped = _CLEAR if value else _FULL
        pattern = _SET_BYTE if value else _UNSET_BYTE
        while number < len(self._pages):
            page = self._pages[number]
            if page is not skipped:
                byte = start >> 3
                if start & 7:
                    rest = (page[byte] if value else ~page[byte] & 0xFF) >> (start & 7)
                    if rest:
                        return number * PAGE_BITS + start + _lowest(rest)
                    byte += 1
                match = pattern.search(page, byte)
                if match is not None:
                    byte = match.start()
                    rest = page[byte] if value else ~page[byte] & 0xFF
                    return number * PAGE_BITS + byte * 8 + _lowest(rest)
            number, start = number + 1, 0
        return None

    def next_dirty_area(
        self, offset: int, end: int | None = None, longest: int | None = None
    ) -> tuple[int, int] | None:
        """(offset, length) of the first run of set bits at or after *offset*, below *end*, cut to *longest* bytes."""
        start = self.next_dirty(offset, end)
        if start is None:
            return None
        limit = self.length if end is None else min(end, self.length)
        if longest is not None:
            limit = min(limit, start + longest)
        stop = self.next_zero(start, limit)
        return start, (limit if stop is None else stop) - start

    def areas(self) -> Iterator[tuple[int, int]]:
        """All runs of set bits, (offset, length). Bits changed behind the place reached are not seen again."""
        at = 0
        while (area := self.next_dirty_area(at)) is not None:
            yield area
            at = area[0] + area[1]

    # -- whole bitmaps ---------------------------------------------------------------------------------------

    def merge(self, other: HBitmap) -> None:
        """Set every bit that *other* has set; the granularities may differ. Errors: ValueError (other length)."""
        if other.length != self.length:
            raise ValueError("bitmaps of different lengths")
        steps = self._shift - other._shift
        if not steps:
            for number, page in enumerate(other._pages):
                self._join(number, page)
        elif 0 < steps <= _PAGE_SHIFT:
            self._merge_finer(other, steps)
        elif -_PAGE_SHIFT <= steps < 0:
            self._merge_coarser(other, -steps)
        else:
            at = 0
            while (area := other.next_dirty_area(at)) is not None:
                self.set(*area)
                # What else a bit of either covers is of no more interest.
                at = -(-(area[0] + area[1]) // self.granularity) * self.granularity if steps > 0 else sum(area)

    def _merge_finer(self, other: HBitmap, steps: int) -> None:
        size = PAGE_BYTES >> steps
        for number, page in enumerate(other._pages):
            if page is not _CLEAR:
                home, part = divmod(number, 1 << steps)
                joined = bytearray(PAGE_BYTES)
                joined[part * size : (part + 1) * size] = fold(bytes(page), steps)
                self._join(home, joined)

    def _merge_coarser(self, other: HBitmap, steps: int) -> None:
        size = PAGE_BYTES >> steps
        for number, page in enumerate(other._pages):
            if page is _CLEAR:
                continue
            for part in range(1 << steps):
                home = (number << steps) + part
                piece = page[part * size : (part + 1) * size]
                if home < len(self._pages) and any(piece):
                    self._join(home, self._within(home, spread(bytes(piece), steps)))

    def _within(self, number: int, page: bytes) -> bytes | bytearray:
        """*page* without bits beyond the end, if it is the last."""
        beyond = (number + 1) * PAGE_BITS - self._bits
        if beyond > 0:
            keep = int.from_bytes(page, "little") & ((1 << (PAGE_BITS - beyond)) - 1)
            return bytearray(keep.to_bytes(PAGE_BYTES, "little"))
        return _FULL if page == _FULL else bytearray(page)

    def _join(self, number: int, page: bytes | bytearray) -> None:
        mine = self._pages[number]
        if page is _CLEAR or mine is _FULL:
            return
        if mine is _CLEAR or page is _FULL:
            joined: bytes | bytearray = page if isinstance(page, bytes) else bytearray(page)
        else:
            both = int.from_bytes(mine, "little") | int.from_bytes(page, "little")
            joined = bytearray(both.to_bytes(PAGE_BYTES, "little"))
        self._count += _ones(joined) - _ones(mine)
        self._pages[number] = joined

    def copy(self) -> HBitmap:
        """The same bits, independent of these."""
        new = HBitmap(0, self.granularity)
        new.length, new._bits, new._count = self.length, self._bits, self._count
        new._pages = [page if isinstance(page, bytes) else bytearray(page) for page in self._pages]
        return new

    def truncate(self, length: int) -> None:
        """Change the length; new bits are clear."""
        if length < self.length:
            keep = self._granules(length)
            self._fill(keep, self._bits, False)
        self.length = length
        self._bits = self._granules(length)
        pages = -(-self._bits // PAGE_BITS)
        del self._pages[pages:]
        self._pages.extend([_CLEAR] * (pages - len(self._pages)))

    def serialise(self, offset: int, length: int) -> bytes:
        """The bits of a range, little-endian in each byte. *offset* is a multiple of 8 granules."""
        first, last = self._span(offset, length)
        if first & 7:
            raise ValueError("the range does not begin at a whole byte")
        out = bytearray()
        while first < last:
            number, start = divmod(first, PAGE_BITS)
            stop = min(PAGE_BITS, start + last - first)
            out += self._pages[number][start >> 3 : (stop + 7) >> 3]
            first += stop - start
        return bytes(out)

    def deserialise(self, offset: int, length: int, data: bytes) -> None:
        """Take the bits of a range as serialise() gave them."""
        first, last = self._span(offset, length)
        if first & 7 or len(data) != (last - first + 7) >> 3:
            raise ValueError("the data does not fit the range")
        at = first
        while at < last:
            number, start = divmod(at, PAGE_BITS)
            stop = min(PAGE_BITS, start + last - at)
            part = bytearray(data[(at - first) >> 3 : (at - first + stop - start + 7) >> 3])
            if (stop - start) & 7:
                part[-1] &= (1 << ((stop - start) & 7)) - 1
            page = bytearray(self._pages[number])
            before = _ones(page)
            page[start >> 3 : (start >> 3) + len(part)] = part
            self._count += _ones(page) - before
            self._pages[number] = page
            at += stop - start


def _ones(data: bytes | bytearray) -> int:
    return int.from_bytes(data, "little").bit_count()


def _lowest(byte: int) -> int:
    return (byte & -byte).bit_length() - 1


def _fill_bits(page: bytearray, start: int, stop: int, value: bool) -> int:
    """Set or clear bits [start, stop) of *page*; returns by how much the number of set bits changed."""
    first, last = start >> 3, (stop - 1) >> 3
    before = _ones(page[first : last + 1])
    head = 0xFF << (start & 7) & 0xFF
    tail = 0xFF >> (7 - ((stop - 1) & 7))
    if first == last:
        _mask(page, first, head & tail, value)
    else:
        _mask(page, first, head, value)
        _mask(page, last, tail, value)
        page[first + 1 : last] = (b"\xff" if value else b"\x00") * (last - first - 1)
    return _ones(page[first : last + 1]) - before


def _mask(page: bytearray, byte: int, mask: int, value: bool) -> None:
    if value:
        page[byte] |= mask
    else:
        page[byte] &= ~mask & 0xFF
