"""Commands without data: flush, aio_flush, truncate, sleep."""

from __future__ import annotations

import time

from engine.errors import GenericError, os_error_text
from engine.graph.driver import Prealloc
from engine.graph.permissions import Perm
from engine.monitor.qemu_io.commands import Call, io_command
from engine.monitor.qemu_io.text import UsageError, read_number
from engine.qapi import scalars


@io_command("flush", "f", words=(0, 0), oneline="flush all in-core file state to disk")
def _flush(call: Call) -> None:
    try:
        call.backend.do_flush()
    except OSError as exc:
        call.failed("flush", exc)


@io_command("aio_flush", words=(0, 0), oneline="completes all outstanding aio requests")
def _aio_flush(call: Call) -> None:
    started = time.monotonic_ns()
    call.print(call.outstanding.wait())
    # QEMU counts the waiting as a flush.
    call.backend.stats.done("flush", 0, started)


@io_command(
    "truncate",
    "t",
    words=(1, 3),
    args="[-m prealloc_mode] off",
    oneline="truncates the current file at the given offset",
    options="m:",
    perm=Perm.WRITE | Perm.RESIZE,
)
def _truncate(call: Call) -> None:
    options = call.read_options()
    mode = options.argument("m")
    try:
        prealloc = Prealloc(mode) if mode is not None else Prealloc.OFF
    except ValueError:
        raise UsageError(f"Invalid preallocation mode '{mode}'") from None
    if len(options.operands) != 1:
        raise call.wrong_usage()
    offset = read_number(options.operands[0])
    try:
        call.backend.truncate(offset, exact=False, prealloc=prealloc)
    except GenericError as exc:
        call.print(f"{exc.desc}\n")
    except OSError as exc:
        call.print(f"{exc.strerror or os_error_text(exc)}\n")


@io_command("sleep", words=(1, 1), oneline="waits for the given value in milliseconds")
def _sleep(call: Call) -> None:
    milliseconds = scalars.parse_int64(call.words[0])
    if milliseconds is None or milliseconds < 0:
        raise UsageError(f"{call.words[0]} is not a valid number")
    call.sleep = milliseconds / 1000
