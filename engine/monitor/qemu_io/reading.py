"""read, readv, aio_read."""

from __future__ import annotations

import time

from engine.monitor.qemu_io.buffers import CHUNK, Pattern, lengths, read_chunks
from engine.monitor.qemu_io.commands import Call, io_command
from engine.monitor.qemu_io.text import REQUEST_MAX, UsageError, dump, read_number, read_pattern, report

_COMMON_HELP = """ -C, -- statistics for programs: bytes, operations, time, bytes/sec, operations/sec
 -P, -- fail unless every byte read is this one
 -q, -- print no statistics
 -v, -- print the bytes
"""


class _Plan:
    """A read as it was asked for. check: (offset in the data, length) to be verified."""

    def __init__(self, offset: int, length: int, pattern: int | None, check: tuple[int, int], flags: str) -> None:
        self.offset = offset
        self.length = length
        self.pattern = pattern
        self.check = check
        self.flags = flags

    def carry_out(self, call: Call, failed_as: str) -> None:
        """Read, and print what it took, what was read, and whether it was what it should be."""
        check = Pattern(self.pattern, *self.check) if self.pattern is not None else None
        dumped: list[str] = []
        seconds = 0.0
        buffer = memoryview(bytearray(min(self.length, CHUNK)))
        read = call.backend.read if call.counted else call.backend.do_read
        try:
            for at, size in read_chunks(self.offset, self.length, call.backend.length, call.count_failed("rd")):
                piece = buffer[:size]
                began = time.perf_counter()
                read(self.offset + at, piece)
                seconds += time.perf_counter() - began
                if check is not None:
                    check.look(at, piece)
                if "v" in self.flags and "q" not in self.flags:
                    dumped.extend(dump(piece, self.offset + at))
        except OSError as exc:
            call.failed(failed_as, exc)
            return
        if check is not None and not check.matches:
            start, size = self.check
            call.print(f"Pattern verification failed at offset {self.offset + start}, {size} bytes\n")
        if "q" not in self.flags:
            call.print("".join(dumped))
            call.print(report("read", seconds, self.offset, self.length, machine="C" in self.flags))


@io_command(
    "read",
    "r",
    words=(2, -1),
    args="[-abCqv] [-P pattern [-s off] [-l len]] off len",
    oneline="reads a number of bytes at a specified offset",
    options="bCl:pP:qs:v",
    help=" 'read -v 512 1k' prints 1 KiB from offset 512.\n\n"
    + _COMMON_HELP
    + " -b, -- read the VM state instead of the disk (no format here has one)\n"
    " -l, -s, -- with -P: how many bytes to check, and from which on\n"
    " -p, -- nothing, as in later versions of qemu-io\n",
)
def _read(call: Call) -> None:
    options = call.read_options()
    pattern_text, start_text, count_text = (options.argument(letter) for letter in "Psl")
    # In the order in which they are complained about.
    pattern = read_pattern(pattern_text) if pattern_text is not None else None
    count = read_number(count_text) if count_text is not None else None
    start = read_number(start_text) if start_text is not None else 0
    if len(options.operands) != 2:
        raise call.wrong_usage()
    offset = read_number(options.operands[0])
    length = read_number(options.operands[1])
    if length > REQUEST_MAX:
        raise UsageError(f"length cannot exceed {REQUEST_MAX}, given {options.operands[1]}")
    if pattern is None and (count is not None or start_text is not None):
        raise call.wrong_usage()
    if count is None:
        count = length - start
    if count < 0 or start + count > length:
        raise UsageError("pattern verification range exceeds end of read data")
    if "b" in options:
        _check_vm_state(offset, length)
        call.print("read failed: Operation not supported\n")
        return
    flags = "".join(letter for letter in "Cqv" if letter in options)
    _Plan(offset, length, pattern, (start, count), flags).carry_out(call, "read")


def _check_vm_state(offset: int, length: int) -> None:
    for name, value in (("offset", offset), ("count", length)):
        if value % 512:
            raise UsageError(f"{value} is not a sector-aligned value for '{name}'")


def _vector(call: Call) -> _Plan | None:
    options = call.read_options()
    text = options.argument("P")
    pattern = read_pattern(text) if text is not None else None
    if "i" in options:
        call.backend.stats.invalid("rd")
        call.print("injecting invalid read request\n")
        return None
    if len(options.operands) < 2:
        raise call.wrong_usage()
    offset = read_number(options.operands[0])
    length = lengths(options.operands[1:])
    flags = "".join(letter for letter in "Cqv" if letter in options)
    return _Plan(offset, length, pattern, (0, length), flags)


@io_command(
    "readv",
    words=(2, -1),
    args="[-Cqv] [-P pattern] off len [len..]",
    oneline="reads a number of bytes at a specified offset",
    options="CP:qv",
    help=" 'readv 512 1k 1k' reads 2 KiB from offset 512, for two buffers.\n\n" + _COMMON_HELP,
)
def _readv(call: Call) -> None:
    plan = _vector(call)
    if plan is not None:
        plan.carry_out(call, "readv")


@io_command(
    "aio_read",
    words=(2, -1),
    args="[-Ciqv] [-P pattern] off len [len..]",
    oneline="asynchronously reads a number of bytes",
    options="CP:iqv",
    background=True,
    help=" 'aio_read 512 1k' begins to read 1 KiB from offset 512; aio_flush waits for it.\n\n"
    + _COMMON_HELP
    + " -i, -- count an invalid request and do nothing\n",
)
def _aio_read(call: Call) -> None:
    plan = _vector(call)
    if plan is not None:
        plan.carry_out(call, "readv")
