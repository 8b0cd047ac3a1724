"""throttle-group: limits that throttle nodes and devices share."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from engine.errors import GenericError
from engine.objects.base import UserObject, user_creatable
from engine.qapi import Feature, Int, Struct, to_wire
from engine.qapi.types import Member
from engine.throttle.group import ThrottleGroup
from engine.throttle.limits import UINT32_MAX, ThrottleConfig, ThrottleLimits

_Single: TypeAlias = Annotated[int | None, Feature("unstable")]


class ThrottleGroupProperties(Struct):
    """limits: what the members may do together; the others are its members as options of their own."""

    limits: ThrottleLimits | None = None
    x_iops_total: _Single = None
    x_iops_total_max: _Single = None
    x_iops_total_max_length: _Single = None
    x_iops_read: _Single = None
    x_iops_read_max: _Single = None
    x_iops_read_max_length: _Single = None
    x_iops_write: _Single = None
    x_iops_write_max: _Single = None
    x_iops_write_max_length: _Single = None
    x_bps_total: _Single = None
    x_bps_total_max: _Single = None
    x_bps_total_max_length: _Single = None
    x_bps_read: _Single = None
    x_bps_read_max: _Single = None
    x_bps_read_max_length: _Single = None
    x_bps_write: _Single = None
    x_bps_write_max: _Single = None
    x_bps_write_max_length: _Single = None
    x_iops_size: _Single = None


def _limits(options: ThrottleGroupProperties) -> ThrottleConfig:
    """What the options of a new object say; ``limits`` wins. Errors: GenericError."""
    single: dict[str, Int] = {}
    for member in options.qapi_members():
        value = getattr(options, member.attr)
        if value is None or member.attr == "limits":
            continue
        if value < 0:
            raise GenericError("Property values cannot be negative")
        if member.attr.endswith("_max_length") and value > UINT32_MAX:
            # QEMU's text has no space there.
            raise GenericError(f"{member.name} value must be in therange [0, {UINT32_MAX}]")
        single[member.attr.removeprefix("x_")] = value
    config = ThrottleLimits(**single).apply_to(ThrottleConfig())
    if options.limits is not None:
        config = options.limits.apply_to(config)
        config.check()
    return config


@user_creatable
class ThrottleGroupObject(UserObject):
    """A throttle group with a name. In use as long as it has members."""

    type_name = "throttle-group"
    Options = ThrottleGroupProperties
    properties = (
        *("x-bps-write-max-length", "x-iops-total-max-length", "x-iops-size", "limits", "x-bps-total"),
        *("x-iops-read-max-length", "x-bps-write", "x-iops-write-max-length", "x-bps-read-max", "x-iops-read-max"),
        *("x-bps-total-max", "x-bps-read-max-length", "x-iops-read", "x-bps-read", "x-bps-write-max"),
        *("x-iops-total-max", "x-iops-total", "x-iops-write", "x-bps-total-max-length", "x-iops-write-max"),
    )
    deletable_in_use = False
    group: ThrottleGroup
    _config: ThrottleConfig

    def __init__(self, objects: Any, id: str, options: ThrottleGroupProperties) -> None:
        super().__init__(objects, id, options)
        self._config = _limits(options)

    def complete(self) -> None:
        self.group = self.objects.throttle_groups.create(self.id, self._config)

    @property
    def in_use(self) -> bool:
        return self.group.in_use

    def close(self) -> None:
        self.group.owned = False
        self.objects.throttle_groups.release(self.group)

    def get_property(self, name: str) -> Any:
        if name == "limits" or name.startswith("x-"):
            wire = to_wire(ThrottleLimits.of(self.group.config))
            if name == "limits":
                return wire
            if name in self.properties:
                return wire[name.removeprefix("x-")]
        return super().get_property(name)

    def set_property(self, name: str, value: Any, *, text: bool = False) -> None:
        if name.startswith("x-") and name in self.properties:
            raise GenericError("Property cannot be set after initialization")
        super().set_property(name, value, text=text)

    def change(self, member: Member, value: ThrottleLimits) -> None:
        """Merge the limits given with those in force."""
        self.group.configure(value.apply_to(self.group.config))
