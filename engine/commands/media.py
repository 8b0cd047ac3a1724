"""Commands that change the media of removable devices."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

from engine.devices import media
from engine.devices.media import BlockdevChangeReadOnlyMode
from engine.qapi import Feature, command

if TYPE_CHECKING:
    from engine.engine import Engine

Device = Annotated[str | None, Feature("deprecated")]


@command(since="0.14")
def eject(engine: Engine, *, device: Device = None, id: str | None = None, force: bool | None = None) -> None:
    """Open the tray of a device and take the medium out.

    device: name of the block back end
    id: id or path of the guest device, instead
    force: also when the guest has locked it
    """
    backend = media.find_backend(engine, device, id)
    media.eject(engine, backend, id or device or "", bool(force))


@command(since="2.5")
def blockdev_open_tray(
    engine: Engine, *, device: Device = None, id: str | None = None, force: bool | None = None
) -> None:
    """Open the tray of a device; the medium stays in it. A guest that has locked it is asked to open it.

    device: name of the block back end
    id: id or path of the guest device, instead
    force: open it although the guest has locked it
    """
    backend = media.find_backend(engine, device, id)
    with suppress(media.TrayLocked):
        media.open_tray(engine, backend, id or device or "", bool(force))


@command(since="2.5")
def blockdev_close_tray(engine: Engine, *, device: Device = None, id: str | None = None) -> None:
    """Close the tray of a device.

    device: name of the block back end
    id: id or path of the guest device, instead
    """
    backend = media.find_backend(engine, device, id)
    media.close_tray(engine, backend, id or device or "")


@command(since="2.12")
def blockdev_remove_medium(engine: Engine, *, id: str) -> None:
    """Take the medium out of a device whose tray is open, or that has none.

    id: id or path of the guest device
    """
    media.remove_medium(engine, media.find_backend(engine, None, id), id)


@command(since="2.12")
def blockdev_insert_medium(engine: Engine, *, id: str, node_name: str) -> None:
    """Put a node into a device as its medium; the tray is to be open, if there is one.

    id: id or path of the guest device
    node_name: the node, that no other device uses
    """
    backend = media.find_backend(engine, None, id)
    media.insert_medium(engine, backend, media.node_to_insert(engine.graph, node_name))


@command(since="2.5")
def blockdev_change_medium(
    engine: Engine,
    *,
    device: Device = None,
    id: str | None = None,
    filename: str,
    format: str | None = None,
    force: bool | None = None,
    read_only_mode: BlockdevChangeReadOnlyMode | None = None,
) -> None:
    """Open an image and put it into a device in place of the medium there; the tray is closed then.

    device: name of the block back end
    id: id or path of the guest device, instead
    filename: the image
    format: its driver, found out when not given
    force: also when the guest has locked the tray
    read_only_mode: whether it is opened read-only; as the last medium by default
    """
    media.change_medium(
        engine,
        media.find_backend(engine, device, id),
        id or device or "",
        filename=filename,
        format=format,
        force=bool(force),
        mode=read_only_mode or BlockdevChangeReadOnlyMode.RETAIN,
    )
