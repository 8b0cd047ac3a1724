"""`blockmon serve`: an engine and its servers, without a screen."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import sys
from collections.abc import Coroutine
from typing import TYPE_CHECKING

from blockmon.backend.pidfile import PidFile
from blockmon.backend.startup import start_up
from blockmon.options import CommonOptions

if TYPE_CHECKING:
    from blockmon.backend.daemon import Daemon
    from blockmon.backend.recorder import Recorder

_GARBAGE_THRESHOLDS = (50_000, 20, 100)
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def serve(options: CommonOptions) -> int:
    """Run until `quit` or SIGTERM, SIGINT or SIGHUP; return the exit status. Errors: StartupError."""
    if not options.daemonize:
        return asyncio.run(_serve(options))
    from blockmon.backend.daemon import daemonize

    daemon = daemonize()
    return 1 if daemon is None else asyncio.run(_serve(options, daemon))


async def _serve(options: CommonOptions, daemon: Daemon | None = None) -> int:
    from blockmon.backend.recording import start_recording
    from engine.engine import Engine

    # An answer about thousands of nodes is many objects at once, none of them garbage: searching in between only costs.
    gc.set_threshold(*_GARBAGE_THRESHOLDS)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in _SIGNALS:
        loop.add_signal_handler(number, ended.set)
    engine = Engine()
    engine.on_quit = lambda: _tell(loop, ended)
    pidfile: PidFile | None = None
    recorder: Recorder | None = None
    try:
        if options.record is not None:
            recorder = start_recording(engine, options, _announce)
        if await _unless(ended, start_up(engine, options, _announce)):
            # The file says that everything stands, so it comes last.
            pidfile = PidFile(options.pidfile) if options.pidfile is not None else None
            if daemon is not None:
                daemon.ready()
            await ended.wait()
    finally:
        # A second Ctrl+C ends the program at once, whatever it hangs on.
        loop.remove_signal_handler(signal.SIGINT)
        if recorder is not None:
            recorder.close()
        await asyncio.to_thread(engine.close)
        if pidfile is not None:
            pidfile.remove()
    return 0


async def _unless(ended: asyncio.Event, work: Coroutine[None, None, None]) -> bool:
    """Do *work*; stop when *ended* is set meanwhile. Tell whether the work is done."""
    doing = asyncio.ensure_future(work)
    waiting = asyncio.ensure_future(ended.wait())
    try:
        await asyncio.wait([doing, waiting], return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            doing.result()
            return True
        doing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await doing
        return False
    finally:
        waiting.cancel()


def _tell(loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(ended.set)


def _announce(sentence: str) -> None:
    sys.stderr.write(f"blockmon: {sentence}\n")
    sys.stderr.flush()
