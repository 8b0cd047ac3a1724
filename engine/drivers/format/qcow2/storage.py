"""What the qcow2 core needs of the nodes below it, and the errors it shares."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Protocol

from engine.graph.driver import Extent, Prealloc

if TYPE_CHECKING:
    from collections.abc import Callable

    Reporter = Callable[[str, int | None, int | None, bool], None]
    """Called as (message, offset, size, fatal) when metadata is found to be broken."""


class Child(Protocol):
    """An edge to a storage or backing node, or anything that behaves like one. Offsets and lengths are bytes."""

    @property
    def length(self) -> int: ...

    def read(self, offset: int, buffer: memoryview, /) -> None: ...

    def write(self, offset: int, data: memoryview, flags: int = 0, /) -> None: ...

    def write_zeroes(self, offset: int, length: int, flags: int = 0, /) -> None: ...

    def discard(self, offset: int, length: int, /) -> None: ...

    def flush(self) -> None: ...

    def block_status(self, offset: int, length: int, want_zero: bool = True, /) -> Extent: ...

    def truncate(self, length: int, *, exact: bool = True, prealloc: Prealloc = Prealloc.OFF) -> None: ...


def error(code: int, text: str | None = None) -> OSError:
    """An OSError of *code* with the system's text or *text*."""
    return OSError(code, text if text is not None else os.strerror(code))


def io_error() -> OSError:
    """EIO: what a request gets that meets broken metadata."""
    return error(errno.EIO)


def read_bytes(child: Child, offset: int, size: int) -> bytearray:
    """Read *size* bytes at *offset* into a new buffer. Errors: OSError."""
    buffer = bytearray(size)
    child.read(offset, memoryview(buffer))
    return buffer


def round_up(value: int, step: int) -> int:
    """*value* rounded up to a multiple of *step*."""
    return -(-value // step) * step


def c_hex(value: int) -> str:
    """*value* as C's ``%#x`` prints it: 0 has no prefix."""
    return f"{value:#x}" if value else "0"
