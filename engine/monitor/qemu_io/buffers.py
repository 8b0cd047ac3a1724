"""What is written and what is expected to be read, in pieces of a bearable size."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import Final

from engine.errors import os_error_text
from engine.monitor.qemu_io.text import REQUEST_MAX, UsageError, read_number

CHUNK: Final = 32 << 20
"""Bytes moved at once."""


def lengths(words: list[str]) -> int:
    """The sum of the lengths of a vector. Errors: UsageError."""
    total = 0
    for word in words:
        length = read_number(word)
        if length > REQUEST_MAX:
            raise UsageError(f"Argument '{word}' exceeds maximum size {REQUEST_MAX}")
        if total > REQUEST_MAX - length:
            raise UsageError(f"The total number of bytes exceed the maximum size {REQUEST_MAX}")
        total += length
    return total


def read_chunks(
    offset: int, length: int, end: int, refused: Callable[[], None] | None = None
) -> Iterator[tuple[int, int]]:
    """(position, size) of the pieces of a request. refused: called when it is refused.

    Errors: OSError EIO when it reaches beyond *end*.
    """
    if offset + length > end:
        if refused is not None:
            refused()
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    at = 0
    while True:
        size = min(CHUNK, length - at)
        yield at, size
        at += size
        if at >= length:
            return


class Pattern:
    """Checks that the bytes from *start* on, *length* of them, all are *byte*."""

    def __init__(self, byte: int, start: int, length: int) -> None:
        self._byte = bytes([byte])
        self._start = start
        self._end = start + length
        self.matches = True

    def look(self, at: int, piece: memoryview) -> None:
        """Look at a *piece* of the data, which begins at *at*."""
        first, last = max(self._start, at), min(self._end, at + len(piece))
        if first < last and self.matches:
            self.matches = piece[first - at : last - at] == self._byte * (last - first)


class Source:
    """What is written: one byte over and over, or the bytes of a file over and over."""

    def __init__(self, pattern: bytes) -> None:
        self._pattern = pattern

    @classmethod
    def from_file(cls, name: str, length: int) -> Source:
        """The first *length* bytes of a file. Errors: UsageError."""
        try:
            with open(name, "rb") as file:
                data = file.read(length)
        except OSError as exc:
            raise UsageError(f"{name}: {os_error_text(exc)}") from None
        if length and not data:
            raise UsageError(f"{name}: file is empty")
        return cls(data or b"\0")

    def piece(self, at: int, size: int) -> memoryview:
        """*size* bytes of the data from *at* on."""
        pattern = self._pattern
        start = at % len(pattern)
        repeated = pattern * (-(-(start + size) // len(pattern)))
        return memoryview(repeated)[start : start + size]
