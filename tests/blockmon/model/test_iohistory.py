"""Rates and sparklines from counters."""

from blockmon.model.graph import IoCounters
from blockmon.model.iohistory import IoHistory


def test_rate_and_bins() -> None:
    history = IoHistory()
    history.update({"n": IoCounters()}, 100.0)
    assert history.update({"n": IoCounters(rd_bytes=4096, rd_ops=1, wr_bytes=2048, wr_ops=2)}, 101.0) == {"n"}
    rate = history.rate("n")
    assert (rate.rd_bytes, rate.wr_bytes, rate.rd_ops, rate.wr_ops, rate.bytes) == (4096, 2048, 1, 2, 6144)
    assert history.bins("n", 3) == [0, 0, 6144]
    assert history.moving


def test_what_was_read_before_is_no_rate() -> None:
    history = IoHistory()
    history.update({"n": IoCounters(rd_bytes=10**12)}, 0.0)
    history.update({"n": IoCounters(rd_bytes=10**12)}, 1.0)
    assert history.rate("n").bytes == 0
    assert not history.moving


def test_several_polls_a_second_make_one_bin() -> None:
    history = IoHistory()
    history.update({"n": IoCounters()}, 0.0)
    assert history.update({"n": IoCounters(rd_bytes=100)}, 0.5) == set()
    assert history.update({"n": IoCounters(rd_bytes=200)}, 1.0) == {"n"}
    assert history.bins("n", 2) == [0, 200]


def test_a_late_poll_spreads_what_it_found() -> None:
    history = IoHistory()
    history.update({"n": IoCounters()}, 0.0)
    history.update({"n": IoCounters(rd_bytes=400)}, 4.0)
    assert history.bins("n", 4) == [100, 100, 100, 100]
    assert history.rate("n").rd_bytes == 100


def test_it_comes_to_rest() -> None:
    history = IoHistory()
    history.update({"n": IoCounters()}, 0.0)
    history.update({"n": IoCounters(rd_bytes=1)}, 1.0)
    changes = [bool(history.update({"n": IoCounters(rd_bytes=1)}, 2.0 + second)) for second in range(40)]
    assert changes[0]
    assert not any(changes[30:])
    assert not history.moving


def test_counters_that_fall_start_afresh() -> None:
    history = IoHistory()
    history.update({"n": IoCounters(rd_bytes=1000)}, 0.0)
    history.update({"n": IoCounters(rd_bytes=5)}, 1.0)
    assert history.rate("n").bytes == 0
    history.update({}, 2.0)
    assert history.bins("n", 2) == [0, 0]


def test_requests_without_bytes_come_to_rest_too() -> None:
    history = IoHistory()
    history.update({"n": IoCounters()}, 0.0)
    counters = IoCounters(wr_ops=8)
    history.update({"n": counters}, 1.0)
    assert history.rate("n").wr_ops == 8
    assert history.update({"n": counters}, 2.0) == {"n"}
    assert history.rate("n").wr_ops == 0


def test_what_moves_again_after_a_rest_is_seen() -> None:
    history = IoHistory()
    still = IoCounters()
    for second in range(40):
        history.update({"n": still}, float(second))
    assert history.update({"n": IoCounters(rd_bytes=50)}, 40.0) == {"n"}
    assert history.rate("n").rd_bytes == 50
