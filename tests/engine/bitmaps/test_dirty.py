"""DirtyBitmap: what a node's writes leave in it."""

import hashlib
import threading
from pathlib import Path

import pytest

from engine.bitmaps.dirty import (
    DirtyBitmap,
    Refuse,
    add_bitmap,
    bitmaps_of,
    default_granularity,
    find_bitmap,
    merge_checked,
)
from engine.errors import GenericError
from engine.graph.node import Node
from tests.graphs import Bench


def test_writes_of_every_kind_set_bits(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    node = bench.raw("r", bytes(1 << 20), discard="unmap")
    bitmap = DirtyBitmap(node, 4096)
    node.write(0, memoryview(b"x" * 512))
    assert bitmap.count == 0
    bitmap.attach()
    assert bitmaps_of(node) == [bitmap]
    node.write(512, memoryview(b"x" * 512))
    node.write_zeroes(65536, 4097)
    node.discard(131072, 4096)
    areas = []
    while (area := bitmap.take_area(0, 1 << 20)) is not None:
        areas.append(area)
    assert areas == [(0, 4096), (65536, 8192), (131072, 4096)]
    assert bitmap.count == 0
    bitmap.enabled = False
    node.write(0, memoryview(b"x" * 512))
    assert bitmap.count == 0
    bitmap.enabled = True
    bitmap.detach()
    node.write(0, memoryview(b"x" * 512))
    assert bitmap.count == 0
    assert default_granularity(node) == 65536
    bench.graph.close()


def bench_of(tmp_path: Path) -> tuple[Bench, Node]:
    bench = Bench(tmp_path)
    return bench, bench.raw("r", bytes(1 << 20))


def write(node: Node, offset: int, length: int = 512) -> None:
    node.write(offset, memoryview(b"x" * length))


def test_the_newest_bitmap_is_listed_first_and_found_by_name(tmp_path: Path) -> None:
    bench, node = bench_of(tmp_path)
    a, b = add_bitmap(node, 512, "a"), add_bitmap(node, 512, "b")
    anonymous = DirtyBitmap(node, 512)
    anonymous.attach()
    assert bitmaps_of(node) == [anonymous, b, a]
    assert (find_bitmap(node, "a"), find_bitmap(node, "c")) == (a, None)
    with pytest.raises(GenericError, match=r"^Bitmap already exists: a$"):
        add_bitmap(node, 4096, "a")
    with pytest.raises(GenericError, match=r"^Bitmap name too long: ä"):
        add_bitmap(node, 4096, "ä" * 512)
    bench.graph.close()


def test_what_a_state_refuses(tmp_path: Path) -> None:
    bench, node = bench_of(tmp_path)
    bitmap = add_bitmap(node, 512, "b")
    everything = Refuse.BUSY | Refuse.READONLY | Refuse.INCONSISTENT
    bitmap.check(everything)
    for state, bit, text in (
        ("inconsistent", Refuse.INCONSISTENT, "Bitmap 'b' is inconsistent and cannot be used"),
        ("readonly", Refuse.READONLY, "Bitmap 'b' is readonly and cannot be modified"),
        ("busy", Refuse.BUSY, "Bitmap 'b' is currently in use by another operation and cannot be used"),
    ):
        # What is found first is told: the states tried before this one hold, too.
        setattr(bitmap, state, True)
        with pytest.raises(GenericError) as told:
            bitmap.check(everything)
        assert told.value.desc == text
        with pytest.raises(GenericError):
            bitmap.check(bit)
    bitmap.inconsistent = bitmap.busy = False
    bitmap.check(Refuse.TO_READ)
    with pytest.raises(GenericError):
        bitmap.check(Refuse.TO_CHANGE)
    bench.graph.close()


@pytest.mark.parametrize("enabled", [True, False])
def test_a_frozen_bitmap_is_given_back_with_what_was_written_meanwhile(tmp_path: Path, enabled: bool) -> None:
    bench, node = bench_of(tmp_path)
    bitmap = add_bitmap(node, 4096, "b")
    write(node, 0)
    bitmap.enabled = enabled
    child = bitmap.create_successor()
    assert (bitmap.busy, bitmap.enabled, bitmap.recording) == (True, False, enabled)
    with pytest.raises(GenericError, match="currently in use"):
        bitmap.create_successor()
    write(node, 8192)
    assert (bitmap.count, child.count) == (4096, 4096 if enabled else 0)
    bitmap.reclaim()
    assert (bitmap.busy, bitmap.enabled, bitmap.successor) == (False, enabled, None)
    assert list(bitmap.areas()) == [(0, 4096), (8192, 4096)][: 2 if enabled else 1]
    assert bitmaps_of(node) == [bitmap]
    write(node, 16384)
    assert bitmap.get(16384) == enabled
    bench.graph.close()


def test_a_successor_takes_over(tmp_path: Path) -> None:
    bench, node = bench_of(tmp_path)
    old = add_bitmap(node, 4096, "b")
    old.persistent = True
    write(node, 0)
    late = node.trackers
    old.create_successor()
    write(node, 8192)
    new = old.abdicate()
    assert (new.name, new.persistent, new.busy, new.enabled) == ("b", True, False, True)
    assert bitmaps_of(node) == [new]
    assert list(new.areas()) == [(8192, 4096)]
    # A write that began before the successor was there knows the old one only.
    for tracker in late:
        tracker(65536, 1)
    assert list(new.areas()) == [(8192, 4096), (65536, 4096)]
    bench.graph.close()


def test_no_write_is_missed_while_a_bitmap_is_frozen_and_given_back_again_and_again(tmp_path: Path) -> None:
    bench, node = bench_of(tmp_path)
    bitmap = add_bitmap(node, 512, "b")
    stop = threading.Event()
    done: list[int] = []

    def work() -> None:
        for offset in range(0, 1 << 20, 512):
            write(node, offset)
            done.append(offset)
        stop.set()

    thread = threading.Thread(target=work)
    thread.start()
    while not stop.is_set():
        bitmap.create_successor()
        bitmap.reclaim()
    thread.join()
    assert bitmap.count == 512 * len(done) == 1 << 20
    bench.graph.close()


def test_bits_put_back_lose_no_write_made_since(tmp_path: Path) -> None:
    bench, node = bench_of(tmp_path)
    bitmap = add_bitmap(node, 4096, "b")
    write(node, 0)
    recorded = bitmap.recorded
    bits = bitmap.clear()
    assert bitmap.count == 0
    bitmap.restore_bits(bits, recorded)
    assert list(bitmap.areas()) == [(0, 4096)]
    bits = bitmap.clear()
    write(node, 8192)
    bitmap.restore_bits(bits, recorded)
    assert list(bitmap.areas()) == [(0, 4096), (8192, 4096)]
    bench.graph.close()


def test_a_bitmap_follows_the_length_of_its_node(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    path = bench.file("f.raw", bytes(1000))
    node = bench.add(driver="file", node_name="f", filename=path)
    bitmap = add_bitmap(node, 512, "b")
    assert bitmap.length == 1024
    write(node, 512)
    node.truncate(1 << 20)
    assert (bitmap.length, bitmap.count) == (1 << 20, 512)
    write(node, 1 << 20)
    assert (bitmap.length, bitmap.count) == ((1 << 20) + 512, 1024)
    node.truncate(512)
    assert (bitmap.length, bitmap.count) == (512, 0)
    bench.graph.close()


def test_the_hash_is_that_of_whole_words(tmp_path: Path) -> None:
    bench, node = bench_of(tmp_path)
    coarse = add_bitmap(node, 1 << 20, "coarse")
    assert coarse.sha256() == hashlib.sha256(bytes(8)).hexdigest()
    write(node, 0)
    assert coarse.sha256() == hashlib.sha256(b"\1" + bytes(7)).hexdigest()
    bench.graph.close()


def test_merging_what_does_not_fit(tmp_path: Path) -> None:
    bench, node = bench_of(tmp_path)
    other = bench.raw("s", bytes(1 << 19))
    a, b = add_bitmap(node, 4096, "a"), add_bitmap(other, 4096, "b")
    with pytest.raises(GenericError) as told:
        merge_checked(a, b)
    assert told.value.desc == (
        "Bitmaps are of different sizes (destination size is 1048576, source size is 524288) and can't be merged"
    )
    b.inconsistent = True
    with pytest.raises(GenericError, match="'b' is inconsistent"):
        merge_checked(a, b)
    a.readonly = True
    with pytest.raises(GenericError, match="'a' is readonly"):
        merge_checked(a, b)
    bench.graph.close()
