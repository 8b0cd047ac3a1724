"""Our own commands for simulated guests: workloads, single requests, and a guest's hand on its tray."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.devices.guest import Guest, Workload
from engine.errors import DeviceNotFound, GenericError, os_error_text
from engine.monitor.threads import in_thread
from engine.qapi import Enum, Size, UInt8, UInt32, command

if TYPE_CHECKING:
    from engine.devices.disk import Disk
    from engine.engine import Engine

_MAX_REQUEST = 64 << 20


@command(name="x-blockmon-guest-add", features=("unstable",))
def x_blockmon_guest_add(
    engine: Engine,
    *,
    id: str,
    node_name: str | None = None,
    device: str | None = None,
    iops: UInt32 | None = None,
    write_percent: UInt32 | None = None,
    request_size: Size | None = None,
    span: Size | None = None,
    seed: UInt32 | None = None,
) -> None:
    """Let a simulated guest read and write at random, on a device or on a node that becomes its disk.

    id: name of the guest, and of the virtio-blk device it gets with node-name
    node_name: the node that becomes its disk
    device: id or path of the device it uses, instead
    iops: requests a second, 100 by default
    write_percent: share of writes among them, 50 by default
    request_size: bytes of a request, 4096 by default
    span: bytes at the start of the disk that are touched, all by default
    seed: of the random numbers
    """
    graph = engine.graph
    if not id or id in graph.nodes or id in engine.guests or (device is None and graph.find_backend(id) is not None):
        raise GenericError(f"Duplicate or empty device id '{id}'")
    if (node_name is None) == (device is None):
        raise GenericError("Need exactly one of 'node-name' and 'device'")
    workload = Workload(
        iops=100 if iops is None else iops,
        write_percent=50 if write_percent is None else write_percent,
        request_size=request_size or 4096,
        span=span or 0,
        seed=seed or 0,
    )
    if not 1 <= workload.iops <= 1_000_000:
        raise GenericError("Parameter 'iops' expects a value from 1 to 1000000")
    if workload.write_percent > 100:
        raise GenericError("Parameter 'write-percent' expects a value from 0 to 100")
    if workload.request_size > 16 << 20 or workload.request_size % 512:
        raise GenericError("Parameter 'request-size' expects a multiple of 512 up to 16777216")
    machine = engine.machine
    if device is not None:
        engine.guests[id] = Guest(machine, id, machine.disk(device), workload, owned=None)
        return
    assert node_name is not None
    backend = machine.add_backend(id, graph.node(node_name))
    try:
        own = machine.add({"driver": "virtio-blk", "id": id, "drive": id}, read_only=not workload.write_percent)
    except BaseException:
        graph.remove_backend(backend)
        raise
    engine.guests[id] = Guest(machine, id, machine.disk(id), workload, owned=own)


@command(name="x-blockmon-guest-del", features=("unstable",))
def x_blockmon_guest_del(engine: Engine, *, id: str) -> None:
    """Stop a simulated guest, and remove its device if it was made for it.

    id: name of the guest
    """
    guest = engine.guests.pop(id, None)
    if guest is None:
        raise DeviceNotFound(f"Device '{id}' not found")
    guest.stop()


class XBlockmonGuestOperation(Enum):
    """What a guest may ask of its disk.

    read: read data
    write: write data
    write-zeroes: write zeros without sending them
    discard: give space back
    flush: have everything written down
    """

    READ = "read"
    WRITE = "write"
    WRITE_ZEROES = "write-zeroes"
    DISCARD = "discard"
    FLUSH = "flush"


@command(name="x-blockmon-guest-request", features=("unstable",))
async def x_blockmon_guest_request(
    engine: Engine,
    *,
    device: str,
    operation: XBlockmonGuestOperation,
    offset: Size | None = None,
    length: Size | None = None,
    pattern: UInt8 | None = None,
) -> None:
    """Do one request as the guest of a device does it, error policy included; answers when the request is done.

    A request that stops the guests is done when they were resumed and it was tried again.

    device: id or path of the device
    operation: what to do
    offset: where, bytes
    length: how much, bytes, 512 by default
    pattern: what a write fills it with, and what a read expects to find
    """
    disk = engine.machine.disk(device)
    at, size = offset or 0, 512 if length is None else length
    if size > _MAX_REQUEST:
        raise GenericError(f"Parameter 'length' expects a value up to {_MAX_REQUEST}")
    try:
        await in_thread(lambda: _request(disk, operation, at, size, pattern))
    except OSError as exc:
        raise GenericError(f"{operation} failed: {os_error_text(exc)}") from exc


def _request(disk: Disk, operation: XBlockmonGuestOperation, at: int, size: int, pattern: int | None) -> None:
    match operation:
        case XBlockmonGuestOperation.READ:
            buffer = bytearray(size)
            disk.read(at, memoryview(buffer))
            if pattern is not None and buffer != bytes([pattern]) * size:
                raise GenericError(f"Pattern verification failed at offset {at}, {size} bytes")
        case XBlockmonGuestOperation.WRITE:
            disk.write(at, memoryview(bytes([pattern or 0]) * size))
        case XBlockmonGuestOperation.WRITE_ZEROES:
            disk.write_zeroes(at, size)
        case XBlockmonGuestOperation.DISCARD:
            disk.discard(at, size)
        case XBlockmonGuestOperation.FLUSH:
            disk.flush()


@command(name="x-blockmon-guest-tray", features=("unstable",))
def x_blockmon_guest_tray(engine: Engine, *, device: str, lock: bool | None = None, open: bool | None = None) -> None:
    """Lock or unlock, open or close the tray of a device, as its guest does.

    device: id or path of the device
    lock: whether the medium may not be taken out from now on
    open: where the tray is to be; done after *lock*
    """
    disk = engine.machine.disk(device)
    if not disk.has_tray:
        raise GenericError(f"Device '{device}' does not have a tray")
    if lock is not None:
        disk.guest_lock(lock)
    if open is not None:
        try:
            disk.guest_move_tray(open)
        except OSError:
            raise GenericError(f"Device '{device}' is locked by its guest") from None
