"""Our own commands for simulated guests: disks with a workload."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.devices.guest import Guest, Workload
from engine.errors import DeviceNotFound, GenericError
from engine.qapi import Size, UInt32, command

if TYPE_CHECKING:
    from engine.engine import Engine


@command(name="x-blockmon-guest-add", features=("unstable",))
def x_blockmon_guest_add(
    engine: Engine,
    *,
    id: str,
    node_name: str,
    iops: UInt32 | None = None,
    write_percent: UInt32 | None = None,
    request_size: Size | None = None,
    span: Size | None = None,
    seed: UInt32 | None = None,
) -> None:
    """Attach a simulated guest to a node: a device that reads and writes at random.

    id: name of the device
    node_name: the node that becomes its disk
    iops: requests a second, 100 by default
    write_percent: share of writes among them, 50 by default
    request_size: bytes of a request, 4096 by default
    span: bytes at the start of the disk that are touched, all by default
    seed: of the random numbers
    """
    if not id or id in engine.graph.nodes or engine.graph.find_backend(id) is not None:
        raise GenericError(f"Duplicate or empty device id '{id}'")
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
    engine.guests[id] = Guest(engine.graph, id, engine.graph.node(node_name), workload)


@command(name="x-blockmon-guest-del", features=("unstable",))
def x_blockmon_guest_del(engine: Engine, *, id: str) -> None:
    """Stop a simulated guest and remove its device.

    id: name of the device
    """
    guest = engine.guests.pop(id, None)
    if guest is None:
        raise DeviceNotFound(f"Device '{id}' not found")
    guest.stop()
