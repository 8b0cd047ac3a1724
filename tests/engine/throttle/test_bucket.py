"""How long requests wait, by a clock of numbers."""

import itertools

from engine.throttle.bucket import NS, Buckets
from engine.throttle.limits import Direction, ThrottleConfig, ThrottleLimits

READ, WRITE = Direction.READ, Direction.WRITE


def buckets(**limits: int) -> Buckets:
    return Buckets(ThrottleLimits(**limits).apply_to(ThrottleConfig()), 0)


def passed(found: Buckets, direction: Direction, size: int, until: int) -> list[int]:
    """The times at which requests that come one after another go, up to *until*."""
    times, now = [], 0
    while True:
        now += found.delay(direction, now)
        if now > until:
            return times
        found.account(direction, size)
        times.append(now)


def test_nothing_is_limited_by_nothing() -> None:
    found = buckets()
    found.account(READ, 1 << 40)
    assert found.delay(READ, 0) == 0


def test_a_tenth_of_a_second_goes_at_once_and_then_one_waits_its_time() -> None:
    found = buckets(iops_total=100)
    times = passed(found, READ, 4096, NS)
    # Ten fit into a tenth of a second, and the one that makes it overflow goes as well.
    assert times[:11] == [0] * 11
    assert [b - a for a, b in itertools.pairwise(times[10:21])] == [NS // 100] * 10
    assert len(times) == 111


def test_bytes_are_counted_by_the_size_of_the_request() -> None:
    found = buckets(bps_write=1000)
    found.account(WRITE, 600)
    # 500 over what is free: half a second's worth.
    assert found.delay(WRITE, 0) == NS // 2
    assert found.delay(WRITE, NS // 4) == NS // 4
    assert found.delay(WRITE, NS // 2) == 0
    assert found.delay(READ, 0) == 0


def test_both_ways_fill_the_bucket_of_the_total() -> None:
    found = buckets(bps_total=1000)
    found.account(WRITE, 300)
    found.account(READ, 300)
    assert found.delay(READ, 0) == found.delay(WRITE, 0) == NS // 2


def test_the_longest_of_all_waits_counts() -> None:
    found = buckets(iops_read=10, bps_total=1000)
    found.account(READ, 1100)
    found.account(READ, 0)
    assert found.delay(READ, 0) == NS
    assert found.delay(WRITE, 0) == NS


def test_a_burst_of_a_second_goes_at_once() -> None:
    found = buckets(iops_total=10, iops_total_max=100)
    times = passed(found, READ, 1, 2 * NS)
    assert times[:101] == [0] * 101
    assert times[101] == NS // 10


def test_a_burst_with_a_length_keeps_to_its_rate_and_ends() -> None:
    found = buckets(iops_total=10, iops_total_max=100, iops_total_max_length=2)
    times = passed(found, READ, 1, 4 * NS)
    in_first = sum(time <= NS for time in times)
    in_second = sum(NS < time <= 2 * NS for time in times)
    in_fourth = sum(3 * NS < time <= 4 * NS for time in times)
    assert 100 <= in_first <= 112
    assert 98 <= in_second <= 102
    assert 9 <= in_fourth <= 11


def test_large_requests_count_as_several() -> None:
    found = buckets(iops_total=10, iops_size=4096)
    found.account(READ, 4096)
    found.account(READ, 1)
    assert found.delay(READ, 0) == NS // 10
    found = buckets(iops_total=10, iops_size=4096)
    found.account(READ, 10240)
    assert found.delay(READ, 0) == NS * 15 // 100
