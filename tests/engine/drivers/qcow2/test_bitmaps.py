"""Persistent dirty bitmaps of qcow2 nodes: what is stored, when, and what is refused."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.bitmaps.dirty import DirtyBitmap, add_bitmap, bitmaps_of, find_bitmap
from engine.drivers.format.qcow2 import bitmap_store, bitmaps, header
from engine.drivers.format.qcow2.driver import Qcow2Driver
from engine.errors import GenericError
from engine.graph.node import Node
from engine.graph.reopen import set_read_only
from tests.engine.drivers.qcow2.support import FileChild, make, opened, qemu_check, run
from tests.graphs import Bench

MIB = 1 << 20
SIZE = 4 * MIB


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.graph.close()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.qcow2"
    make(path, SIZE, cluster_size=4096)
    return path


def open_image(bench: Bench, path: Path, read_only: bool = False) -> Node:
    return bench.add(driver="qcow2", node_name="n", file={"driver": "file", "filename": str(path)}, read_only=read_only)


def driver_of(node: Node) -> Qcow2Driver:
    assert isinstance(node.driver, Qcow2Driver)
    return node.driver


def close(bench: Bench, node: Node) -> None:
    node.monitor_owned = False
    bench.graph.release_if_unused(node)
    assert node.closed


def add(node: Node, name: str, granularity: int = 4096, *, enabled: bool = True) -> DirtyBitmap:
    node.driver.check_bitmap_storable(name, granularity)
    bitmap = add_bitmap(node, granularity, name)
    bitmap.persistent = True
    bitmap.enabled = enabled
    return bitmap


def write(node: Node, offset: int, length: int = 512) -> None:
    node.write(offset, memoryview(b"x" * length))


def stored(path: Path) -> dict[str, tuple[int, bool]]:
    """Name → (granularity, in use) of what the file's directory lists."""
    file = FileChild(path)
    try:
        entries = bitmaps.read_directory(file, header.parse(file))
    finally:
        file.close()
    return {entry.name: (entry.granularity, entry.in_use) for entry in entries}


def shown(node: Node) -> dict[str, tuple[bool, int]]:
    """Name → (recording, dirty bytes)."""
    return {bitmap.name or "": (bitmap.recording, bitmap.count) for bitmap in bitmaps_of(node)}


# -- life ------------------------------------------------------------------------------------------------------------


def test_stored_on_closing_and_in_use_meanwhile(bench: Bench, image: Path) -> None:
    node = open_image(bench, image)
    add(node, "b")
    add(node, "off", 65536, enabled=False)
    write(node, 8192)
    assert stored(image) == {}
    close(bench, node)
    assert stored(image) == {"b": (4096, False), "off": (65536, False)}
    node = open_image(bench, image)
    assert shown(node) == {"b": (True, 4096), "off": (False, 0)}
    assert stored(image) == {"b": (4096, True), "off": (65536, True)}
    write(node, MIB)
    close(bench, node)
    node = open_image(bench, image, read_only=True)
    assert shown(node) == {"b": (True, 8192), "off": (False, 0)}
    assert stored(image) == {"b": (4096, False), "off": (65536, False)}
    close(bench, node)
    qemu_check(image)


def test_a_crash_leaves_them_inconsistent(bench: Bench, image: Path, tmp_path: Path) -> None:
    node = open_image(bench, image)
    add(node, "b")
    close(bench, node)
    node = open_image(bench, image)
    add(node, "new")
    write(node, 0)
    node.flush()
    crashed = tmp_path / "crashed.qcow2"
    crashed.write_bytes(image.read_bytes())
    close(bench, node)
    for read_only in (True, False):
        node = open_image(bench, crashed, read_only=read_only)
        bitmap = find_bitmap(node, "b")
        assert bitmap is not None
        assert (bitmap.inconsistent, bitmap.recording, bitmap.readonly) == (True, False, read_only)
        assert find_bitmap(node, "new") is None
        close(bench, node)
    # Nobody makes it consistent again.
    assert stored(crashed) == {"b": (4096, True)}
    node = open_image(bench, crashed)
    driver_of(node).remove_stored_bitmap("b")
    assert stored(crashed) == {}
    found = find_bitmap(node, "b")
    assert found is not None
    found.detach()
    close(bench, node)
    qemu_check(crashed)


def test_reopening_stores_them_and_takes_them_again(bench: Bench, image: Path) -> None:
    node = open_image(bench, image)
    bitmap = add(node, "b")
    write(node, 0)
    for offset in (MIB, 2 * MIB):
        set_read_only(node, True)
        assert (bitmap.readonly, stored(image)) == (True, {"b": (4096, False)})
        set_read_only(node, False)
        assert (bitmap.readonly, stored(image)) == (False, {"b": (4096, True)})
        write(node, offset)
    assert bitmap.count == 3 * 4096
    close(bench, node)
    node = open_image(bench, image)
    assert shown(node) == {"b": (True, 3 * 4096)}
    close(bench, node)
    qemu_check(image)


def test_a_reopen_that_fails_leaves_them_writable(bench: Bench, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = open_image(bench, image)
    bitmap = add(node, "b")
    close_count = len(bitmaps_of(node))

    def refuse(*_: object, **__: object) -> None:
        raise GenericError("no")

    with monkeypatch.context() as patch:
        patch.setattr("engine.graph.reopen.refresh_permissions", refuse)
        with pytest.raises(GenericError):
            set_read_only(node, True)
    assert (bitmap.readonly, node.read_only, len(bitmaps_of(node))) == (False, False, close_count)
    assert stored(image) == {"b": (4096, True)}
    write(node, 0)
    close(bench, node)
    node = open_image(bench, image)
    assert shown(node) == {"b": (True, 4096)}
    close(bench, node)


def test_a_frozen_bitmap_is_stored_with_its_successor(bench: Bench, image: Path) -> None:
    """A job is at work on it while the node becomes read-only."""
    node = open_image(bench, image)
    bitmap = add(node, "b")
    write(node, 0)
    bitmap.create_successor()
    write(node, MIB)
    set_read_only(node, True)
    with opened(image, writable=False) as other:
        entry = bitmap_store.read(other.image)[0]
        assert entry.flags == bitmaps.AUTO
        assert list(bitmaps.read_bits(other.image, entry, SIZE).areas()) == [(0, 4096), (MIB, 4096)]
    set_read_only(node, False)
    bitmap.reclaim()
    close(bench, node)


def test_what_another_program_did_meanwhile_counts(bench: Bench, image: Path, qemu_img: str) -> None:
    node = open_image(bench, image)
    kept, gone = add(node, "kept"), add(node, "gone")
    write(node, 0)
    close(bench, node)
    file = {"driver": "file", "filename": str(image), "locking": "off"}
    node = bench.add(driver="qcow2", node_name="n", file=file, read_only=True, force_share=True)
    run(qemu_img, "bitmap", "--clear", image, "kept")
    run(qemu_img, "bitmap", "--remove", image, "gone")
    run(qemu_img, "bitmap", "--add", image, "new")
    driver = driver_of(node)
    image_now = driver._reread(driver.image.settings)
    driver.bitmaps.become_writable(image_now)
    kept, gone = (bitmap for bitmap in bitmaps_of(node) if bitmap.name in ("kept", "gone"))
    if kept.name == "gone":
        kept, gone = gone, kept
    assert (kept.count, kept.inconsistent) == (0, False)
    assert gone.inconsistent
    assert find_bitmap(node, "new") is not None
    image_now.close()


def test_bitmaps_that_cannot_be_marked_forbid_writing(
    bench: Bench, image: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    node = open_image(bench, image)
    bitmap = add(node, "b")
    set_read_only(node, True)

    def fail(*_: object) -> None:
        raise GenericError("Can't update bitmap directory")

    with monkeypatch.context() as patch:
        patch.setattr(bitmap_store, "mark_in_use", fail)
        set_read_only(node, False)
    assert "n: Failed to make dirty bitmaps writable: Can't update bitmap directory" in caplog.text
    assert bitmap.readonly
    with pytest.raises(OSError, match="not permitted"):
        write(node, 0)
    # Trying again is allowed.
    set_read_only(node, True)
    set_read_only(node, False)
    write(node, 0)
    assert bitmap.count == 4096
    close(bench, node)


def test_what_cannot_be_stored_is_told(bench: Bench, image: Path, caplog: pytest.LogCaptureFixture) -> None:
    node = open_image(bench, image, read_only=True)
    add(node, "b")
    close(bench, node)
    text = "Lost persistent bitmaps during inactivation of node 'n': No write access"
    assert [(record.levelno, record.message) for record in caplog.records] == [(logging.ERROR, text)]


# -- size ------------------------------------------------------------------------------------------------------------


def test_a_change_of_size_needs_bitmaps_that_can_follow(bench: Bench, image: Path) -> None:
    node = open_image(bench, image)
    bitmap = add(node, "b")
    node.truncate(SIZE + MIB)
    assert bitmap.length == SIZE + MIB
    close(bench, node)
    node = open_image(bench, image)
    bitmap = bitmaps_of(node)[0]
    for state in ("busy", "readonly", "inconsistent"):
        setattr(bitmap, state, True)
        with pytest.raises(GenericError, match=f"^Bitmap 'b' is .*({state}|in use)"):
            node.truncate(SIZE)
        setattr(bitmap, state, False)
    bitmap.detach()
    with pytest.raises(GenericError, match="that were not loaded into memory"):
        node.truncate(SIZE)
    bitmap.attach()
    write(node, SIZE)
    node.truncate(SIZE - 512)
    assert (bitmap.length, bitmap.count) == (SIZE - 512, 0)
    close(bench, node)
    node = open_image(bench, image)
    assert shown(node) == {"b": (True, 0)}
    close(bench, node)
    qemu_check(image)


def test_emptying_the_image_keeps_them(bench: Bench, image: Path) -> None:
    node = open_image(bench, image)
    add(node, "b", 512)
    write(node, 0, MIB)
    close(bench, node)
    node = open_image(bench, image)
    driver_of(node).make_empty()
    assert shown(node) == {"b": (True, MIB)}
    close(bench, node)
    qemu_check(image)
    node = open_image(bench, image)
    assert shown(node) == {"b": (True, MIB)}
    close(bench, node)


def test_repairing_keeps_them(bench: Bench, image: Path) -> None:
    node = open_image(bench, image)
    add(node, "b", 512)
    write(node, 0, 700)
    close(bench, node)
    with open(image, "r+b") as file:
        # Refcount table lost: everything is counted anew.
        file.seek(48)
        table = int.from_bytes(file.read(8), "big")
        file.seek(table)
        file.write(bytes(8))
    node = open_image(bench, image)
    result = driver_of(node).check(frozenset({"errors", "leaks"}))
    assert (result.corruptions, result.leaks) == (0, 0)
    close(bench, node)
    qemu_check(image)
    node = open_image(bench, image)
    assert shown(node) == {"b": (True, 1024)}
    close(bench, node)


# -- limits ----------------------------------------------------------------------------------------------------------


def test_what_can_be_stored(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "v2.qcow2", MIB, version="v2")
    make(tmp_path / "huge.qcow2", 4 << 40)
    node = open_image(bench, tmp_path / "v2.qcow2")
    refused = "^Can't make bitmap 'b' persistent in 'n': "
    with pytest.raises(GenericError, match=refused + "Cannot store dirty bitmaps in qcow2 v2 files$"):
        node.driver.check_bitmap_storable("b", 512)
    close(bench, node)
    node = open_image(bench, tmp_path / "huge.qcow2")
    with pytest.raises(GenericError, match=refused + "Too much space will be occupied by the bitmap. Use larger"):
        node.driver.check_bitmap_storable("b", 512)
    node.driver.check_bitmap_storable("b", 1024)
    node.driver.check_bitmap_storable("b", 1 << 31)
    with pytest.raises(GenericError, match=r"persistent in 'n': Name length exceeds maximum \(1023 characters\)$"):
        node.driver.check_bitmap_storable("b" * 1024, 1 << 20)
    monkeypatch.setattr(header, "MAX_BITMAPS", 2)
    add(node, "one", 1 << 20)
    node.driver.check_bitmap_storable("b", 1 << 20)
    two = add(node, "two", 1 << 20)
    with pytest.raises(GenericError, match=refused + "Maximum number of persistent bitmaps is already reached$"):
        node.driver.check_bitmap_storable("b", 1 << 20)
    two.skip_store = True
    node.driver.check_bitmap_storable("b", 1 << 20)
    monkeypatch.setattr(header, "MAX_BITMAP_DIRECTORY", 40)
    with pytest.raises(GenericError, match=refused + "Not enough space in the bitmap directory$"):
        node.driver.check_bitmap_storable("b", 1 << 20)
    two.detach()
    close(bench, node)


def test_no_space_in_the_header(bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A header filled to its end takes no extension: the bitmaps are lost, the image is not."""
    path = tmp_path / "image.qcow2"
    make(path, MIB, cluster_size=512)
    with opened(path) as image:
        image.image.header.extensions.append((0x12345678, bytes(512 - 112 - 8 - 8)))
        image.image.rewrite_header()
    node = open_image(bench, path)
    add(node, "b")
    write(node, 0)
    close(bench, node)
    assert "Lost persistent bitmaps" in caplog.text
    qemu_check(path, leaks=True)
    assert stored(path) == {}


# -- against a model -------------------------------------------------------------------------------------------------

names = st.sampled_from(["a", "b", "ä€", "x" * 300])
grains = st.sampled_from([512, 4096, 65536, MIB])
offsets = st.integers(0, 2 * SIZE // 512).map(lambda sector: sector * 512)
actions = st.one_of(
    st.tuples(st.just("write"), offsets, st.sampled_from([512, 5120, 900 * 1024])),
    st.tuples(st.just("add"), names, grains),
    st.tuples(st.sampled_from(["remove", "clear", "enable", "disable"]), names),
    st.tuples(st.sampled_from(["close", "read-only"])),
    st.tuples(st.just("resize"), st.sampled_from([SIZE, SIZE + 512, 2 * SIZE, MIB])),
)


class Model:
    """Bitmaps as sets of granules."""

    def __init__(self) -> None:
        self.size = SIZE
        self.bitmaps: dict[str, tuple[int, set[int]]] = {}
        self.enabled: dict[str, bool] = {}

    def write(self, offset: int, length: int) -> None:
        for name, (grain, dirty) in self.bitmaps.items():
            if self.enabled[name]:
                dirty.update(range(offset // grain, (offset + length - 1) // grain + 1))

    def resize(self, size: int) -> None:
        self.size = size
        for grain, dirty in self.bitmaps.values():
            dirty.intersection_update(range(-(-size // grain)))

    def shown(self) -> dict[str, tuple[bool, int]]:
        return {name: (self.enabled[name], len(dirty) * grain) for name, (grain, dirty) in self.bitmaps.items()}


@pytest.mark.interop
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(script=st.lists(actions, min_size=3, max_size=25), cluster=st.sampled_from([512, 65536]))
def test_against_a_model(script: list[tuple[object, ...]], cluster: int, tmp_path: Path, qemu_img: str) -> None:
    path = tmp_path / "image.qcow2"
    make(path, SIZE, cluster_size=cluster)
    bench, model = Bench(tmp_path), Model()
    node = open_image(bench, path)
    for action, *arguments in [*script, ("close",)]:
        match action, *arguments:
            case "write", int(offset), int(length):
                length = min(length, model.size - offset)
                if length > 0:
                    write(node, offset, length)
                    model.write(offset, length)
            case "add", str(name), int(grain) if name not in model.bitmaps:
                add(node, name, grain)
                model.bitmaps[name], model.enabled[name] = (grain, set()), True
            case str(verb), str(name) if name in model.bitmaps:
                bitmap = find_bitmap(node, name)
                assert bitmap is not None
                change(node, bitmap, verb, model)
            case "resize", int(size):
                node.truncate(size)
                model.resize(size)
            case ("read-only",):
                set_read_only(node, True)
                set_read_only(node, False)
            case ("close",):
                close(bench, node)
                qemu_check(path)
                node = open_image(bench, path)
    assert shown(node) == model.shown()
    for name, (grain, dirty) in model.bitmaps.items():
        bitmap = find_bitmap(node, name)
        assert bitmap is not None
        assert {i for i in range(-(-model.size // grain)) if bitmap.get(i * grain)} == dirty
    bench.graph.close()
    qemu_check(path)


def change(node: Node, bitmap: DirtyBitmap, verb: str, model: Model) -> None:
    name = bitmap.name or ""
    if verb == "remove":
        node.driver.remove_stored_bitmap(name)
        bitmap.detach()
        del model.bitmaps[name], model.enabled[name]
    elif verb == "clear":
        bitmap.clear()
        model.bitmaps[name][1].clear()
    else:
        bitmap.enabled = model.enabled[name] = verb == "enable"


def test_removing_while_guests_write(bench: Bench, image: Path) -> None:
    node = open_image(bench, image)
    for i in range(20):
        add(node, f"b{i}", 512)
    close(bench, node)
    node = open_image(bench, image)
    stop = threading.Event()

    def work(start: int) -> None:
        while not stop.is_set():
            for offset in range(start, SIZE, 65536):
                write(node, offset, 4096)
                node.discard(offset, 4096)

    threads = [threading.Thread(target=work, args=(start,)) for start in (0, 8192)]
    for thread in threads:
        thread.start()
    try:
        for i in range(0, 20, 2):
            driver_of(node).remove_stored_bitmap(f"b{i}")
            found = find_bitmap(node, f"b{i}")
            assert found is not None
            found.detach()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    close(bench, node)
    assert list(stored(image)) == [f"b{i}" for i in range(19, 0, -2)]
    qemu_check(image)


def test_bitmaps_of_another_make_are_given_up(bench: Bench, image: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A program that does not know bitmaps has cleared the bit that vouches for them."""
    node = open_image(bench, image)
    add(node, "b")
    close(bench, node)
    with open(image, "r+b") as file:
        os.pwrite(file.fileno(), bytes(8), 88)
    node = open_image(bench, image, read_only=True)
    assert bitmaps_of(node) == []
    assert "all bitmaps are now considered inconsistent" in caplog.text
    close(bench, node)
    node = open_image(bench, image)
    add(node, "b")
    close(bench, node)
    assert stored(image) == {"b": (4096, False)}
    qemu_check(image, leaks=True)
