"""The program answers at once: the limits of scripts/bench/startup.py, met by the fastest of a few runs."""

from __future__ import annotations

import resource

import pytest

from scripts.bench.startup import LIMITS, MEASURES

TRIES = 15
"""Other tests run on this machine at the same time, so it is the best of some that counts."""
SLACK = 1.6
"""How much longer the clock may show when others have the processor."""


@pytest.mark.parametrize("what", list(MEASURES))
def test_startup(what: str) -> None:
    limit = LIMITS[what]
    tries: list[tuple[float, float]] = []
    while len(tries) < TRIES:
        before = processor_time()
        elapsed = MEASURES[what]()
        used = processor_time() - before
        # By the clock; or, where others had the processor meanwhile, by processor time. Waiting shows in the former.
        if elapsed < limit or (used < limit and elapsed < SLACK * limit):
            return
        tries.append((elapsed, used))
    raise AssertionError(f"{what} never took less than {limit} ms (by the clock, of the processor): {tries}")


def processor_time() -> float:
    """Milliseconds that children of this process have used so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (used.ru_utime + used.ru_stime) * 1000
