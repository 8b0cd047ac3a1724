"""Commands about monitors and what they sit on: negotiation, HMP in QMP, character devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.errors import CommandNotFound, GenericError
from engine.qapi import Enum, Int, Struct, command, event

if TYPE_CHECKING:
    from engine.engine import Engine


class QMPCapability(Enum):
    """What a client and a server may agree on. oob: commands ahead of those that are queued."""

    OOB = "oob"


@command(name="qmp_capabilities", allow_preconfig=True)
def qmp_capabilities(session: Any, *, enable: list[QMPCapability] | None = None) -> None:
    """Leave the negotiation mode of a connection.

    enable: capabilities of the greeting to use
    """
    # Called with the connection itself; whoever has the engine in the same process has nothing to negotiate.
    negotiate = getattr(session, "negotiate", None)
    if negotiate is None:
        raise CommandNotFound("Capabilities negotiation is already complete, command ignored")
    negotiate([str(capability) for capability in enable or ()])


@event
class XBlockmonEventsLost(Struct, name="X_BLOCKMON_EVENTS_LOST", features=("unstable",)):
    """This client did not read for so long that events for it were dropped; it had better query the state anew.

    count: how many
    """

    count: Int


@command(since="0.14")
async def human_monitor_command(engine: Engine, *, command_line: str, cpu_index: Int | None = None) -> str:
    """Run a command of the human monitor and return what it printed.

    command_line: as it would be typed
    cpu_index: the processor that commands about processors mean; there are none here
    """
    from engine.monitor.hmp import run_line

    if cpu_index is not None:
        raise GenericError("Parameter 'cpu-index' expects a CPU number")
    return await run_line(engine, command_line)


class ChardevInfo(Struct):
    """A character device. filename: what it is connected to. frontend_open: whether a monitor uses it."""

    label: str
    filename: str
    frontend_open: bool


@command(since="0.14", allow_preconfig=True)
def query_chardev(engine: Engine) -> list[ChardevInfo]:
    """List the character devices."""
    from engine.monitor.server import chardevs_of

    return [
        ChardevInfo(label=chardev.label, filename=chardev.filename, frontend_open=chardev.in_use)
        for chardev in chardevs_of(engine)
    ]


class ChardevBackendInfo(Struct):
    """A kind of character device."""

    name: str


@command(since="2.0")
def query_chardev_backends(engine: Engine) -> list[ChardevBackendInfo]:
    """List the kinds of character devices that --chardev takes."""
    from engine.monitor.chardev.kinds import backend_names

    return [ChardevBackendInfo(name=name) for name in backend_names()]
