"""Running the screen: what has to be set before Textual is imported, and the order of opening and closing."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from blockmon.options import CommonOptions, StartupError
from blockmon.themes import ThemeError, find_theme

# Read by Textual when it is imported. A slow link takes no animations. How often a busy screen is drawn the refresher
# limits; a frame rate as low as that would hold back the echo of keys.
for _name, _value in (("TEXTUAL_ANIMATIONS", "none"), ("TEXTUAL_SMOOTH_SCROLL", "0"), ("TEXTUAL_FPS", "60")):
    os.environ.setdefault(_name, _value)

from blockmon.backend import open_backend  # noqa: E402
from blockmon.repl.history import open_history  # noqa: E402
from blockmon.repl.session import ReplSession  # noqa: E402
from blockmon.tui.app import BlockmonApp  # noqa: E402

_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def main(options: CommonOptions) -> int:
    """Show the screen on what *options* ask for. Errors: StartupError."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise StartupError("terminal", "the screen needs one; 'blockmon run' and 'blockmon repl' do without")
    try:
        find_theme(options.theme)
    except ThemeError as error:
        raise StartupError("--theme", str(error)) from error
    return asyncio.run(_run(options))


async def _run(options: CommonOptions) -> int:
    backend = open_backend(options)
    session = ReplSession(backend, history=open_history(), show_events=False)
    app = BlockmonApp(backend, session, options)
    loop = asyncio.get_running_loop()
    for number in _ENDING_SIGNALS:
        # The images are closed and the terminal is put right before the program ends.
        loop.add_signal_handler(number, app.exit, 128 + number)
    try:
        status = await app.run_async()
    finally:
        for number in _ENDING_SIGNALS:
            loop.remove_signal_handler(number)
        await session.close()
        await backend.close()
    if isinstance(app.start_error, StartupError):
        raise app.start_error
    if app.start_error is not None:
        raise StartupError("start", str(app.start_error))
    return status if status is not None else app.return_code or 0
