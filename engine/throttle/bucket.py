"""Leaky buckets: how long the next request has to wait. Pure arithmetic; times are nanoseconds of one clock."""

from __future__ import annotations

from typing import Final

from engine.throttle.limits import Direction, Kind, Rate, ThrottleConfig

NS: Final = 1_000_000_000
_CHECKED: Final = (
    (Kind.BPS_TOTAL, Kind.IOPS_TOTAL, Kind.BPS_READ, Kind.IOPS_READ),
    (Kind.BPS_TOTAL, Kind.IOPS_TOTAL, Kind.BPS_WRITE, Kind.IOPS_WRITE),
)
"""The buckets that a request of each direction goes into."""


class _Bucket:
    """One bucket. level, burst_level: what is in it, in the rate's unit, by the average and the burst limit."""

    __slots__ = ("burst_level", "level", "rate")

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self.level = 0.0
        self.burst_level = 0.0

    def leak(self, seconds: float) -> None:
        rate = self.rate
        self.level = max(self.level - rate.avg * seconds, 0.0)
        if rate.burst_length > 1:
            self.burst_level = max(self.burst_level - rate.max * seconds, 0.0)

    def fill(self, units: float) -> None:
        self.level += units
        if self.rate.burst_length > 1:
            self.burst_level += units

    def delay(self) -> float:
        """Seconds until a request may pass."""
        rate = self.rate
        if not rate.avg:
            return 0.0
        # Without a burst limit a tenth of a second's worth may still go at once, else every second request waits.
        size = rate.max * rate.burst_length if rate.max else rate.avg / 10
        extra = self.level - size
        if extra > 0:
            return extra / rate.avg
        if rate.burst_length > 1:
            extra = self.burst_level - rate.max / 10
            if extra > 0:
                return extra / rate.max
        return 0.0


class Buckets:
    """The buckets of one group."""

    def __init__(self, config: ThrottleConfig, now: int) -> None:
        self.config = config
        self._buckets = [_Bucket(rate) for rate in config.rates]
        self._leaked = now

    def delay(self, direction: Direction, now: int) -> int:
        """Nanoseconds that the next request of *direction* has to wait, 0 for none."""
        if now > self._leaked:
            seconds = (now - self._leaked) / NS
            self._leaked = now
            for bucket in self._buckets:
                bucket.leak(seconds)
        longest = max(self._buckets[kind].delay() for kind in _CHECKED[direction])
        # What rounds to nothing would be asked for again at once, and again.
        return max(round(longest * NS), 1) if longest > 0 else 0

    def account(self, direction: Direction, size: int) -> None:
        """A request of *size* bytes has been let through."""
        op_size = self.config.op_size
        units = size / op_size if 0 < op_size < size else 1.0
        for kind in _CHECKED[direction]:
            self._buckets[kind].fill(size if kind < Kind.IOPS_TOTAL else units)
