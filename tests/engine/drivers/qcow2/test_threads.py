"""Requests from several threads at once."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.drivers.format.qcow2.options import BlockdevOptionsQcow2
from tests.engine.drivers.qcow2.support import FileChild, Opened, make, opened, qemu_check, qemu_read

pytestmark = [pytest.mark.interop, pytest.mark.usefixtures("qemu_img")]


@pytest.fixture(autouse=True)
def frequent_switches() -> Iterator[None]:
    """Threads take turns as often as the interpreter lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(workers: list[Callable[[], None]]) -> None:
    """Run the workers in threads; the first failure is raised here."""
    failures: list[BaseException] = []
    start = threading.Barrier(len(workers))

    def body(worker: Callable[[], None]) -> None:
        try:
            start.wait()
            worker()
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=body, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a request hangs"
    if failures:
        raise failures[0]


@contextmanager
def small_caches(path: Path, **options: Any) -> Iterator[Opened]:
    given = BlockdevOptionsQcow2(file="-", l2_cache_size=4096, l2_cache_entry_size=512, **options)
    with opened(path, options=given) as image:
        yield image


@pytest.mark.parametrize("options", [{"cluster_size": 4096}, {"cluster_size": 16384, "extended_l2": True}], ids=str)
def test_neighbours_in_one_cluster_do_not_lose_each_others_bytes(options: dict[str, Any], tmp_path: Path) -> None:
    """Every thread owns each fourth sector, so all clusters are allocated by racing requests."""
    path, base = tmp_path / "image.qcow2", tmp_path / "base.qcow2"
    size, threads = 2 << 20, 4
    make(base, size, **options)
    with opened(base) as image:
        image.write(0, b"below!!!" * (size // 8))
    make(path, size, **options)
    model = bytearray(b"below!!!" * (size // 8))
    backing = FileChild(base)
    below = Opened(backing, writable=False)
    with opened(path, backing=lambda: below) as image:

        def worker(number: int) -> Callable[[], None]:
            def work() -> None:
                pick = random.Random(number)
                for _ in range(700):
                    sector = pick.randrange(size // 512 // threads) * threads + number
                    data = pick.randbytes(512)
                    image.write(sector * 512, data)
                    model[sector * 512 : sector * 512 + 512] = data
                    assert image.get(sector * 512, 512) == data

            return work

        def flusher() -> None:
            for _ in range(40):
                image.flush()

        together([worker(number) for number in range(threads)] + [flusher])
        assert image.get(0, size) == model
    backing.close()
    qemu_check(path)


def test_readers_never_see_what_belongs_elsewhere(tmp_path: Path) -> None:
    """Clusters are freed and handed out again all the time; each holds the number of its guest cluster, or zeros."""
    path = tmp_path / "image.qcow2"
    cluster, count = 4096, 256
    make(path, cluster * count, cluster_size=cluster)
    stop = threading.Event()

    def stamp(number: int) -> bytes:
        return (b"%08d" % number) * (cluster // 8)

    with opened(path) as image:

        def writer(seed: int) -> Callable[[], None]:
            def work() -> None:
                pick = random.Random(seed)
                try:
                    for _ in range(1200):
                        number = pick.randrange(count)
                        if pick.random() < 0.5:
                            image.write(number * cluster, stamp(number))
                        else:
                            image.discard(number * cluster, cluster)
                        if pick.random() < 0.2:
                            image.flush()
                finally:
                    stop.set()

            return work

        def reader() -> None:
            pick = random.Random(99)
            while not stop.is_set():
                number = pick.randrange(count)
                data = image.get(number * cluster, cluster)
                for at in range(0, cluster, 512):
                    part = data[at : at + 512]
                    assert part in (bytes(512), stamp(number)[:512]), f"cluster {number} shows {part[:8]!r}"

        together([writer(1), writer(2), reader, reader])
    qemu_check(path)


def test_disjoint_work_with_caches_that_hold_almost_nothing(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    share, threads = 1 << 19, 4
    make(path, share * threads, cluster_size=512, refcount_bits=64)
    model = bytearray(share * threads)
    with small_caches(path) as image:

        def worker(number: int) -> Callable[[], None]:
            def work() -> None:
                pick = random.Random(number)
                for _ in range(300):
                    offset = number * share + pick.randrange(share - 3000)
                    length = pick.randrange(1, 3000)
                    action = pick.random()
                    if action < 0.6:
                        data = pick.randbytes(length)
                        image.write(offset, data)
                        model[offset : offset + length] = data
                    elif action < 0.8:
                        image.write_zeroes(offset, length)
                        model[offset : offset + length] = bytes(length)
                    else:
                        assert image.get(offset, length) == model[offset : offset + length]

            return work

        together([worker(number) for number in range(threads)])
        assert image.get(0, len(model)) == model
    qemu_check(path)
    assert qemu_read(path) == model


def test_a_freed_cluster_is_not_reused_under_a_slow_reader(tmp_path: Path) -> None:
    """A read that has looked its cluster up gets the old bytes or zeros, though the cluster is freed and wanted
    meanwhile.
    """
    path = tmp_path / "image.qcow2"
    make(path, 1 << 20, cluster_size=4096)
    with opened(path) as image:
        image.write(0, b"old!" * 1024)
        image.flush()

    class SlowChild(FileChild):
        """Waits before the first read of guest data until told."""

        slow = False

        def read(self, offset: int, buffer: memoryview) -> None:
            if self.slow and len(buffer) == 4096:
                looked_up.set()
                assert go_on.wait(30)
            super().read(offset, buffer)

    looked_up, go_on = threading.Event(), threading.Event()
    child = SlowChild(path)
    image = Opened(child)
    image.get(0, 512)
    child.slow = True
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(image.get(0, 4096)))
    reader.start()
    assert looked_up.wait(30)
    child.slow = False
    image.discard(0, 4096)
    image.flush()
    for number in range(1, 40):
        image.write(number * 4096, b"new!" * 1024)
    image.flush()
    go_on.set()
    reader.join(30)
    assert found == [b"old!" * 1024]
    image.close()
    child.close()
    qemu_check(path)


def test_overlapping_reservations_wait(tmp_path: Path) -> None:
    """A second writer waits for the one that has reserved the clusters, and its data wins."""
    from engine.drivers.format.qcow2 import hostplan

    path = tmp_path / "image.qcow2"
    make(path, 1 << 20, cluster_size=4096)
    with opened(path) as image:
        plan = hostplan.reserve(image.image, 0, 8192)
        assert plan is not None
        done = threading.Event()

        def writer() -> None:
            image.write(4000, b"later" * 50)
            done.set()

        thread = threading.Thread(target=writer)
        thread.start()
        # The writer can't get through before the commit, however long one waits.
        assert not done.wait(0.05)
        at = 0
        for host, length in plan.extents:
            image.file.write(host, memoryview((b"first!!!" * 1024)[at : at + length]))
            at += length
        plan.commit()
        thread.join(30)
        assert done.is_set()
        expected = bytearray(b"first!!!" * 1024)
        expected[4000:4250] = b"later" * 50
        assert image.get(0, 8192) == expected
    qemu_check(path)
