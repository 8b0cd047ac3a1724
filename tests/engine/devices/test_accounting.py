"""Counters, histograms and intervals of a back end."""

import time

import pytest

from engine.graph.accounting import Accounting, Histogram, TimedAverage


class Clock:
    """A clock that goes when told."""

    def __init__(self) -> None:
        self.now = 1_000_000

    def __call__(self) -> int:
        return self.now


def test_histogram_puts_a_boundary_into_the_bin_above() -> None:
    histogram = Histogram([10, 50, 100])
    for latency in (0, 9, 10, 49, 50, 99, 100, 1 << 40):
        histogram.account(latency)
    assert histogram.bins == [2, 2, 2, 2]


def test_histogram_without_boundaries_has_one_bin() -> None:
    histogram = Histogram([])
    histogram.account(5)
    assert histogram.bins == [1]


@pytest.mark.parametrize("boundaries", [[0], [0, 5], [5, 5], [9, 8]])
def test_boundaries_have_to_rise(boundaries: list[int]) -> None:
    with pytest.raises(ValueError):
        Histogram(boundaries)


def test_timed_average_forgets_what_is_older_than_its_period() -> None:
    clock = Clock()
    average = TimedAverage(1000, clock)
    assert (average.least, average.greatest, average.average, average.load) == (0, 0, 0, 0.0)
    average.account(10)
    clock.now += 100
    average.account(30)
    assert (average.least, average.greatest, average.average) == (10, 30, 20)
    clock.now += 500
    # Half a period is over: a window that began with it is asked until its end.
    average.account(100)
    assert (average.least, average.greatest) == (10, 100)
    clock.now += 500
    assert (average.least, average.greatest, average.average) == (100, 100, 100)
    clock.now += 5000
    assert (average.least, average.greatest, average.average) == (0, 0, 0)


def test_load_is_the_time_spent_over_the_time_passed() -> None:
    clock = Clock()
    average = TimedAverage(1000, clock)
    average.account(300)
    clock.now += 250
    average.account(300)
    # The window asked counts as begun half a period ago.
    assert average.load == pytest.approx(600 / 750)


def test_failures_take_part_in_times_only_where_wanted() -> None:
    stats = Accounting()
    stats.add_interval(3600)
    stats.set_histogram("wr", [1])
    began = time.monotonic_ns() - 1000
    stats.failed("wr", began)
    assert stats.failed_wr_operations == 1
    assert stats.wr_operations == 0
    assert stats.wr_total_time_ns >= 1000
    assert stats.last_access_ns > 0
    assert stats.intervals[0].latency["wr"].greatest >= 1000
    assert stats.histograms["wr"].bins == [0, 1]

    quiet = Accounting()
    quiet.account_failed = quiet.account_invalid = False
    quiet.add_interval(3600)
    quiet.failed("rd", began)
    quiet.invalid("rd")
    assert (quiet.failed_rd_operations, quiet.invalid_rd_operations) == (1, 1)
    assert (quiet.rd_total_time_ns, quiet.last_access_ns) == (0, 0)
    assert quiet.intervals[0].latency["rd"].greatest == 0


def test_invalid_requests_are_accesses() -> None:
    stats = Accounting()
    stats.invalid("flush")
    assert stats.invalid_flush_operations == 1
    assert stats.last_access_ns > 0


def test_what_is_done_is_counted_by_kind() -> None:
    stats = Accounting()
    for kind in ("rd", "wr", "flush", "unmap"):
        stats.done(kind, 512, time.monotonic_ns())  # type: ignore[arg-type]
    assert (stats.rd_bytes, stats.wr_bytes, stats.unmap_bytes) == (512, 512, 512)
    assert (stats.rd_operations, stats.wr_operations, stats.flush_operations, stats.unmap_operations) == (1, 1, 1, 1)


def test_clearing_histograms_leaves_the_intervals() -> None:
    stats = Accounting()
    assert not stats.watched
    stats.set_histogram("rd", [10])
    stats.add_interval(1)
    stats.clear_histograms()
    assert stats.watched
    assert not stats.histograms
