"""Guest devices and the buses they plug into."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine.errors import GenericError

if TYPE_CHECKING:
    from engine.devices.disk import Disk
    from engine.devices.models import Model
    from engine.objects.iothread import IOThread

PCI_FUNCTIONS = 8
_PCI_SLOTS = 32
_AUTO = (1 << 32) - 1
_SCSI_TARGETS = 255
_SCSI_LUNS = 16383
_UNITS = 2
"""Drives on an IDE channel or a floppy controller."""


@dataclass(eq=False)
class Device:
    """A device in the tree. path: its place there. part: the inner device that does the work (virtio's back end).

    address: its place on the bus, as the bus counts. leaving: the guest was asked to let it go. iothread: cannot be
    deleted while the device is there.
    """

    type: str
    path: str
    id: str | None = None
    model: Model | None = None
    values: dict[str, Any] = field(default_factory=dict)
    bus: Bus | None = None
    buses: list[Bus] = field(default_factory=list)
    part: Device | None = None
    disk: Disk | None = None
    address: tuple[int, ...] = ()
    leaving: bool = False
    iothread: IOThread | None = None

    @property
    def label(self) -> str:
        """The id, or the path."""
        return self.id if self.id is not None else self.path


@dataclass(eq=False)
class Bus:
    """A bus. type: what plugs into it. asks_guest: whether the guest has a say in unplugging. iothread: where the nodes
    of its disks have to be.
    """

    name: str
    type: str
    devices: list[Device] = field(default_factory=list)
    asks_guest: bool = False
    iothread: IOThread | None = None

    def buses(self) -> Iterator[Bus]:
        """This bus and those of its devices, newest device first."""
        yield self
        for device in reversed(self.devices):
            for bus in device.buses + (device.part.buses if device.part is not None else []):
                yield from bus.buses()

    def place(self, device: Device) -> None:
        """Find the place of *device* on this bus, by its properties. Errors: GenericError."""
        if self.type == "PCI":
            self._place_pci(device)
        elif self.type == "SCSI":
            self._place_scsi(device)
        elif self.type == "usb-bus":
            device.address = (max((port for (port,) in self._taken()), default=0) + 1,)
        else:
            self._place_unit(device)

    def _taken(self) -> dict[tuple[int, ...], Device]:
        return {device.address: device for device in self.devices}

    def _place_pci(self, device: Device) -> None:
        taken = self._taken()
        wanted = device.values["addr"]
        if wanted < 0:
            for slot in range(_PCI_SLOTS):
                if (slot, 0) not in taken:
                    device.address = (slot, 0)
                    return
            raise GenericError(f"PCI: no slot/function available for {device.type}, all in use or reserved")
        slot, function = divmod(wanted, PCI_FUNCTIONS)
        other = taken.get((slot, function))
        if other is not None:
            raise GenericError(
                f"PCI: slot {slot} function {function} not available for {device.type}, "
                f"in use by {other.type},id={other.id or '(null)'}"
            )
        first = taken.get((slot, 0))
        if function and first is not None and not first.values.get("multifunction"):
            raise GenericError(
                f"PCI: slot {slot} function 0 already occupied by {first.type}, "
                f"new func {device.type} cannot be exposed to guest."
            )
        device.address = (slot, function)

    def _place_scsi(self, device: Device) -> None:
        channel, target, lun = (device.values[name] for name in ("channel", "scsi-id", "lun"))
        if channel:
            raise GenericError(f"bad scsi channel id: {channel}")
        if target != _AUTO and target > _SCSI_TARGETS:
            raise GenericError(f"bad scsi device id: {target}")
        if lun != _AUTO and lun > _SCSI_LUNS:
            raise GenericError(f"bad scsi device lun: {lun}")
        taken = self._taken()
        if target == _AUTO:
            at = 0 if lun == _AUTO else lun
            found = next((number for number in range(_SCSI_TARGETS + 1) if (0, number, at) not in taken), None)
            if found is None:
                raise GenericError("no free target")
            device.address = (0, found, at)
        elif lun == _AUTO:
            found = next((number for number in range(_SCSI_LUNS + 1) if (0, target, number) not in taken), None)
            if found is None:
                raise GenericError("no free lun")
            device.address = (0, target, found)
        else:
            other = taken.get((0, target, lun))
            if other is not None:
                raise GenericError(f"lun already used by '{other.id or '(null)'}'")
            device.address = (0, target, lun)

    def _place_unit(self, device: Device) -> None:
        kind = "IDE" if self.type == "IDE" else "floppy"
        taken = self._taken()
        unit = device.values["unit"]
        if unit == _AUTO:
            unit = next((number for number in range(_UNITS) if (number,) not in taken), _UNITS)
            if kind == "IDE":
                unit = min(unit, _UNITS - 1)  # QEMU just looks whether there is a first drive
        if unit >= _UNITS:
            raise GenericError(f"Can't create {kind} unit {unit}, bus supports only {_UNITS} units")
        if (unit,) in taken:
            raise GenericError(f"{kind[0].upper()}{kind[1:]} unit {unit} is in use")
        device.address = (unit,)
