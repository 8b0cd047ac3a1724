"""Commands that stop and resume the guests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.devices.runstate import RunState
from engine.qapi import Struct, command

if TYPE_CHECKING:
    from engine.engine import Engine


class StatusInfo(Struct):
    """running: whether guests do requests. singlestep: always false. status: in one word."""

    running: bool
    singlestep: bool
    status: RunState


@command(since="0.14", allow_preconfig=True)
def query_status(engine: Engine) -> StatusInfo:
    """Tell whether the guests run."""
    execution = engine.machine.execution
    return StatusInfo(running=execution.running, singlestep=False, status=execution.state)


@command(since="0.14")
def stop(engine: Engine) -> None:
    """Stop the guests: their requests wait."""
    engine.machine.execution.stop()


@command(since="0.14")
def cont(engine: Engine) -> None:
    """Let the guests go on; failed requests that stopped them are tried again."""
    engine.machine.cont()


@command(name="system_reset", since="0.14")
def system_reset(engine: Engine) -> None:
    """Reset the machine."""
    engine.machine.reset()
