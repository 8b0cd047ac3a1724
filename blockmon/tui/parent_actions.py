"""What can be done to a device or an export, offered only where its state allows it."""

from __future__ import annotations

from blockmon.model.graph import NodeInfo, ParentInfo
from blockmon.model.refresher import DeviceState, ScreenState
from blockmon.tui.choice import Choice, ParentAction, value

_BOUNDARIES = (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
"""Nanoseconds: between these a latency histogram counts requests, from 10 µs to 100 ms."""


def _name(parent: ParentInfo) -> str:
    return value(parent.name or parent.id)


def _device(state: ScreenState, parent: ParentInfo) -> DeviceState:
    return _listed(state, parent) or DeviceState()


def _listed(state: ScreenState, parent: ParentInfo) -> DeviceState | None:
    """What query-block tells of the device, None where it has not been asked."""
    return state.devices.get(parent.name) or state.devices.get(parent.id)


def _root(state: ScreenState, parent: ParentInfo) -> NodeInfo | None:
    for edge in state.graph.children(parent.key):
        if edge.child is not None:
            return state.graph.nodes.get(edge.child)
    return None


def _id(state: ScreenState, parent: ParentInfo, *, drive: bool = False) -> str | None:
    """
    What a command calls the device: its QOM path or id. A virtio device's own id is that of its parent, and one of
    -drive has no id at all. *drive*: the command takes the name of a drive that no guest device uses.
    """
    device = _listed(state, parent)
    if device is None:
        return f"id={_name(parent)}"
    if device.qdev is not None:
        return f"id={value(device.qdev)}"
    return f"device={_name(parent)}" if drive else None


def _with(named: str | None, more: str) -> str | None:
    return None if named is None else f"{named} {more}"


def _open_tray(state: ScreenState, parent: ParentInfo) -> str | None:
    return _id(state, parent, drive=True) if _device(state, parent).tray_open is False else None


def _close_tray(state: ScreenState, parent: ParentInfo) -> str | None:
    return _id(state, parent, drive=True) if _device(state, parent).tray_open is True else None


def _eject(state: ScreenState, parent: ParentInfo) -> str | None:
    device = _device(state, parent)
    return _id(state, parent, drive=True) if device.removable and device.inserted else None


def _remove_medium(state: ScreenState, parent: ParentInfo) -> str | None:
    device = _device(state, parent)
    open_or_none = device.tray_open is not False
    return _id(state, parent) if device.removable and device.inserted and open_or_none else None


def _insert_medium(state: ScreenState, parent: ParentInfo) -> str | None:
    device = _device(state, parent)
    open_or_none = device.tray_open is not False
    if not device.removable or device.inserted or not open_or_none:
        return None
    return _with(_id(state, parent), "node-name=")


def _change_medium(state: ScreenState, parent: ParentInfo) -> str | None:
    return _with(_id(state, parent, drive=True), "filename=") if _device(state, parent).removable else None


def _throttle(state: ScreenState, parent: ParentInfo) -> str | None:
    if _root(state, parent) is None:
        return None
    return _with(_id(state, parent, drive=True), "bps=0 bps_rd=0 bps_wr=0 iops=0 iops_rd=0 iops_wr=0")


def _histogram(state: ScreenState, parent: ParentInfo) -> str | None:
    if _root(state, parent) is None:
        return None
    limits = " ".join(f"boundaries.{number}={limit}" for number, limit in enumerate(_BOUNDARIES))
    return _with(_id(state, parent), limits)


def _resize(state: ScreenState, parent: ParentInfo) -> str | None:
    node = _root(state, parent)
    return None if node is None or node.read_only else f"node-name={value(node.name)} size={node.size}"


def _delete(state: ScreenState, parent: ParentInfo) -> str | None:
    device = _listed(state, parent)
    if device is None:
        return f"id={_name(parent)}"
    if device.qdev is None:
        return None  # a drive
    path = device.qdev.removesuffix("/virtio-backend")
    return f"id={value(path.removeprefix('/machine/peripheral/'))}"


def _export_del(state: ScreenState, parent: ParentInfo) -> str | None:
    return f"id={_name(parent)}"


def _export_del_hard(state: ScreenState, parent: ParentInfo) -> str | None:
    return f"id={_name(parent)} mode=hard"


DEVICE_ACTIONS: tuple[ParentAction, ...] = (
    ParentAction("e", "eject the medium", "eject", _eject),
    ParentAction("o", "open the tray", "blockdev-open-tray", _open_tray),
    ParentAction("c", "close the tray", "blockdev-close-tray", _close_tray),
    ParentAction("i", "insert a node as the medium", "blockdev-insert-medium", _insert_medium),
    ParentAction("u", "take the medium out", "blockdev-remove-medium", _remove_medium),
    ParentAction("m", "change the medium for an image", "blockdev-change-medium", _change_medium),
    ParentAction("t", "throttle: limit its bytes and requests a second", "block_set_io_throttle", _throttle),
    ParentAction("h", "count its requests by their latency", "block-latency-histogram-set", _histogram),
    ParentAction("r", "resize", "block_resize", _resize),
    ParentAction("d", "take the device away", "device_del", _delete),
)

EXPORT_ACTIONS: tuple[ParentAction, ...] = (
    ParentAction("d", "withdraw the export, once no client uses it", "block-export-del", _export_del),
    ParentAction("D", "withdraw the export and cut its clients off", "block-export-del", _export_del_hard),
)


def parent_choices(state: ScreenState, key: str) -> list[Choice]:
    """What can be done to a device or an export, by its key; nothing for other parents."""
    parent = state.graph.parents.get(key)
    if parent is None:
        return []
    actions = {"device": DEVICE_ACTIONS, "export": EXPORT_ACTIONS}.get(parent.kind, ())
    found: list[Choice] = []
    for action in actions:
        if action.command in state.commands:
            arguments = action.write(state, parent)
            if arguments is not None:
                found.append(Choice(action.key, action.name, f"{action.command} {arguments}"))
    return found
