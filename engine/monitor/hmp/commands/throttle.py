"""block_set_io_throttle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.monitor.hmp.registry import hmp

if TYPE_CHECKING:
    from engine.monitor.hmp.interpreter import Monitor

_LIMITS = ("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr")


@hmp(
    "block_set_io_throttle",
    args="device:B,bps:l,bps_rd:l,bps_wr:l,iops:l,iops_rd:l,iops_wr:l",
    params="device bps bps_rd bps_wr iops iops_rd iops_wr",
    help="change I/O throttle limits for a block drive",
)
async def _block_set_io_throttle(monitor: Monitor, args: dict[str, Any]) -> None:
    # QEMU: the name of a back end, else the id of a guest device.
    name = args["device"]
    key = "device" if monitor.engine.graph.find_backend(name) is not None else "id"
    await monitor.engine.run_command("block_set_io_throttle", {key: name, **{limit: args[limit] for limit in _LIMITS}})
