"""@shell: run a command of the system's shell."""

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING

from blockmon.replay.directives import Action, Call, directive
from blockmon.replay.errors import StatementFailed

if TYPE_CHECKING:
    from blockmon.replay.runner import Runner


@directive("shell", "COMMAND")
def shell(call: Call) -> Action:
    """Run COMMAND by /bin/sh, with the script's variables in its environment; it must succeed. What it prints is an
    answer like a command's. Only with --allow-shell."""
    command, _ = call.rest
    if not command:
        raise call.usage()

    async def act(runner: "Runner") -> None:
        if not runner.options.allow_shell:
            raise call.error("@shell needs --allow-shell of blockmon run")
        runner.give_text(call.statement, await _output(command, {**os.environ, **runner.variables}))

    return act


async def _output(command: str, environment: dict[str, str]) -> str:
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_shell(
            command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
            # Of its own, so that everything it has started can be ended with it.
            start_new_session=True,
        )
    )
    try:
        # It may be running before asyncio is done with starting it.
        process = await asyncio.shield(starting)
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        process = await starting
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        raise
    status = process.returncode
    if status:
        how = f"exit status {status}" if status > 0 else f"killed by {signal.Signals(-status).name}"
        raise StatementFailed(f"@shell {command}: {how}")
    return output.decode(errors="replace").removesuffix("\n")
