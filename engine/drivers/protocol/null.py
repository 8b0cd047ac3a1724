"""null-co and null-aio: swallow writes and read as zeros at once; for benchmarks and tests."""

from __future__ import annotations

import time

from engine.errors import GenericError
from engine.graph.driver import Driver, Extent, Opening, ReopenState, Status, register
from engine.qapi import Int, Struct, UInt64

DEFAULT_SIZE = 1 << 30


class BlockdevOptionsNull(Struct):
    """size: virtual length in bytes, 1 GiB by default. latency_ns: time each request takes. read_zeroes: reads fill
    the buffer.
    """

    size: Int | None = None
    latency_ns: UInt64 | None = None
    read_zeroes: bool | None = None


class NullDriver(Driver):
    """Both null drivers; they differ in name only, as their requests are plain calls here."""

    Options = BlockdevOptionsNull
    is_protocol = True
    supports_fua = True
    strong_options = ("size", "read-zeroes")

    @classmethod
    def parse_filename(cls, filename: str) -> dict[str, object]:
        if filename != f"{cls.name}://":
            raise GenericError(f"The only allowed filename for this driver is '{cls.name}://'")
        return {}

    def open(self, opening: Opening) -> None:
        options: BlockdevOptionsNull = opening.options
        self.length = DEFAULT_SIZE if options.size is None else options.size
        if self.length < 0:
            raise GenericError("size is invalid")
        if (options.latency_ns or 0) >= 1 << 63:
            raise GenericError("latency-ns is invalid")
        self.latency = (options.latency_ns or 0) / 1e9
        self.read_zeroes = bool(options.read_zeroes)

    def exact_filename(self) -> str | None:
        return "" if set(self.node.options) & {"size", "read-zeroes"} else f"{self.name}://"

    def reopen_prepare(self, state: ReopenState) -> None:
        """Nothing to prepare: there is no state."""

    def _delay(self) -> None:
        if self.latency:
            time.sleep(self.latency)

    def read(self, offset: int, buffer: memoryview) -> None:
        self._delay()
        if self.read_zeroes:
            buffer[:] = bytes(len(buffer))

    def write(self, offset: int, data: memoryview, flags: int = 0) -> None:
        self._delay()

    def write_zeroes(self, offset: int, length: int, flags: int = 0) -> None:
        self._delay()

    def discard(self, offset: int, length: int) -> None:
        self._delay()

    def flush(self) -> None:
        self._delay()

    def block_status(self, offset: int, length: int, want_zero: bool = True) -> Extent:
        flags = Status.OFFSET_VALID | (Status.ZERO if self.read_zeroes else 0)
        return Extent(length, flags | (0 if self.read_zeroes else Status.DATA), self.node, offset)

    def allocated_size(self) -> int | None:
        return 0


@register
class NullCoDriver(NullDriver):
    """null-co."""

    name = "null-co"
    protocol_prefixes = ("null-co",)


@register
class NullAioDriver(NullDriver):
    """null-aio."""

    name = "null-aio"
    protocol_prefixes = ("null-aio",)
