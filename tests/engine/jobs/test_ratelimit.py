"""The speed limit: exact over time, no bursts, at once when changed."""

import time

import pytest

from engine.jobs.ratelimit import SLICE, RateLimit
from tests.engine.jobs.session import Session, noise


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


@pytest.mark.parametrize("kind", ["mirror", "backup", "stream", "commit"])
def test_a_job_takes_the_time_that_its_speed_gives_it(session: Session, kind: str) -> None:
    """Also for the last step, after which nothing else would be waited for."""
    size, speed = 4 << 20, 16 << 20
    for name, backing in (("base", None), ("mid", "base"), ("top", "mid"), ("t", None)):
        session.create_qcow2(name, size, backing)
    session.fill("mid", (0, noise("m", size)))
    for name, backing in (("base", None), ("mid", "base"), ("top", "mid"), ("t", None)):
        session.add_qcow2(name, backing, read_only=name in ("base", "mid"))
    common = {"job_id": "j", "speed": speed}
    began = time.monotonic()
    if kind == "stream":
        session.do("block-stream", device="top", base_node="base", **common)
    elif kind == "commit":
        session.do("block-commit", device="top", top_node="mid", base_node="base", **common)
    else:
        session.do(f"blockdev-{kind}", device="top", target="t", sync="full", **common)
    session.wait_event("BLOCK_JOB_READY" if kind == "mirror" else "BLOCK_JOB_COMPLETED")
    assert time.monotonic() - began >= 0.95 * size / speed
