"""Commands that add and remove guest devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.qapi import command

if TYPE_CHECKING:
    from engine.engine import Engine


@command(name="device_add", since="0.13", features=("json-cli", "json-cli-hotplug"))
def device_add(
    engine: Engine, *, driver: str, bus: str | None = None, id: str | None = None, **properties: Any
) -> None:
    """Add a guest device; its properties are further arguments.

    driver: the model; ``device_add help`` in HMP lists them
    bus: where it plugs in, by the bus's name
    id: what it will be called
    """
    engine.machine.add({"driver": driver, "bus": bus, "id": id, **properties})


@command(name="device_del", since="0.14")
def device_del(engine: Engine, *, id: str) -> None:
    """Take a guest device away; DEVICE_DELETED tells when it has gone.

    id: its id or path
    """
    engine.machine.unplug(id)
