"""Guest devices as qom-list, qom-get and qom-set see them: their properties, by path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.devices.media import swap_node
from engine.devices.properties import UNSET
from engine.errors import GenericError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.devices.bus import Device
    from engine.devices.machine import Machine

_PERIPHERAL = ("peripheral", "peripheral-anon")
_OWN = {"type": "string", "realized": "bool"}


class DeviceObject:
    """One device, or the part of one that does the work. children: none, its part is found by its own path."""

    def __init__(self, device: Device, outer: Device) -> None:
        self.path = device.path
        self.children: dict[str, Any] = {}
        self._device = device
        self._outer = outer

    def qom_name(self) -> str:
        return self._device.type

    def property_types(self) -> dict[str, str]:
        model = self._outer.model
        return _OWN | ({name: prop.type for name, prop in model.properties.items()} if model is not None else {})

    def get_property(self, name: str) -> Any:
        if name in ("type", "realized"):
            return self._device.type if name == "type" else True
        types = self.property_types()
        if name not in types:
            raise GenericError(f"Property '{self._device.type}.{name}' not found")
        if name == "drive":
            disk = self._device.disk or (self._device.part.disk if self._device.part is not None else None)
            root = disk.backend.root if disk is not None else None
            return (disk.backend.name if disk is not None else "") or (root.child.name if root is not None else "")
        value = self._outer.values.get(name, -1 if name == "bootindex" else UNSET)
        return "" if value is UNSET or value is None else value

    def set_property(self, name: str, value: Any, *, text: bool = False) -> None:
        """Only another drive can be given to a device in use. Errors: GenericError."""
        self.get_property(name)
        device = self._device
        if name != "drive":
            model = self._outer.model
            owner = model.owner_of(name) if model is not None else device.type
            known = owner == self._outer.type and self._outer.id is not None
            label = f"device '{self._outer.id}'" if known else "anonymous device"
            raise GenericError(f"Attempt to set property '{name}' on {label} (type '{owner}') after it was realized")
        if not isinstance(value, str):
            raise GenericError("Invalid parameter type for 'drive', expected: string")
        disk = device.disk or (device.part.disk if device.part is not None else None)
        if disk is None:
            raise GenericError(f"Property '{device.type}.{name}' cannot be changed without a drive")
        swap_node(disk.backend, disk.backend.node.graph.find(None, value))


class MachineObject:
    """``/machine`` or one of its containers."""

    def __init__(self, path: str, children: dict[str, Any]) -> None:
        self.path = path
        self.children = children

    def qom_name(self) -> str:
        return "pc-i440fx-7.2-machine" if self.path == "/machine" else "container"

    def property_types(self) -> dict[str, str]:
        return {"type": "string"} | {name: f"child<{child.qom_name()}>" for name, child in self.children.items()}

    def get_property(self, name: str) -> Any:
        if name == "type":
            return self.qom_name()
        if name in self.children:
            return f"{self.path}/{name}"
        raise GenericError(f"Property '{self.qom_name()}.{name}' not found")

    def set_property(self, name: str, value: Any, *, text: bool = False) -> None:
        self.get_property(name)
        raise GenericError(f"Property '{self.qom_name()}.{name}' is not writable")


def _objects(machine: Machine) -> Iterator[DeviceObject]:
    for device in machine.devices:
        yield DeviceObject(device, device)
        if device.part is not None:
            yield DeviceObject(device.part, device)


def machine_tree(machine: Machine) -> MachineObject | None:
    """``/machine`` with the devices that were added; None without any."""
    below: dict[str, dict[str, DeviceObject]] = {name: {} for name in _PERIPHERAL}
    for device in machine.devices:
        container, _, name = device.path.removeprefix("/machine/").partition("/")
        below[container][name] = DeviceObject(device, device)
    if not any(below.values()):
        return None
    return MachineObject("/machine", {name: MachineObject(f"/machine/{name}", below[name]) for name in _PERIPHERAL})


def find_devices(machine: Machine, path: str) -> list[DeviceObject]:
    """The devices and parts of devices that *path*, whole or the end of one, means."""
    wanted = "/".join(part for part in path.split("/") if part)
    if path.startswith("/"):
        return [found for found in _objects(machine) if found.path == f"/{wanted}"]
    return [found for found in _objects(machine) if wanted and found.path.endswith(f"/{wanted}")]
