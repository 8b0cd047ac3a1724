"""The program answers at once: the limits of scripts/bench/startup.py, met by the fastest of a few runs."""

from __future__ import annotations

import resource

import pytest

from scripts.bench.startup import LIMITS, MEASURES

TRIES = 15
"""Other tests run on this machine at the same time, so it is the best of some that counts."""


@pytest.mark.parametrize("what", list(MEASURES))
def test_startup(what: str) -> None:
    times: list[float] = []
    while len(times) < TRIES and not (times and min(times) < LIMITS[what]):
        times.append(measured(what))
    assert min(times) < LIMITS[what]


def measured(what: str) -> float:
    """Milliseconds by the clock, or of processor time if that is less: then others had the processor meanwhile."""
    before = processor_time()
    elapsed = MEASURES[what]()
    return min(elapsed, processor_time() - before)


def processor_time() -> float:
    """Milliseconds that children of this process have used so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (used.ru_utime + used.ru_stime) * 1000
