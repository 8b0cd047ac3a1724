"""`blockmon repl`: the session on a terminal of its own."""

from __future__ import annotations

import asyncio
import signal
import sys

from blockmon.backend import Backend, open_backend
from blockmon.options import CommonOptions, StartupError


def main(options: CommonOptions) -> int:
    """Run the prompt, or the lines of a standard input that is no terminal; returns the exit status."""
    return asyncio.run(_main(options))


async def _main(options: CommonOptions) -> int:
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    backend = open_backend(options)
    if interactive:
        from prompt_toolkit.history import InMemoryHistory

        from blockmon.config import load_config
        from blockmon.repl.history import open_history
        from blockmon.repl.settings import settings_of
        from blockmon.repl.terminal import TerminalPrompt
        from blockmon.themes import ThemeError, find_theme

        config = load_config()
        try:
            theme, problems = find_theme(options.theme)
        except ThemeError as error:
            raise StartupError("--theme", str(error)) from None
        if options.theme is None and config.theme is not None:
            try:
                theme, problems = find_theme(config.theme)
            except ThemeError as error:
                config.problem("theme", str(error))
        await backend.start()
        try:
            history = open_history() if config.prompt.history else InMemoryHistory()
            settings = settings_of(config)
            prompt = TerminalPrompt(backend, theme.prompt, theme.syntax, history=history, settings=settings)
            for problem in [*config.problems, *problems]:
                prompt.notice(problem)
            return await prompt.run()
        finally:
            await backend.close()
    await backend.start()
    try:
        return await _batch(backend)
    finally:
        await backend.close()


async def _batch(backend: Backend) -> int:
    from blockmon.repl.batch import read_lines, run_lines

    task = asyncio.ensure_future(run_lines(backend, read_lines(sys.stdin.fileno()), sys.stdout, sys.stderr))
    loop = asyncio.get_running_loop()
    stopped = {signal.SIGINT: 130, signal.SIGTERM: 143}
    status = 0

    def stop(number: signal.Signals) -> None:
        nonlocal status
        status = stopped[number]
        task.cancel()

    for number in stopped:
        loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError:
        return status
    except BrokenPipeError:
        # The reader of the answers has seen enough; the interpreter must not complain when it flushes at exit.
        sys.stdout = None
        return 1
    finally:
        for number in stopped:
            loop.remove_signal_handler(number)
