"""write, writev, aio_write, discard."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable

from engine.graph.driver import WriteFlag
from engine.graph.permissions import Perm
from engine.monitor.qemu_io.buffers import Source, lengths, read_chunks
from engine.monitor.qemu_io.commands import Call, io_command
from engine.monitor.qemu_io.options import Options
from engine.monitor.qemu_io.text import REQUEST_MAX, UsageError, read_number, read_pattern, report

DEFAULT_PATTERN = 0xCD
_REPORT_HELP = """ -C, -- statistics for programs: bytes, operations, time, bytes/sec, operations/sec
 -q, -- print no statistics
"""
_COMMON_HELP = _REPORT_HELP + " -f, -- have the data on stable storage when done\n -P, -- the byte to write\n"


def _timed(
    call: Call, what: str, failed_as: str, request: tuple[int, int], options: Options, work: Callable[[], None]
) -> None:
    """Do *work* on *request* (offset, length), and print what it took or why it failed."""
    offset, length = request
    began = time.perf_counter()
    try:
        work()
    except OSError as exc:
        call.failed(failed_as, exc)
        return
    seconds = time.perf_counter() - began
    if "q" not in options:
        call.print(report(what, seconds, offset, length, machine="C" in options))


def _write_data(call: Call, offset: int, length: int, source: Source, flags: int) -> None:
    write = call.backend.write if call.counted else call.backend.do_write
    for at, size in read_chunks(offset, length, call.backend.length, call.count_failed("wr")):
        write(offset + at, source.piece(at, size), flags)


def _write_compressed(call: Call, offset: int, length: int, source: Source) -> None:
    _write_data(call, offset, length, source, int(WriteFlag.COMPRESSED))


def _flags(options: Options) -> int:
    flags = WriteFlag.NONE
    if "f" in options:
        flags |= WriteFlag.FUA
    if "n" in options:
        flags |= WriteFlag.NO_FALLBACK
    if "u" in options:
        flags |= WriteFlag.MAY_UNMAP
    return int(flags)


@io_command(
    "write",
    "w",
    words=(2, -1),
    args="[-bcCfnquz] [-P pattern | -s source_file] off len",
    oneline="writes a number of bytes at a specified offset",
    options="bcCfnpP:qs:uz",
    perm=Perm.WRITE,
    help=" 'write -P 7 512 1k' writes 1 KiB of sevens at offset 512; 0xcd is written without -P.\n\n"
    + _COMMON_HELP
    + " -b, -- write the VM state instead of the disk (no format here has one)\n"
    " -c, -- write a compressed cluster\n"
    " -n, -- with -z: fail where zeroes would have to be written as data\n"
    " -p, -- nothing, as in later versions of qemu-io\n"
    " -s, -- write the bytes of a file, over and over\n"
    " -u, -- with -z: the space may be given back\n"
    " -z, -- write zeroes, as efficiently as the format can\n",
)
def _write(call: Call) -> None:
    options = call.read_options()
    pattern_text, file_name = options.argument("P"), options.argument("s")
    pattern = read_pattern(pattern_text) if pattern_text is not None else DEFAULT_PATTERN
    if len(options.operands) != 2:
        raise call.wrong_usage()
    _check_combination(options)
    offset = read_number(options.operands[0])
    length = read_number(options.operands[1])
    if length > REQUEST_MAX and "n" not in options:
        raise UsageError(f"length cannot exceed {REQUEST_MAX} without -n, given {options.operands[1]}")
    if "b" in options or "c" in options:
        for name, value in (("offset", offset), ("count", length)):
            if value % 512:
                raise UsageError(f"{value} is not a sector-aligned value for '{name}'")
    source = Source(bytes([pattern]) * 4096)
    if file_name is not None:
        source = Source.from_file(file_name, length)

    def work() -> None:
        if "b" in options:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        if "z" in options:
            call.backend.do_write_zeroes(offset, length, _flags(options))
        elif "c" in options:
            _write_compressed(call, offset, length, source)
        else:
            _write_data(call, offset, length, source, _flags(options))

    _timed(call, "wrote", "write", (offset, length), options, work)


def _check_combination(options: Options) -> None:
    if "b" in options and "z" in options:
        raise UsageError("-b and -z cannot be specified at the same time")
    if "f" in options and ("b" in options or "c" in options):
        raise UsageError("-f and -b or -c cannot be specified at the same time")
    for letter in "nu":
        if letter in options and "z" not in options:
            raise UsageError(f"-{letter} requires -z to be specified")
    if sum(letter in options for letter in "zPs") > 1:
        raise UsageError("Only one of -z, -P, and -s can be specified at the same time")


@io_command(
    "writev",
    words=(2, -1),
    args="[-Cfq] [-P pattern] off len [len..]",
    oneline="writes a number of bytes at a specified offset",
    options="CfqP:",
    perm=Perm.WRITE,
    help=" 'writev 512 1k 1k' writes 2 KiB at offset 512, from two buffers.\n\n" + _COMMON_HELP,
)
def _writev(call: Call) -> None:
    options = call.read_options()
    text = options.argument("P")
    pattern = read_pattern(text) if text is not None else DEFAULT_PATTERN
    if len(options.operands) < 2:
        raise call.wrong_usage()
    offset = read_number(options.operands[0])
    length = lengths(options.operands[1:])
    source = Source(bytes([pattern]) * 4096)
    _timed(
        call,
        "wrote",
        "writev",
        (offset, length),
        options,
        lambda: _write_data(call, offset, length, source, _flags(options)),
    )


@io_command(
    "aio_write",
    words=(2, -1),
    args="[-Cfiquz] [-P pattern] off len [len..]",
    oneline="asynchronously writes a number of bytes",
    options="CfiP:quz",
    perm=Perm.WRITE,
    background=True,
    help=" 'aio_write 512 1k' begins to write 1 KiB at offset 512; aio_flush waits for it.\n\n"
    + _COMMON_HELP
    + " -i, -- count an invalid request and do nothing\n"
    " -u, -- with -z: the space may be given back\n"
    " -z, -- write zeroes, as efficiently as the format can\n",
)
def _aio_write(call: Call) -> None:
    options = call.read_options()
    text = options.argument("P")
    pattern = read_pattern(text) if text is not None else DEFAULT_PATTERN
    if "i" in options:
        call.backend.stats.invalid("wr")
        call.print("injecting invalid write request\n")
        return
    if len(options.operands) < 2:
        raise call.wrong_usage()
    if "z" in options and len(options.operands) != 2:
        raise UsageError("-z supports only a single length parameter")
    if "u" in options and "z" not in options:
        raise UsageError("-u requires -z to be specified")
    offset = read_number(options.operands[0])
    length = read_number(options.operands[1]) if "z" in options else lengths(options.operands[1:])
    source = Source(bytes([pattern]) * 4096)

    def work() -> None:
        if "z" in options:
            call.backend.write_zeroes(offset, length, _flags(options))
        else:
            _write_data(call, offset, length, source, _flags(options))

    _timed(call, "wrote", "aio_write", (offset, length), options, work)


@io_command(
    "discard",
    "d",
    words=(2, -1),
    args="[-Cq] off len",
    oneline="discards a number of bytes at a specified offset",
    options="Cq",
    perm=Perm.WRITE,
    help=" 'discard 0 64k' gives the first 64 KiB back, where the node was opened with discard=unmap.\n\n"
    + _REPORT_HELP,
)
def _discard(call: Call) -> None:
    options = call.read_options()
    if len(options.operands) != 2:
        raise call.wrong_usage()
    offset = read_number(options.operands[0])
    length = read_number(options.operands[1])
    if length > REQUEST_MAX:
        raise UsageError(f"length cannot exceed {REQUEST_MAX}, given {options.operands[1]}")
    _timed(call, "discard", "discard", (offset, length), options, lambda: call.backend.do_discard(offset, length))
