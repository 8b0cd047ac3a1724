"""block_set_io_throttle: limits of devices."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Final

from engine.devices.media import find_backend
from engine.errors import GenericError
from engine.graph.backend import BlockBackend
from engine.qapi import Feature, Int, Struct, command
from engine.throttle.backends import set_limits
from engine.throttle.group import ThrottleMember
from engine.throttle.limits import UINT64_MAX, Kind, ThrottleConfig

if TYPE_CHECKING:
    from engine.engine import Engine

STEMS: Final = {
    Kind.BPS_TOTAL: "bps",
    Kind.BPS_READ: "bps_rd",
    Kind.BPS_WRITE: "bps_wr",
    Kind.IOPS_TOTAL: "iops",
    Kind.IOPS_READ: "iops_rd",
    Kind.IOPS_WRITE: "iops_wr",
}
"""How limits are called in this command and in query-block."""


class BlockIOThrottle(Struct, underscores=True):
    """Limits of a device; 0 takes a limit away, all 0 end the throttling.

    device: the device's name. id: id or path of the guest device. group: devices of one group share their limits; by
    default a group called as the device.
    bps, bps_rd, bps_wr: bytes a second, in all or one way. iops, iops_rd, iops_wr: requests a second, in all or one
    way. bps_max, bps_rd_max, bps_wr_max: bytes a second in bursts. iops_max, iops_rd_max, iops_wr_max: requests a
    second in bursts. bps_max_length, bps_rd_max_length, bps_wr_max_length: seconds that bursts may last.
    iops_max_length, iops_rd_max_length, iops_wr_max_length: seconds that bursts may last. iops_size: bytes a request
    may have to count as one.
    """

    device: Annotated[str | None, Feature("deprecated")] = None
    id: str | None = None
    bps: Int
    bps_rd: Int
    bps_wr: Int
    iops: Int
    iops_rd: Int
    iops_wr: Int
    bps_max: Int | None = None
    bps_rd_max: Int | None = None
    bps_wr_max: Int | None = None
    iops_max: Int | None = None
    iops_rd_max: Int | None = None
    iops_wr_max: Int | None = None
    bps_max_length: Int | None = None
    bps_rd_max_length: Int | None = None
    bps_wr_max_length: Int | None = None
    iops_max_length: Int | None = None
    iops_rd_max_length: Int | None = None
    iops_wr_max_length: Int | None = None
    iops_size: Int | None = None
    group: str | None = None

    def config(self) -> ThrottleConfig:
        """The limits, not checked yet."""
        config = ThrottleConfig()
        for kind, stem in STEMS.items():
            length = getattr(self, f"{stem}_max_length")
            config = config.with_rate(
                kind,
                avg=getattr(self, stem),
                max=getattr(self, f"{stem}_max") or 0,
                burst_length=1 if length is None else length & UINT64_MAX,
            )
        return config if self.iops_size is None else replace(config, op_size=self.iops_size)


@command(name="block_set_io_throttle", since="1.1", boxed=True)
def block_set_io_throttle(engine: Engine, options: BlockIOThrottle) -> None:
    """Change the limits of a device, and with it those of its throttle group."""
    backend = find_backend(engine, options.device, options.id)
    if backend.root is None:
        raise GenericError("Device has no medium")
    config = options.config()
    config.check()
    groups = engine.objects.throttle_groups
    set_limits(groups, backend, config, options.group, options.device or options.id or "")
    engine.graph.changed()


def shown_limits(backend: BlockBackend | None) -> dict[str, Any]:
    """The limits of a device as members of query-block's BlockDeviceInfo, those that are always there included."""
    values: dict[str, Any] = dict.fromkeys(STEMS.values(), 0)
    member = backend.limiter if backend is not None else None
    if not isinstance(member, ThrottleMember):
        return values
    config = member.group.config
    for kind, stem in STEMS.items():
        rate = config.rates[kind]
        values[stem] = rate.avg
        if rate.max:
            values[f"{stem}_max"] = rate.max
            values[f"{stem}_max_length"] = rate.burst_length
    if config.op_size:
        values["iops_size"] = config.op_size
    values["group"] = member.group.name
    return values
