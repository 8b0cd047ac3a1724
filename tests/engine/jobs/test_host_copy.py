"""From host file to host file, past the nodes above."""

from __future__ import annotations

import errno
import os
import random
import sys
import threading
import traceback
from collections import deque

import pytest

from engine.copying import helpers, host_copy
from engine.copying.helpers import BUFFER
from engine.copying.host_copy import HostCopy
from engine.drivers.protocol import hostfile
from engine.graph.node import Node
from tests.engine.jobs.session import noise
from tests.graphs import Bench

MIB = 1 << 20


def protocol(bench: Bench, name: str, content: bytes) -> Node:
    """A file node over a new file."""
    return bench.add(driver="file", node_name=name, filename=bench.file(name, content))


def move_all(mover: HostCopy, source: Node, target: Node, length: int) -> None:
    mover.move(source, 0, target, 0, length)
    mover.finish()


@pytest.fixture(params=["pages", "kernel"], autouse=True)
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_copy, "copies_by_pages", lambda fd: request.param == "pages")


def test_runs_in_any_order_arrive(bench: Bench) -> None:
    rng = random.Random(3)
    size = 8 * MIB
    sources = [protocol(bench, f"s{number}", noise(number, size)) for number in range(2)]
    targets = [protocol(bench, f"t{number}", bytes(size)) for number in range(2)]
    models = [bytearray(size), bytearray(size)]
    mover = HostCopy()
    at = 0
    while at < size:
        length = min(rng.choice((512, 4096, 65536, 300_000, 2 * BUFFER + 512)), size - at)
        start = rng.randrange(size - length + 1)
        which, to = rng.randrange(2), rng.randrange(2)
        # Sometimes next to what the last one wrote, sometimes not, and never twice to one place.
        mover.move(sources[which], start, targets[to], at, length)
        models[to][at : at + length] = noise(which, size)[start : start + length]
        at += length
    mover.finish()
    for target, model in zip(targets, models, strict=True):
        assert (bench.folder / target.name).read_bytes() == model


def test_a_source_that_ends_early_is_told(bench: Bench) -> None:
    source, target = protocol(bench, "s", noise(1, 3 * MIB)), protocol(bench, "t", bytes(8 * MIB))
    mover = HostCopy()
    with pytest.raises(OSError) as caught:
        move_all(mover, source, target, 8 * MIB)
    assert caught.value.errno == errno.ENODATA
    # Nothing of it is left over for the next copy.
    mover.forget()
    mover.move(source, 0, target, 4 * MIB, MIB)
    mover.finish()
    assert (bench.folder / "t").read_bytes()[4 * MIB : 5 * MIB] == noise(1, 3 * MIB)[:MIB]


def test_short_reads_and_writes_are_continued(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_copy, "copies_by_pages", lambda fd: True)
    source, target = protocol(bench, "s", noise(1, 2 * MIB)), protocol(bench, "t", bytes(2 * MIB))
    read, write = os.preadv, os.pwrite
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: read(fd, [views[0][:100_001]], at))
    monkeypatch.setattr(host_copy, "write_at", lambda fd, data, at: write(fd, data[:70_001], at))
    move_all(HostCopy(), source, target, 2 * MIB)
    assert (bench.folder / "t").read_bytes() == noise(1, 2 * MIB)


def test_what_was_forgotten_is_not_written(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_copy, "copies_by_pages", lambda fd: True)
    source, target = protocol(bench, "s", noise(1, MIB)), protocol(bench, "t", bytes(MIB))
    mover = HostCopy()
    mover.move(source, 0, target, 0, MIB)
    mover.forget()
    mover.finish()
    assert (bench.folder / "t").read_bytes() == bytes(MIB)


def test_two_threads_share_a_long_copy(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_copy, "copies_by_pages", lambda fd: True)
    monkeypatch.setattr(helpers, "host", helpers.Helpers(1))
    source, target = protocol(bench, "s", noise(1, 4 * MIB)), protocol(bench, "t", bytes(4 * MIB))
    # Each write waits for one of the other thread: with one thread alone this never ends.
    both = threading.Barrier(2, timeout=20)
    real = os.pwrite

    def write(fd: int, data: memoryview, offset: int) -> int:
        both.wait()
        return real(fd, data, offset)

    monkeypatch.setattr(host_copy, "write_at", write)
    mover = HostCopy()
    mover.move(source, 0, target, 0, 4 * MIB)
    mover.finish()
    assert (bench.folder / "t").read_bytes() == noise(1, 4 * MIB)


@pytest.mark.parametrize("whose", ["own", "helper"])
def test_an_error_of_either_thread_shows(bench: Bench, monkeypatch: pytest.MonkeyPatch, whose: str) -> None:
    monkeypatch.setattr(host_copy, "copies_by_pages", lambda fd: True)
    monkeypatch.setattr(helpers, "host", helpers.Helpers(1))
    source, target = protocol(bench, "s", noise(1, 8 * MIB)), protocol(bench, "t", bytes(8 * MIB))
    here, both, real = threading.get_ident(), threading.Barrier(2, timeout=20), os.pwrite
    writing: list[int] = []
    first = threading.local()

    def write(fd: int, data: memoryview, offset: int) -> int:
        if not hasattr(first, "time"):
            first.time = both.wait()
            if (threading.get_ident() == here) is (whose == "own"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        writing.append(fd)
        try:
            return real(fd, data, offset)
        finally:
            writing.pop()

    monkeypatch.setattr(host_copy, "write_at", write)
    mover = HostCopy()
    mover.move(source, 0, target, 0, 8 * MIB)
    with pytest.raises(OSError) as caught:
        mover.finish()
    assert caught.value.errno == errno.ENOSPC
    # Both have ended: the caller may give the space back.
    assert not writing


def test_a_busy_helper_is_not_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_copy, "copies_by_pages", lambda fd: True)
    monkeypatch.setattr(helpers, "host", helpers.Helpers(0))
    source, target = protocol(bench, "s", noise(1, 4 * MIB)), protocol(bench, "t", bytes(4 * MIB))
    mover = HostCopy()
    mover.move(source, 0, target, 0, 4 * MIB)
    mover.finish()
    assert (bench.folder / "t").read_bytes() == noise(1, 4 * MIB)


def test_a_file_is_not_closed_while_its_writeback_begins(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its locks would outlast it, and the next user be refused."""
    node = protocol(bench, "t", bytes(MIB))
    inode = (bench.folder / "t").stat().st_ino
    begun = threading.Event()
    used: list[int] = []
    closer = threading.get_ident()

    def slow(fd: int) -> None:
        begun.set()
        # Until the file is closed (as it must not be), or its closing waits.
        while node.driver.host_fd() != -1:
            frame = sys._current_frames()[closer]
            if any(each.name == "settle" for each in traceback.extract_stack(frame)):
                break
        used.append(os.fstat(fd).st_ino)

    monkeypatch.setattr(hostfile, "start_writeback", slow)
    node.driver.start_writeback()
    assert begun.wait(20)
    node.driver.close()
    assert used == [inode]


def test_a_copy_goes_on_when_there_are_no_more_threads(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """As at the end of the program, or where the system gives no more."""
    monkeypatch.setattr(host_copy, "copies_by_pages", lambda fd: True)
    few = helpers.Helpers(1)
    monkeypatch.setattr(helpers, "host", few)
    few.share(deque([1, 2]), lambda each: None)
    assert few._threads is not None
    few._threads.shutdown()
    source, target = protocol(bench, "s", noise(1, 4 * MIB)), protocol(bench, "t", bytes(4 * MIB))
    move_all(HostCopy(), source, target, 4 * MIB)
    assert (bench.folder / "t").read_bytes() == noise(1, 4 * MIB)
