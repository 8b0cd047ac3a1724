"""The speed limit: exact over time, no bursts, at once when changed."""

import pytest

from engine.jobs.ratelimit import SLICE, RateLimit


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def copy(limit: RateLimit, clock: Clock, total: int, step: int, cost: float = 0.0, late: float = 0.0) -> float:
    """Seconds that copying *total* bytes takes, a step taking *cost* and each wake-up coming *late*."""
    begun = clock.now
    done = 0
    while done < total:
        delay = limit.delay()
        if delay:
            clock.now += delay + late
        size = min(step, total - done)
        clock.now += cost
        done += size
        limit.account(size)
    clock.now += limit.delay()
    return clock.now - begun


@pytest.mark.parametrize("speed", [100_000, 1 << 20, 50 << 20, 1 << 30])
@pytest.mark.parametrize("late", [0.0, 0.001, 0.02])
def test_exact(speed: int, late: float) -> None:
    clock = Clock()
    limit = RateLimit(clock)
    limit.set_speed(speed)
    step = limit.step(4 << 20, 1)
    took = copy(limit, clock, speed * 5, step, late=late)
    assert took == pytest.approx(5.0, rel=0.05)


def test_work_that_takes_time_counts_as_waiting() -> None:
    clock = Clock()
    limit = RateLimit(clock)
    limit.set_speed(1 << 20)
    assert copy(limit, clock, 5 << 20, 64 << 10, cost=0.03) == pytest.approx(5.0, rel=0.05)


def test_no_burst_after_a_pause() -> None:
    clock = Clock()
    limit = RateLimit(clock)
    limit.set_speed(1 << 20)
    copy(limit, clock, 1 << 20, 64 << 10)
    clock.now += 3600
    assert copy(limit, clock, 2 << 20, 64 << 10) >= 2.0 - SLICE - 0.001


def test_no_limit() -> None:
    clock = Clock()
    limit = RateLimit(clock)
    limit.account(1 << 40)
    assert limit.delay() == 0
    assert limit.step(4 << 20, 64 << 10) == 4 << 20


def test_a_new_speed_forgets_the_old_debt() -> None:
    clock = Clock()
    limit = RateLimit(clock)
    limit.set_speed(1)
    limit.account(1 << 20)
    assert limit.delay() == 1 << 20
    limit.set_speed(1 << 30)
    assert limit.delay() == 0


def test_steps_are_a_slice_long() -> None:
    limit = RateLimit(Clock())
    limit.set_speed(10 << 20)
    assert limit.step(4 << 20, 64 << 10) == 1 << 20
    limit.set_speed(1)
    assert limit.step(4 << 20, 64 << 10) == 64 << 10
    limit.set_speed(1 << 40)
    assert limit.step(4 << 20, 64 << 10) == 4 << 20
