"""Running the screen: what has to be set before Textual is imported, and the order of opening and closing."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace

from blockmon.config import Config, load_config
from blockmon.options import CommonOptions, StartupError
from blockmon.themes import ThemeError, find_theme

# Read by Textual when it is imported. A slow link takes no animations. How often a busy screen is drawn the refresher
# limits; a frame rate as low as that would hold back the echo of keys.
for _name, _value in (("TEXTUAL_ANIMATIONS", "none"), ("TEXTUAL_SMOOTH_SCROLL", "0"), ("TEXTUAL_FPS", "60")):
    os.environ.setdefault(_name, _value)

from blockmon.backend import open_backend  # noqa: E402
from blockmon.repl.history import open_history  # noqa: E402
from blockmon.repl.session import ReplSession  # noqa: E402
from blockmon.repl.settings import settings_of  # noqa: E402
from blockmon.tui.app import BlockmonApp  # noqa: E402

_UNABLE = ("", "dumb", "unknown")
_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def main(options: CommonOptions, make_app: Callable[..., BlockmonApp] = BlockmonApp) -> int:
    """Show the screen on what *options* ask for, or another one on the same. Errors: StartupError."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise StartupError("terminal", "the screen needs one; 'blockmon run' and 'blockmon repl' do without")
    if os.environ.get("TERM", "dumb") in _UNABLE:
        raise StartupError(
            f"terminal {os.environ.get('TERM', '')}".rstrip(),
            "it has no cursor to move (TERM says); 'blockmon repl' and 'blockmon run' do without",
        )
    config = load_config()
    try:
        theme, _ = find_theme(options.theme)
    except ThemeError as error:
        raise StartupError("--theme", str(error)) from error
    if options.theme is None and config.theme is not None:
        try:
            theme, _ = find_theme(config.theme)
        except ThemeError as error:
            config.problem("theme", str(error))
    # NO_COLOR has chosen the theme; one that is asked for by name, now or later, is meant.
    os.environ.pop("NO_COLOR", None)
    return asyncio.run(_run(replace(options, theme=theme.name), config, make_app))


async def _run(options: CommonOptions, config: Config, make_app: Callable[..., BlockmonApp]) -> int:
    backend = open_backend(options)
    history = open_history() if config.prompt.history else None
    session = ReplSession(backend, history=history, settings=settings_of(config), show_events=False)
    app = make_app(backend, session, options, config=config)
    loop = asyncio.get_running_loop()
    for number in _ENDING_SIGNALS:
        # The images are closed and the terminal is put right before the program ends.
        loop.add_signal_handler(number, app.exit, 128 + number)
    try:
        result = await app.run_async(mouse=not options.low_bandwidth)
        status = await app.finish(result if result is not None else app.return_code or 0)
    finally:
        for number in _ENDING_SIGNALS:
            loop.remove_signal_handler(number)
        await session.close()
        await backend.close()
    if isinstance(app.start_error, StartupError):
        raise app.start_error
    if app.start_error is not None:
        raise StartupError("start", str(app.start_error))
    return status
