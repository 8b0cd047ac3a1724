"""Throttling limits: what a person sets, what is valid (QEMU's throttle_is_valid, texts included)."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from typing import Final

from engine.errors import GenericError
from engine.qapi import Int, Struct

VALUE_MAX: Final = 10**15
"""Largest rate, in bytes or requests a second."""
UINT32_MAX: Final = (1 << 32) - 1
UINT64_MAX: Final = (1 << 64) - 1


class Direction(enum.IntEnum):
    """Which way data goes; discards and zero writes count as writes."""

    READ = 0
    WRITE = 1


class Kind(enum.IntEnum):
    """The six buckets."""

    BPS_TOTAL = 0
    BPS_READ = 1
    BPS_WRITE = 2
    IOPS_TOTAL = 3
    IOPS_READ = 4
    IOPS_WRITE = 5

    @property
    def wire(self) -> str:
        """The bucket's name in option names: ``bps-total``."""
        return self.name.lower().replace("_", "-")


@dataclass(frozen=True, slots=True)
class Rate:
    """Limits of one bucket, a second: average, burst (0 for none), and for how many seconds bursts may last."""

    avg: int = 0
    max: int = 0
    burst_length: int = 1


@dataclass(frozen=True, slots=True)
class ThrottleConfig:
    """All limits of a group. op_size: requests larger than these bytes count as several, 0 for never."""

    rates: tuple[Rate, ...] = field(default_factory=lambda: (Rate(),) * len(Kind))
    op_size: int = 0

    @property
    def enabled(self) -> bool:
        """Whether anything is limited."""
        return any(rate.avg > 0 for rate in self.rates)

    def with_rate(self, kind: Kind, **changes: int) -> ThrottleConfig:
        """The same with another *kind* of rate: avg, max, burst_length."""
        rates = list(self.rates)
        rates[kind] = replace(rates[kind], **changes)
        return replace(self, rates=tuple(rates))

    def check(self) -> None:
        """Refuse what makes no sense. Errors: GenericError."""
        rates = self.rates
        for total, read, write in ((0, 1, 2), (3, 4, 5)):
            for of in ("avg", "max"):
                if getattr(rates[total], of) and (getattr(rates[read], of) or getattr(rates[write], of)):
                    raise GenericError(
                        "bps/iops/max total values and read/write values cannot be used at the same time"
                    )
        if self.op_size and not any(rate.avg for rate in rates[Kind.IOPS_TOTAL :]):
            raise GenericError("iops size requires an iops value to be set")
        for rate in rates:
            if not (0 <= rate.avg <= VALUE_MAX and 0 <= rate.max <= VALUE_MAX):
                raise GenericError(f"bps/iops/max values must be within [0, {VALUE_MAX}]")
            if not rate.burst_length:
                raise GenericError("the burst length cannot be 0")
            if rate.burst_length > 1 and not rate.max:
                raise GenericError("burst length set without burst rate")
            if rate.max and rate.burst_length > VALUE_MAX // rate.max:
                raise GenericError("burst length too high for this burst rate")
            if rate.max and not rate.avg:
                raise GenericError("bps_max/iops_max require corresponding bps/iops values")
            if rate.max and rate.max < rate.avg:
                raise GenericError("bps_max/iops_max cannot be lower than bps/iops")


class ThrottleLimits(Struct):
    """Limits of a group; 0 is none.

    bps_total, bps_read, bps_write: bytes a second, in all or one way
    iops_total, iops_read, iops_write: requests a second, in all or one way
    bps_total_max, bps_read_max, bps_write_max: bytes a second in bursts
    iops_total_max, iops_read_max, iops_write_max: requests a second in bursts
    bps_total_max_length, bps_read_max_length, bps_write_max_length: seconds that bursts may last
    iops_total_max_length, iops_read_max_length, iops_write_max_length: seconds that bursts may last
    iops_size: bytes a request may have to count as one
    """

    iops_total: Int | None = None
    iops_total_max: Int | None = None
    iops_total_max_length: Int | None = None
    iops_read: Int | None = None
    iops_read_max: Int | None = None
    iops_read_max_length: Int | None = None
    iops_write: Int | None = None
    iops_write_max: Int | None = None
    iops_write_max_length: Int | None = None
    bps_total: Int | None = None
    bps_total_max: Int | None = None
    bps_total_max_length: Int | None = None
    bps_read: Int | None = None
    bps_read_max: Int | None = None
    bps_read_max_length: Int | None = None
    bps_write: Int | None = None
    bps_write_max: Int | None = None
    bps_write_max_length: Int | None = None
    iops_size: Int | None = None

    def apply_to(self, config: ThrottleConfig) -> ThrottleConfig:
        """*config* with the limits given here; the others stay. Not checked yet. Errors: GenericError."""
        for kind in Kind:
            stem = kind.name.lower()
            changes: dict[str, int] = {}
            for suffix, part in (("", "avg"), ("_max", "max"), ("_max_length", "burst_length")):
                value = getattr(self, stem + suffix)
                if value is None:
                    continue
                if part == "burst_length":
                    if value > UINT32_MAX:
                        raise GenericError(f"{kind.wire}-max-length value must be in the range [0, {UINT32_MAX}]")
                    value &= UINT64_MAX
                changes[part] = value
            if changes:
                config = config.with_rate(kind, **changes)
        return config if self.iops_size is None else replace(config, op_size=self.iops_size)

    @classmethod
    def of(cls, config: ThrottleConfig) -> ThrottleLimits:
        """All limits of *config*."""
        values: dict[str, int] = {"iops_size": config.op_size}
        for kind, rate in zip(Kind, config.rates, strict=True):
            stem = kind.name.lower()
            values[stem], values[f"{stem}_max"] = rate.avg, rate.max
            values[f"{stem}_max_length"] = rate.burst_length
        return cls(**values)
