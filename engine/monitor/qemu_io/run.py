"""Running one command of qemu-io on a back end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.errors import GenericError
from engine.monitor.qemu_io import (  # noqa: F401  (registers the commands)
    breaking,
    changing,
    looking,
    reading,
    reopening,
    writing,
)
from engine.monitor.qemu_io.commands import Call, check_count, find
from engine.monitor.qemu_io.requests import outstanding_of
from engine.monitor.qemu_io.text import UsageError
from engine.monitor.threads import in_thread

if TYPE_CHECKING:
    from engine.graph.backend import BlockBackend


async def run_command(backend: BlockBackend, line: str, *, tell: Callable[[str], None] | None, lasting: bool) -> str:
    """Run the command *line* on *backend* and return what it printed. Control plane.

    lasting: the back end outlives the command, so a request in the background may too; what it prints goes to *tell*
    (called in its thread), or is kept for the next aio_flush when that is None. Else it is waited for.
    """
    words = line.split(" ")
    words = [word for word in words if word]
    if not words:
        return ""
    called = words.pop(0)
    command = find(called)
    if command is None:
        return f'command "{called}" not found\n'
    try:
        check_count(command, called, len(words))
    except UsageError as exc:
        return f"{exc}\n"
    call = Call(command, called, words, backend, outstanding_of(backend))
    if not command.perm & ~backend.perm:
        return await _run(call, tell, lasting)
    async with call.outstanding.taking:
        held = backend.perm
        try:
            backend.take(held | command.perm, backend.shared)
        except GenericError as exc:
            return f"{exc.desc}\n"
        try:
            return await _run(call, tell, lasting)
        finally:
            # A request in the background needs them still, and nobody is there to give them back when it is done.
            if not (command.background and lasting) and backend.root is not None:
                backend.take(held, backend.shared)


async def _run(call: Call, tell: Callable[[str], None] | None, lasting: bool) -> str:
    if call.command.background and lasting:
        call.outstanding.start(lambda: _carry_out(call), tell)
        return ""
    text = await in_thread(lambda: _carry_out(call))
    if call.sleep:
        await asyncio.sleep(call.sleep)
    return text


def _carry_out(call: Call) -> str:
    try:
        call.command.run(call)
    except UsageError as exc:
        call.print(f"{exc}\n")
    return "".join(call.printed)
