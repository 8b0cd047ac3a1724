"""When the memory is searched: not while someone types, but not never either."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from blockmon.tui.garbage import AT_REST, EVERY, OVERDUE, Collector


@pytest.fixture
def collector() -> Iterator[Collector]:
    """One with a clock that stands still, in `now`."""
    found = Collector(lambda: now[0])
    yield found
    found.end()


now = [1000.0]


def test_full_searches_wait_for_a_rest(collector: Collector) -> None:
    before = gc.get_threshold()
    collector.begin()
    started = now[0]
    now[0] += EVERY - 1
    assert not collector.look(last_key=started)
    now[0] += 2
    assert not collector.look(last_key=now[0] - AT_REST / 2)
    assert collector.look(last_key=now[0] - AT_REST * 2)
    assert not collector.look(last_key=started)  # only just done
    done = []
    for _ in range(int(OVERDUE) + 1):
        now[0] += 1
        done.append(collector.look(last_key=now[0]))  # someone who never stops typing
    assert done.count(True) == 1
    collector.end()
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


def test_garbage_is_found(collector: Collector) -> None:
    class Ring:
        """Refers to itself."""

    gone: list[bool] = []
    collector.begin()
    ring = Ring()
    ring.me = ring  # type: ignore[attr-defined]
    kept = weakref.ref(ring, lambda _: gone.append(True))
    del ring
    now[0] += EVERY
    assert collector.look(last_key=0)
    assert gone == [True]
    assert kept() is None
