"""The machine: a PC's buses, the devices on them, and whether its guests run.

There is no processor: the guests are simulated, and quick to let go of a device that is unplugged. All buses take
devices at any time (QEMU's IDE and floppy buses do so on the command line only).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from engine.devices.bus import Bus, Device
from engine.devices.events import DeviceDeleted
from engine.devices.runstate import Execution
from engine.errors import DeviceNotFound, GenericError
from engine.graph.backend import BlockBackend
from engine.graph.iothreads import set_iothread
from engine.graph.permissions import Perm
from engine.jobs.types import BlockDeviceIoStatus

if TYPE_CHECKING:
    from engine.devices.disk import Disk
    from engine.engine import Engine
    from engine.graph.node import Node

PERIPHERAL = "/machine/peripheral"


def _board() -> list[Bus]:
    """The buses of QEMU's pc machine, those first that are searched first."""
    pci = Bus("pci.0", "PCI", asks_guest=True)
    for address, kind in (((0, 0), "i440FX"), ((1, 0), "PIIX3"), ((1, 1), "piix3-ide"), ((1, 3), "PIIX4_PM")):
        pci.devices.append(Device(kind, "", address=address, bus=pci, values={"multifunction": address[0] == 1}))
    return [pci, Bus("ide.1", "IDE"), Bus("ide.0", "IDE"), Bus("floppy-bus.0", "floppy-bus")]


class Machine:
    """Guest devices by id and path. Control plane, but for what Execution and Disk allow to any thread."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.execution = Execution(engine)
        self._buses = _board()
        self._devices: dict[str, Device] = {}
        self._anonymous = 0
        self._automatic: dict[str, int] = {}

    # -- looking -------------------------------------------------------------------------------------------------

    @property
    def devices(self) -> list[Device]:
        """All devices that were added, oldest first, without their parts."""
        return [device for device in self._devices.values() if device.bus is not None]

    def find(self, name: str) -> Device:
        """The device with the id or path *name*. Errors: DeviceNotFound."""
        path = name if name.startswith("/") else f"{PERIPHERAL}/{name}"
        device = self._devices.get(path)
        if device is None or not name:
            raise DeviceNotFound(f"Device '{name}' not found")
        return device

    def backend_of(self, name: str) -> BlockBackend:
        """The back end of the device with the id or path *name*. Errors: DeviceNotFound, GenericError."""
        device = self.find(name)
        if device.disk is None:
            raise GenericError("Device does not have a block device backend")
        return device.disk.backend

    def disk(self, name: str) -> Disk:
        """The disk of the device *name*; also by the id of a device whose part it belongs to. Errors: as backend_of."""
        device = self.find(name)
        disk = device.disk or (device.part.disk if device.part is not None else None)
        if disk is None:
            raise GenericError("Device does not have a block device backend")
        return disk

    def all_buses(self) -> Iterator[Bus]:
        for bus in self._buses:
            yield from bus.buses()

    def find_bus(self, path: str) -> Bus:
        first, *rest = path.lstrip("/").split("/") if path.startswith("/") else path.split("/")
        if path.startswith("/"):
            raise DeviceNotFound(f"Device '{first}' not found")
        bus = next((bus for bus in self.all_buses() if bus.name == first and first), None)
        if bus is None:
            raise GenericError(f"Bus '{first}' not found")
        while rest:
            wanted = rest.pop(0)
            device = next((device for device in bus.devices if wanted in (device.id, device.type)), None)
            if device is None:
                raise DeviceNotFound(f"Device '{wanted}' not found")
            inner = device.buses + (device.part.buses if device.part is not None else [])
            name = rest.pop(0) if rest else None
            found = next((bus for bus in inner if name is None or bus.name == name), None)
            if found is None:
                raise GenericError(f"Bus '{name}' not found" if name else f"Device '{wanted}' has no child bus")
            bus = found
        return bus

    # -- back ends -----------------------------------------------------------------------------------------------

    def add_backend(self, name: str, node: Node | None = None) -> BlockBackend:
        """A named back end without a device (as ``-drive if=none`` makes it), perhaps with a medium.

        It takes no permissions until a device uses it. Set its on_read_error, on_write_error, write_cache, root_state
        and stats before. Errors: GenericError.
        """
        graph = self.engine.graph
        if graph.find_backend(name) is not None:
            raise GenericError(f"Device with id '{name}' already exists")
        if name in graph.nodes:
            raise GenericError(f"Device name '{name}' conflicts with an existing node name")
        backend = graph.add_backend("device", name, node, Perm.NONE, Perm.ALL)
        backend.root_state.read_only = False
        return backend

    # -- adding --------------------------------------------------------------------------------------------------

    def add(self, properties: Mapping[str, object], *, read_only: bool = False) -> Device:
        """Add a device by its properties (``driver``, ``id``, ``bus``, …), as device_add has them.

        read_only: the guest cannot write, whatever the medium. Errors: GenericError, DeviceNotFound.
        """
        from engine.devices.adding import Adding

        device = Adding(self).make(properties, read_only)
        assert device.bus is not None
        device.bus.devices.append(device)
        if device.iothread is not None:
            device.iothread.hold(device)
        self._devices[device.path] = device
        if device.part is not None:
            self._devices[device.part.path] = device.part
        self.engine.graph.changed()
        return device

    def has_path(self, path: str) -> bool:
        """Whether a device is there, by its path."""
        return path in self._devices

    def anonymous_path(self) -> str:
        """The path of the next device without an id; numbers are not used again."""
        number = self._anonymous
        self._anonymous += 1
        return f"{PERIPHERAL}-anon/device[{number}]"

    def bus_number(self, kind: str) -> int:
        """The number of the next bus of this type that is named by it."""
        number = self._automatic.get(kind, 0)
        self._automatic[kind] = number + 1
        return number

    # -- removing ------------------------------------------------------------------------------------------------

    def unplug(self, name: str) -> None:
        """Take the device *name* away, as device_del does. A PCI device goes when its guest lets it (at once, unless
        the guests are stopped: then when they go on, or with a reset). Errors: DeviceNotFound, GenericError.
        """
        device = self.find(name)
        if device.leaving:
            raise GenericError(f"Device {name} is already in the process of unplug")
        if device.bus is None:
            raise GenericError("Bus 'virtio-bus' does not support hotplugging")
        if not device.bus.asks_guest:
            self.remove(device)
            return
        device.leaving = True
        if self.execution.running:
            self.engine.control.post(self._let_go)

    def _let_go(self) -> None:
        """The guests give back what they were asked for."""
        if self.execution.running:
            self._remove_leaving()

    def _remove_leaving(self) -> None:
        for device in [device for device in self._devices.values() if device.leaving]:
            self.remove(device)

    def remove(self, device: Device) -> None:
        """Take a device away with all that is on its buses, now."""
        part = device.part
        for bus in device.buses + (part.buses if part is not None else []):
            for other in reversed(list(bus.devices)):
                self.remove(other)
        for one in (part, device):
            if one is None:
                continue
            if one.disk is not None:
                self._release(one.disk)
            if one.iothread is not None:
                one.iothread.release(one)
            del self._devices[one.path]
            if one.bus is not None:
                one.bus.devices.remove(one)
            self.engine.emit(DeviceDeleted(device=one.id, path=one.path))
        self.engine.graph.changed()

    def _release(self, disk: Disk) -> None:
        disk.close()
        root, backend = disk.backend.root, disk.backend
        if root is not None and backend.iothread is not None:
            with suppress(GenericError):  # others that can't move keep it there
                set_iothread(root.child, None, asked_by=backend)
        # A back end made by -drive goes with its device too, as in QEMU.
        self.engine.graph.remove_backend(disk.backend)

    # -- running -------------------------------------------------------------------------------------------------

    def cont(self) -> None:
        """Let the guests run: requests that stopped them are tried again. Named back ends forget the error; others
        keep showing it, as in QEMU 7.2.
        """
        for backend in self.engine.graph.backends:
            if backend.name:
                backend.io_status = "ok"
        for job in self.engine.jobs.block_jobs:
            job.io_status = BlockDeviceIoStatus.OK
        self.execution.cont()
        self._remove_leaving()

    def _disks(self) -> Iterator[Disk]:
        return (device.disk for device in list(self._devices.values()) if device.disk is not None)

    @property
    def media(self) -> list[Node]:
        """The nodes that guests use."""
        return [disk.backend.root.child for disk in self._disks() if disk.backend.root is not None]

    @property
    def settled(self) -> bool:
        """Whether no guest has a request on its way."""
        return all(disk.settled for disk in self._disks())

    def flush(self) -> None:
        """Bring what the guests wrote to stable storage, as far as that works."""
        for disk in self._disks():
            root = disk.backend.root
            if root is not None:
                with suppress(OSError):
                    root.child.flush()

    def reset(self) -> None:
        """Reset the machine: trays close and unlock, devices that were to be unplugged go."""
        self.execution.reset()
        for disk in self._disks():
            disk.reset()
        self._remove_leaving()

    def announce_tray(self, backend: BlockBackend) -> None:
        """Send the event about the tray of *backend*'s device."""
        for disk in self._disks():
            if disk.backend is backend:
                disk.announce_tray()

    def close(self) -> None:
        """The end of the engine: no guest waits any more."""
        for disk in self._disks():
            disk.retire()
