"""The program answers at once: the limits of scripts/bench/startup.py, met by the fastest of a few runs."""

from __future__ import annotations

import pytest

from scripts.bench.startup import LIMITS, MEASURES


@pytest.mark.parametrize("what", list(MEASURES))
def test_startup(what: str) -> None:
    fastest = min(MEASURES[what]() for _ in range(7))
    assert fastest < LIMITS[what]
