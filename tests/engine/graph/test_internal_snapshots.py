"""Internal snapshots of nodes: whose they are, what is refused, and what the nodes above notice."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from engine.bitmaps.dirty import add_bitmap
from engine.drivers.format.qcow2 import Qcow2Driver
from engine.errors import GenericError
from engine.graph.internal_snapshots import (
    can_snapshot,
    create_snapshot,
    delete_snapshot,
    find_snapshot,
    goto_snapshot,
    holder_of,
    list_snapshots,
    snapshot_now,
)
from engine.graph.node import Node
from engine.graph.permissions import Perm
from tests.engine.drivers.qcow2.support import make
from tests.graphs import Bench

SIZE = 1 << 20


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    make(tmp_path / "a.qcow2", SIZE)
    return Bench(tmp_path)


def disk(bench: Bench, **options: object) -> Node:
    file = {"driver": "file", "filename": str(bench.folder / "a.qcow2")}
    return bench.add(driver="qcow2", node_name="n", file=file, **options)


def content(node: Node) -> bytes:
    buffer = bytearray(node.length)
    node.read(0, memoryview(buffer))
    return bytes(buffer)


def test_a_snapshot_taken_through_raw_is_that_of_the_image_below(bench: Bench) -> None:
    node = disk(bench)
    raw = bench.add(driver="raw", node_name="r", file="n")
    assert holder_of(raw) is node
    raw.write(0, memoryview(b"before" * 100))
    before = content(raw)
    taken = create_snapshot(raw, snapshot_now("s"))
    assert taken.id == "1"
    assert [item.name for item in list_snapshots(node)] == ["s"]
    raw.write(100, memoryview(b"after" * 100))
    raw.truncate(2 * SIZE)
    goto_snapshot(raw, "s")
    assert raw.length == node.length == SIZE
    assert content(raw) == before
    delete_snapshot(raw, None, "s")
    assert find_snapshot(node, None, "s") is None
    bench.graph.close()


def test_only_what_is_writable_down_to_the_image_can_be_taken_of(bench: Bench) -> None:
    read_only = disk(bench, read_only=True)
    assert not can_snapshot(read_only)
    assert list_snapshots(read_only) == []
    plain = bench.raw("plain")
    assert not can_snapshot(plain)
    assert holder_of(plain) is None
    with pytest.raises(GenericError, match="Failed to get a snapshot list: Operation not supported"):
        list_snapshots(plain)
    with pytest.raises(GenericError, match="does not support internal snapshot deletion"):
        delete_snapshot(plain, "1", None)
    bench.graph.close()


def test_nobody_goes_back_under_a_dirty_bitmap_or_a_user_who_relies_on_the_size(bench: Bench) -> None:
    node = disk(bench)
    create_snapshot(node, snapshot_now("s"))
    with pytest.raises(GenericError, match="Failed to load snapshot: No such file or directory"):
        goto_snapshot(node, "nope")
    node.truncate(2 * SIZE)
    user = bench.graph.add_backend("device", "d", node, Perm.CONSISTENT_READ, Perm.ALL & ~Perm.RESIZE)
    with pytest.raises(GenericError, match="Failed to load snapshot: Operation not supported"):
        goto_snapshot(node, "s")
    assert node.length == 2 * SIZE
    bench.graph.remove_backend(user)
    bitmap = add_bitmap(node, 65536, "b")
    with pytest.raises(GenericError, match="Device has active dirty bitmaps"):
        goto_snapshot(node, "s")
    bitmap.detach()
    goto_snapshot(node, "s")
    assert node.length == SIZE
    bench.graph.close()


def test_a_name_that_is_too_long_is_cut(bench: Bench) -> None:
    node = disk(bench)
    create_snapshot(node, snapshot_now("\u00e9" * 200))
    assert list_snapshots(node)[0].name.encode(errors="surrogateescape") == ("\u00e9" * 200).encode()[:255]
    bench.graph.close()


def test_a_snapshot_is_one_instant_for_all_who_write(bench: Bench) -> None:
    node = disk(bench)
    user = bench.graph.add_backend("device", "d", node, Perm.CONSISTENT_READ | Perm.WRITE, Perm.ALL)
    writers = 4
    region = SIZE // writers
    done = [0] * writers
    stop, progress = threading.Event(), threading.Event()
    failures: list[BaseException] = []

    def write(number: int) -> None:
        """Count up: first in one half of the region, then in the other."""
        try:
            while not stop.is_set():
                data = memoryview((done[number] + 1).to_bytes(8, "big") * (region // 16))
                user.write(number * region, data)
                user.write(number * region + region // 2, data)
                done[number] += 1
                progress.set()
        except BaseException as exc:
            failures.append(exc)
            progress.set()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    limits: dict[str, tuple[list[int], list[int]]] = {}
    for number in range(8):
        before = list(done)
        create_snapshot(node, snapshot_now(f"s{number}"))
        limits[f"s{number}"] = before, list(done)
        progress.clear()
        assert progress.wait(10)
        if number in (3, 5):
            delete_snapshot(node, None, f"s{number - 1}")
            del limits[f"s{number - 1}"]
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    for name, (before, after) in limits.items():
        goto_snapshot(node, name)
        for number in range(writers):
            halves = []
            for half in range(2):
                buffer = bytearray(region // 2)
                user.read(number * region + half * region // 2, memoryview(buffer))
                values = {bytes(buffer[at : at + 8]) for at in range(0, len(buffer), 8)}
                assert len(values) == 1, "a write is in the snapshot as a whole or not at all"
                halves.append(int.from_bytes(values.pop(), "big"))
            assert before[number] <= halves[1] <= halves[0] <= after[number] + 1
            assert halves[0] - halves[1] <= 1
    driver = node.driver
    assert isinstance(driver, Qcow2Driver)
    found = driver.check()
    assert not found.corruptions + found.leaks, found.messages
    bench.graph.remove_backend(user)
    bench.graph.close()
