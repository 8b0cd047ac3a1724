"""Making a guest device out of its properties, with QEMU's checks in QEMU's order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from engine.devices.bus import Bus, Device
from engine.devices.checks import (
    NO_GRANULARITY,
    check_block_sizes,
    check_controller,
    check_geometry,
    check_queues,
    check_virtio_limits,
)
from engine.devices.disk import Disk, Traits
from engine.devices.machine import PERIPHERAL
from engine.devices.models import Kind, Model, find_model
from engine.devices.properties import UNSET, as_text
from engine.errors import DeviceNotFound, GenericError
from engine.graph.backend import BlockBackend
from engine.graph.graph import id_wellformed
from engine.graph.iothreads import set_iothread
from engine.graph.permissions import Perm
from engine.objects.iothread import IOThread

if TYPE_CHECKING:
    from engine.devices.machine import Machine
    from engine.graph.node import Node

_NOT_PLUGGABLE = frozenset({"piix3-ide", "PIIX4_PM", "PIIX3", "i440FX"})


class Adding:
    """One addition to a machine. Control plane."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._engine = machine.engine

    def make(self, properties: Mapping[str, object], read_only: bool) -> Device:
        """A device that is ready for its place on the bus. Errors: GenericError, DeviceNotFound; nothing made then."""
        given = {name: text for name, value in properties.items() if (text := as_text(value)) is not None}
        driver = given.pop("driver", None)
        # As in QEMU an id that is no string is none at all.
        id = given.pop("id", None) if isinstance(properties.get("id"), str) else None
        given.pop("id", None)
        if id is not None and not id_wellformed(id):
            raise GenericError("Parameter 'id' expects an identifier")
        if driver is None:
            raise GenericError("Parameter 'driver' is missing")
        model = find_model(driver)
        if model is None:
            if driver in _NOT_PLUGGABLE:
                raise GenericError("Parameter 'driver' expects a pluggable device type")
            raise GenericError(f"'{driver}' is not a valid device model name")
        bus = self._choose_bus(model, given.pop("bus", None))
        device = self._named(model, id)
        drive = self._read_values(device, model, given)
        device.bus = bus
        bus.place(device)
        self._realize(device, model, drive, read_only)
        return device

    def _resolve_drive(self, owner: str, name: str) -> BlockBackend | Node:
        graph = self._engine.graph
        backend = graph.find_backend(name)
        if backend is not None:
            if backend.device is not None:
                raise GenericError(f"Drive '{name}' is already in use by another device")
            return backend
        node = graph.nodes.get(name)
        if node is None:
            raise GenericError(f"Property '{owner}.drive' can't find value '{name}'")
        return node

    def _choose_bus(self, model: Model, path: str | None) -> Bus:
        if path is not None:
            bus = self._machine.find_bus(path)
            if bus.type != model.bus:
                raise GenericError(f"Device '{model.name}' can't go on {bus.type} bus")
            return bus
        found = next((bus for bus in self._machine.all_buses() if bus.type == model.bus), None)
        if found is None:
            raise GenericError(f"No '{model.bus}' bus found for device '{model.name}'")
        return found

    def _named(self, model: Model, id: str | None) -> Device:
        if id is None:
            path = self._machine.anonymous_path()
        else:
            path = f"{PERIPHERAL}/{id}"
            if self._machine.has_path(path):
                raise GenericError(f"Duplicate device ID '{id}'")
        device = Device(model.name, path, id, model)
        if model.part:
            bus = f"{id}.0" if id is not None else "scsi.0"
            device.part = Device(model.inner or "scsi-hd", f"{path}/{model.part.format(bus=bus)}")
        return device

    def _read_values(self, device: Device, model: Model, given: Mapping[str, str]) -> BlockBackend | Node | None:
        """Read the properties into the device; returns what its drive is."""
        table = model.properties
        device.values = {prop.name: prop.default for prop in table.values() if prop.default is not UNSET}
        drive: BlockBackend | Node | None = None
        for name, text in given.items():
            prop = table.get(name)
            if prop is None:
                raise GenericError(f"Property '{model.name}.{name}' not found")
            if prop.type.startswith("child<"):
                raise GenericError(f"Property '{model.name}.{name}' is not writable")
            device.values[name] = prop.read(model.owner_of(name), text)
            if name == "drive" and text:
                drive = self._resolve_drive(model.owner_of(name), text)
            elif name == "iothread" and text:
                device.iothread = self._find_iothread(text)
        boot = device.values.get("bootindex", -1)
        if boot >= 0 and any(other.values.get("bootindex") == boot for other in self._machine.devices):
            raise GenericError(f"The bootindex {boot} has already been used")
        return drive

    def _find_iothread(self, name: str) -> IOThread:
        found = self._engine.objects.get(name, IOThread)
        if found is None:
            raise DeviceNotFound(f"Device '{name}' not found")
        return found

    # -- realizing -----------------------------------------------------------------------------------------------

    def _realize(self, device: Device, model: Model, drive: BlockBackend | Node | None, read_only: bool) -> None:
        if model.kind is Kind.CONTROLLER:
            if model.is_virtio:
                check_controller(device.values)
            bus = Bus(self._bus_name(device, model.gives), model.gives, iothread=device.iothread)
            (device.part or device).buses.append(bus)
            return
        graph = self._engine.graph
        if model.name == "nvme":
            if "serial" not in device.values:
                raise GenericError("serial property not set")
            if drive is None:
                return  # a controller without a namespace
        if drive is None and model.needs_drive:
            raise GenericError("No drive specified" if model.bus == "IDE" else "drive property not set")
        if isinstance(drive, BlockBackend):
            self._disk(device, model, drive, drive, read_only)
            return
        backend = graph.add_backend("device", "", drive, Perm.NONE, Perm.ALL)
        try:
            self._disk(device, model, backend, drive, read_only)
        except BaseException:
            graph.remove_backend(backend)
            raise

    def _bus_name(self, device: Device, kind: str) -> str:
        if device.id is not None:
            return f"{device.id}.0"
        return f"{kind.lower()}.{self._machine.bus_number(kind)}"

    def _disk(
        self, device: Device, model: Model, backend: BlockBackend, drive: BlockBackend | Node | None, read_only: bool
    ) -> None:
        values = device.values
        removable = not model.needs_drive or values.get("removable", False)
        if backend.root is None and not removable:
            raise GenericError("Device needs media, but drive is empty")
        if model.is_virtio:
            check_queues(values)
        else:
            if model.bus == "IDE" and values["discard_granularity"] == NO_GRANULARITY:
                values["discard_granularity"] = 512
            check_block_sizes(model, values)
        inner = device.part or device
        traits = Traits(
            removable=removable,
            tray=removable and model.kind is not Kind.FLOPPY,
            writable=model.kind is not Kind.CDROM and not read_only,
            resizable=model.kind is Kind.DISK and model.name != "nvme",
            stops=model.stops,
            merges=values.get("request-merging", False),
            sector=values["logical_block_size"] or 512,
        )
        # As in QEMU: a virtio-blk device's own iothread takes over only when its guest drives it in earnest.
        wanted = device.bus.iothread if device.bus is not None else None
        node = backend.root.child if backend.root is not None else None
        before = node.iothread if node is not None else None
        if node is not None:
            set_iothread(node, wanted, asked_by=backend)
        backend.iothread = wanted
        former = backend.perm, backend.shared
        disk = Disk(self._engine, backend, traits, label=inner.label, title=device.label, share_rw=values["share-rw"])
        try:
            if not model.is_virtio:
                check_geometry(model, values)
            if model.name == "ide-hd" and not disk.may_write:
                raise GenericError("Block node is read-only")  # there are no read-only ATA disks
            disk.apply_permissions(empty=drive is None and model.kind is Kind.FLOPPY)
            if model.is_virtio:
                check_geometry(model, values)
                check_block_sizes(model, values)
                check_virtio_limits(values)
                disk.traits = replace(traits, sector=values["logical_block_size"])
        except BaseException:
            backend.device = None
            backend.io_status_enabled = False
            backend.iothread = None
            backend.take(*former)
            if node is not None:
                set_iothread(node, before, asked_by=backend)
            raise
        self._configure(backend, values)
        backend.model = model.name
        inner.disk = disk

    def _configure(self, backend: BlockBackend, values: Mapping[str, Any]) -> None:
        """The settings of the back end that the device has a say in."""
        if values["write-cache"] != "auto":
            backend.write_cache = values["write-cache"] == "on"
        for name, attribute in (("rerror", "on_read_error"), ("werror", "on_write_error")):
            if values.get(name, "auto") != "auto":
                setattr(backend, attribute, values[name])
        for name, attribute in (("account-invalid", "account_invalid"), ("account-failed", "account_failed")):
            if values[name] != "auto":
                setattr(backend.stats, attribute, values[name] == "on")
