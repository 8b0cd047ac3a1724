"""Counters of a back end: requests, times, latency histograms, and statistics over intervals of time.

What is counted when follows QEMU: a request that failed, or was refused as invalid, counts as an access of its own and
not among the finished ones; whether it takes part in times is the device's choice (account-failed, account-invalid).
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Final, Literal

Kind = Literal["rd", "wr", "flush", "unmap"]
NEVER: Final = (1 << 64) - 1


class Histogram:
    """How many requests took how long. boundaries: nanoseconds, rising; they part one bin more than there are."""

    def __init__(self, boundaries: Sequence[int]) -> None:
        """Raises ValueError unless the boundaries are positive and rise strictly."""
        last = 0
        for boundary in boundaries:
            if boundary <= last:
                raise ValueError("boundaries of a histogram have to rise")
            last = boundary
        self.boundaries = list(boundaries)
        self.bins = [0] * (len(self.boundaries) + 1)

    def account(self, latency: int) -> None:
        self.bins[bisect_right(self.boundaries, latency)] += 1


class _Window:
    """Sum, count and extremes of the values of a stretch of time."""

    __slots__ = ("count", "expires", "largest", "smallest", "total")

    def __init__(self, expires: int) -> None:
        self.expires = expires
        self.clear()

    def clear(self) -> None:
        self.total = 0
        self.count = 0
        self.smallest = NEVER
        self.largest = 0


class TimedAverage:
    """Average, least and greatest of the values of the last *period* nanoseconds.

    Two windows overlap by half a period; the older one is asked, so an answer rests on at least half a period.
    """

    def __init__(self, period: int, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._period = period
        self._clock = clock
        now = clock()
        self._windows = (_Window(now + period // 2), _Window(now + period))

    def _current(self) -> tuple[_Window, int]:
        now = self._clock()
        for window in self._windows:
            if window.expires <= now:
                window.clear()
                window.expires += ((now - window.expires) // self._period + 1) * self._period
        window = min(self._windows, key=lambda item: item.expires)
        return window, self._period - (window.expires - now)

    def account(self, value: int) -> None:
        self._current()
        for window in self._windows:
            window.total += value
            window.count += 1
            window.smallest = min(window.smallest, value)
            window.largest = max(window.largest, value)

    @property
    def least(self) -> int:
        smallest = self._current()[0].smallest
        return 0 if smallest == NEVER else smallest

    @property
    def greatest(self) -> int:
        return self._current()[0].largest

    @property
    def average(self) -> int:
        window = self._current()[0]
        return window.total // window.count if window.count else 0

    @property
    def load(self) -> float:
        """The sum of the values over the time they were gathered in; of latencies: the mean queue depth."""
        window, elapsed = self._current()
        return window.total / elapsed if elapsed else 0.0


class Interval:
    """Latencies of each kind of request over one interval. seconds: its length."""

    def __init__(self, seconds: int, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.seconds = seconds
        period = seconds * 1_000_000_000
        self.latency = {kind: TimedAverage(period, clock) for kind in ("rd", "wr", "flush")}


class Accounting:
    """Counters of one back end, as query-blockstats names them. Times are nanoseconds.

    account_invalid, account_failed: whether refused and failed requests count as accesses, with their times.
    """

    def __init__(self) -> None:
        self.rd_bytes = 0
        self.wr_bytes = 0
        self.unmap_bytes = 0
        self.rd_operations = 0
        self.wr_operations = 0
        self.flush_operations = 0
        self.unmap_operations = 0
        self.rd_total_time_ns = 0
        self.wr_total_time_ns = 0
        self.flush_total_time_ns = 0
        self.unmap_total_time_ns = 0
        self.rd_merged = 0
        self.wr_merged = 0
        self.unmap_merged = 0
        self.failed_rd_operations = 0
        self.failed_wr_operations = 0
        self.failed_flush_operations = 0
        self.failed_unmap_operations = 0
        self.invalid_rd_operations = 0
        self.invalid_wr_operations = 0
        self.invalid_flush_operations = 0
        self.invalid_unmap_operations = 0
        self.account_invalid = True
        self.account_failed = True
        self.last_access_ns = 0
        self.intervals: list[Interval] = []
        self.histograms: dict[Kind, Histogram] = {}
        self.watched = False
        """Whether observe() has anything to do; the request path looks here only."""

    # -- what is kept besides the counters -------------------------------------------------------------------

    def add_interval(self, seconds: int) -> None:
        """Keep statistics over intervals of *seconds* too."""
        self.intervals.append(Interval(seconds))
        self.watched = True

    def set_histogram(self, kind: Kind, boundaries: Sequence[int]) -> None:
        """Count latencies of *kind* in bins from now on. Raises ValueError for boundaries that do not rise."""
        self.histograms[kind] = Histogram(boundaries)
        self.watched = True

    def clear_histograms(self) -> None:
        self.histograms.clear()
        self.watched = bool(self.intervals)

    # -- requests --------------------------------------------------------------------------------------------

    def observe(self, kind: Kind, latency: int, *, timed: bool = True) -> None:
        """Enter the latency of a request that ended. timed: whether the intervals count it."""
        histogram = self.histograms.get(kind)
        if histogram is not None:
            histogram.account(latency)
        if timed:
            for interval in self.intervals:
                average = interval.latency.get(kind)
                if average is not None:
                    average.account(latency)

    def done(self, kind: Kind, size: int, started: int) -> None:
        """Count a finished request of *size* bytes that began at *started* (monotonic)."""
        self.last_access_ns = now = time.monotonic_ns()
        if kind == "rd":
            self.rd_total_time_ns += now - started
            self.rd_operations += 1
            self.rd_bytes += size
        elif kind == "wr":
            self.wr_total_time_ns += now - started
            self.wr_operations += 1
            self.wr_bytes += size
        elif kind == "flush":
            self.flush_total_time_ns += now - started
            self.flush_operations += 1
        else:
            self.unmap_total_time_ns += now - started
            self.unmap_operations += 1
            self.unmap_bytes += size
        if self.watched:
            self.observe(kind, now - started)

    def failed(self, kind: Kind, started: int | None = None) -> None:
        """Count a request that failed. started: when it began (monotonic), now when not given."""
        now = time.monotonic_ns()
        latency = now - (now if started is None else started)
        name = f"failed_{kind}_operations"
        setattr(self, name, getattr(self, name) + 1)
        if self.account_failed:
            name = f"{kind}_total_time_ns"
            setattr(self, name, getattr(self, name) + latency)
            self.last_access_ns = now
        if self.watched:
            self.observe(kind, latency, timed=self.account_failed)

    def invalid(self, kind: Kind) -> None:
        """Count a request refused before it was tried."""
        name = f"invalid_{kind}_operations"
        setattr(self, name, getattr(self, name) + 1)
        if self.account_invalid:
            self.last_access_ns = time.monotonic_ns()

    def merged(self, kind: Kind, count: int) -> None:
        """Count *count* requests that went along with another."""
        name = f"{kind}_merged"
        setattr(self, name, getattr(self, name) + count)
