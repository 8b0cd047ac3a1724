"""`blockmon run`: the backend around the scripts."""

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING

from blockmon.backend import open_backend
from blockmon.options import StartupError
from blockmon.replay.errors import ScriptError
from blockmon.replay.runner import Runner

if TYPE_CHECKING:
    from blockmon.options import CommonOptions

TERMINATED = 128 + signal.SIGTERM


def main(options: "CommonOptions", scripts: list[str]) -> int:
    """Run *scripts* and return the exit status. Raises StartupError."""
    for script in scripts:
        _check_readable(script)
    try:
        return asyncio.run(_run(options, scripts))
    except asyncio.CancelledError:
        return TERMINATED  # only SIGTERM cancels; an interrupt comes as KeyboardInterrupt


def _check_readable(script: str) -> None:
    """Notice a wrong name before anything runs, not after the scripts in front of it."""
    if script == "-":
        return
    try:
        os.close(os.open(script, os.O_RDONLY | os.O_NONBLOCK))
        if os.path.isdir(script):
            raise IsADirectoryError(21, "Is a directory")
    except OSError as error:
        raise StartupError(script, error.strerror or str(error)) from None


async def _run(options: "CommonOptions", scripts: list[str]) -> int:
    task = asyncio.current_task()
    assert task is not None
    # The engine has metadata to write back, so the signal must not just end the process.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    backend = open_backend(options)
    await backend.start()
    try:
        runner = Runner(backend, sys.stdout)
        try:
            for script in scripts:
                await runner.run(script)
        except ScriptError as error:
            print(error, file=sys.stderr)
            _forget_unwritten()
            return error.status
        finally:
            runner.close()
    finally:
        await backend.close()
    return 0


def _forget_unwritten() -> None:
    """Keep the interpreter from complaining at exit once more about an output that could not be written."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
