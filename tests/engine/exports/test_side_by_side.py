"""Requests that wait are served side by side: at once, rightly, and no longer than that pays."""

from __future__ import annotations

import random
import time

import pytest

from engine.exports.nbd import side_by_side
from engine.exports.nbd.side_by_side import SideBySide
from engine.nbd import protocol as nbd
from tests.engine.exports.client import Client
from tests.engine.exports.conftest import SIZE, Serving

PAGE = 4096


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve everything side by side that can be."""
    monkeypatch.setattr(SideBySide, "wanted", property(lambda self: True))


def send_reads(client: Client, number: int) -> None:
    request = nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, nbd.CMD_READ, 1, 0, 512)
    client.send(request * number)


def test_slow_requests_wait_together(serving: Serving) -> None:
    serving.do("blockdev-add", driver="null-co", node_name="slow", size=1 << 20, latency_ns=30_000_000)
    serving.export("slow", "slow")
    door = next(each.door for each in serving.engine.graph.backends if each.node.name == "slow")
    with serving.connect() as client:
        client.go("slow")
        send_reads(client, 60)
        end = time.monotonic() + 20
        while door.in_flight < side_by_side.MOST:
            assert time.monotonic() < end
        assert [client.reply(512).data for _ in range(60)] == [bytes(512)] * 60
    serving.wait_no_threads()


def test_one_at_a_time_needs_no_threads(serving: Serving) -> None:
    serving.do("blockdev-add", driver="null-co", node_name="slow", size=1 << 20, latency_ns=2_000_000)
    serving.export("slow", "slow")
    with serving.connect() as client:
        client.go("slow")
        for _ in range(10):
            client.read(0, 512)
        assert [thread.name for thread in serving.threads()] == ["nbd client"]


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("form", ["simple", "structured", "extended"])
@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_data_and_errors(serving: Serving, form: str, format: str) -> None:
    if format == "qcow2":
        overlay = str(serving.folder / "top.qcow2")
        serving.do("blockdev-snapshot-sync", node_name="disk", snapshot_file=overlay, snapshot_node_name="top")
    chance = random.Random(5)
    expected = bytearray(SIZE)
    with serving.connect() as client:
        if form == "structured":
            client.structured()
        elif form == "extended":
            client.extend()
        client.go()
        for turn in range(40):
            writing = turn % 2 == 0
            answers: dict[int, tuple[int, bytes]] = {90: (nbd.EINVAL, b""), 91: (nbd.ENOSPC, b"")}
            client.request(nbd.CMD_READ, SIZE - 1, 2, cookie=90)
            for page in chance.sample(range(64), 14):
                place = slice(page * PAGE, (page + 1) * PAGE)
                if writing:
                    expected[place] = chance.randbytes(PAGE) if chance.random() < 0.8 else bytes(PAGE)
                    client.request(nbd.CMD_WRITE, place.start, PAGE, data=bytes(expected[place]), cookie=page)
                else:
                    client.request(nbd.CMD_READ, place.start, PAGE, cookie=page)
                answers[page] = 0, b"" if writing else bytes(expected[place])
            client.request(nbd.CMD_WRITE, SIZE - 1, 2, data=b"no", cookie=91)
            while answers:
                reply = client.reply(0 if writing else PAGE)
                assert (reply.error, reply.data) == answers.pop(reply.cookie)
        assert client.read(0, SIZE) == bytes(expected)
    serving.wait_no_threads()


@pytest.mark.usefixtures("always")
def test_what_follows_is_served_after_it(serving: Serving) -> None:
    """Other requests, and a write of which only a part has come, wait for their turn."""
    with serving.connect() as client:
        client.go()
        write = nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, nbd.CMD_WRITE, 2, 0, PAGE) + b"w" * PAGE
        flush = nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, nbd.CMD_FLUSH, 3, 0, 0)
        client.send(write * 3 + flush + write * 2 + write[:100])
        assert [client.reply().cookie for _ in range(6)] == [2, 2, 2, 3, 2, 2]
        client.send(write[100:])
        assert client.reply().cookie == 2
        client.send(write * 2 + b"x" * 28)
        assert client.reply().error == client.reply().error == 0
        assert client.gone
    serving.wait_no_threads()


def learn(waiting: SideBySide, alone: float, together: float) -> tuple[int, int]:
    """Of 3,000 batches, how many are served alone and how many side by side, where that takes so many seconds each."""
    numbers = [0, 0]
    for _ in range(3000):
        if waiting.wanted:
            waiting._learn(together)
            numbers[1] += 1
        else:
            waiting.alone(alone, 1)
            numbers[0] += 1
    return numbers[0], numbers[1]


def test_what_is_fast_is_done_alone() -> None:
    assert learn(SideBySide(), 20e-6, 5e-6) == (3000, 0)


def test_what_is_slow_is_done_together_and_tried_alone_now_and_then() -> None:
    alone, together = learn(SideBySide(), 2e-3, 2e-4)
    assert together > 2900
    assert alone > 30


def test_what_together_does_not_help_is_hardly_tried_again() -> None:
    _, together = learn(SideBySide(), 2e-3, 2e-3)
    assert 3 <= together < 12


def test_a_slow_batch_now_and_then_is_no_sign() -> None:
    waiting = SideBySide()
    for _ in range(100):
        waiting.alone(1e-2, 1)
        waiting.alone(1e-2, 1)
        assert not waiting.wanted
        waiting.alone(1e-5, 1)
    for _ in range(8):
        assert not waiting.wanted
        waiting.alone(1e-2, 1)
    assert waiting.wanted
