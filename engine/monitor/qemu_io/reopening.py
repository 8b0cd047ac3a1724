"""reopen: other flags, another cache mode or other options for the node."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Final

from engine.errors import GenericError
from engine.graph.options import CACHE_MODES
from engine.graph.permissions import Perm
from engine.graph.reopen import reopen
from engine.monitor.qemu_io.commands import Call, io_command
from engine.monitor.qemu_io.text import UsageError
from engine.qapi.keyval import crumple
from engine.qapi.opts import parse_opts

_CACHE_OPTIONS: Final = ("cache.direct", "cache.no-flush")


@io_command(
    "reopen",
    words=(0, -1),
    args="[(-r|-w)] [-c cache] [-o options]",
    oneline="reopens an image with new options",
    options="c:o:rw",
    help=" 'reopen -o lazy-refcounts=on' changes an option; all that is not given stays.\n\n"
    " -r, -- make it read-only\n"
    " -w, -- make it writable\n"
    " -c, -- change the cache mode\n"
    " -o, -- change options\n",
)
def _reopen(call: Call) -> None:
    options = call.read_options()
    if options.operands:
        raise call.wrong_usage()
    if "r" in options and "w" in options:
        raise UsageError("Only one -r/-w option may be given")
    backend = call.backend
    node = backend.node
    direct, no_flush, write_cache = node.cache_direct, node.cache_no_flush, backend.write_cache
    mode = options.argument("c")
    if mode is not None:
        if mode not in CACHE_MODES:
            raise UsageError(f"Invalid cache option: {mode}")
        direct, no_flush, write_cache = CACHE_MODES[mode]
    given: dict[str, object] = dict(parse_opts(options.argument("o") or ""))
    if write_cache != backend.write_cache and backend.device is not None:
        raise UsageError("Cannot change cache.writeback: Device attached")
    read_only = "r" in options or (node.read_only and "w" not in options)
    if "read-only" not in given:
        given["read-only"] = read_only
    elif "r" in options or "w" in options:
        raise UsageError("Cannot set both -r/-w and 'read-only'")
    if not any(name in given for name in _CACHE_OPTIONS):
        given["cache.direct"], given["cache.no-flush"] = direct, no_flush
    elif mode is not None:
        raise UsageError("Cannot set both -c and the cache options")

    done: Future[None] = Future()

    def run() -> None:
        try:
            if read_only:
                backend.take(backend.perm & ~(Perm.WRITE | Perm.WRITE_UNCHANGED), backend.shared)
            reopen(node, crumple(given), keep_old=True)
            backend.write_cache = write_cache
            done.set_result(None)
        except BaseException as exc:
            done.set_exception(exc)

    node.graph.control.post(run)
    try:
        done.result()
    except GenericError as exc:
        raise UsageError(exc.desc) from None
