"""What a user of a qcow2 node notices: options, reopening, protection against broken metadata, discards, planned
writes.
"""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from engine.drivers.format.qcow2 import Qcow2Driver, compress
from engine.drivers.format.qcow2.cache import janitor
from engine.drivers.format.qcow2.options import BlockdevOptionsQcow2, Qcow2OverlapCheckMode
from engine.errors import GenericError
from engine.graph.driver import Status, WriteFlag
from engine.graph.node import Node
from engine.graph.reopen import reopen, set_read_only
from tests.engine.drivers.qcow2.support import FileChild, Opened, make, opened, qemu_check, qemu_read
from tests.graphs import Bench

CLUSTER = 65536


def add(bench: Bench, path: Path, **options: Any) -> Node:
    return bench.add(driver="qcow2", file={"driver": "file", "filename": str(path)}, **options)


def driver_of(node: Node) -> Qcow2Driver:
    assert isinstance(node.driver, Qcow2Driver)
    return node.driver


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "image.qcow2"
    make(path, 8 << 20)
    return path


# -- options
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"cache_size": 1 << 20, "l2_cache_size": 1 << 19, "refcount_cache_size": 1 << 19},
            "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time",
        ),
        ({"cache_size": 1 << 20, "l2_cache_size": 2 << 20}, "l2-cache-size may not exceed cache-size"),
        ({"cache_size": 1 << 20, "refcount_cache_size": 2 << 20}, "refcount-cache-size may not exceed cache-size"),
        (
            {"l2_cache_entry_size": 1000},
            "L2 cache entry size must be a power of two between 512 and the cluster size (65536)",
        ),
        (
            {"l2_cache_entry_size": 131072},
            "L2 cache entry size must be a power of two between 512 and the cluster size (65536)",
        ),
        ({"cache_clean_interval": 1 << 33}, "Cache clean interval too big"),
        (
            {"encrypt": {"format": "luks", "key-secret": "s"}},
            "No encryption in image header, but options specified format 'luks'",
        ),
    ],
)
def test_bad_options(options: dict[str, Any], text: str, bench: Bench, path: Path) -> None:
    with pytest.raises(GenericError) as caught:
        add(bench, path, **options)
    assert caught.value.desc == text


def test_lazy_refcounts_need_version_3(bench: Bench, tmp_path: Path) -> None:
    make(tmp_path / "old.qcow2", 1 << 20, version="v2")
    with pytest.raises(GenericError, match=r"^Lazy refcounts require a qcow2 image with at least qemu 1\.1 compat"):
        add(bench, tmp_path / "old.qcow2", lazy_refcounts=True)


@pytest.mark.parametrize(
    ("options", "slices", "slice_size", "blocks"),
    [
        # The L2 tables of 8 MiB need one cluster; the cache covers them whole.
        ({}, 2, 65536, 4),
        ({"l2_cache_size": 8192}, 2, 4096, 4),
        ({"l2_cache_size": 32768, "l2_cache_entry_size": 512}, 64, 512, 4),
        ({"refcount_cache_size": 1 << 20}, 2, 65536, 16),
        ({"cache_size": 1 << 20}, 2, 65536, 15),
        ({"cache_size": 1 << 19, "refcount_cache_size": 1 << 18}, 4, 65536, 4),
    ],
)
def test_cache_sizes(
    options: dict[str, Any], slices: int, slice_size: int, blocks: int, bench: Bench, path: Path
) -> None:
    image = driver_of(add(bench, path, **options)).image
    found = (image.l2_cache.capacity, image.slice_size, image.refcounts.cache.capacity)
    assert found == (slices, slice_size, blocks)


def test_unused_tables_are_dropped_after_the_interval(path: Path) -> None:
    swept = threading.Event()
    options = BlockdevOptionsQcow2(file="-", cache_clean_interval=1)
    with opened(path, options=options) as image:
        image.write(0, b"x" * 100)
        image.flush()
        assert image.image.l2_cache.tables
        sweep = image.image.clean_caches

        def tell() -> None:
            sweep()
            if not image.image.l2_cache.tables:
                swept.set()

        image.image.clean_caches = tell  # type: ignore[method-assign]

        class Owner:
            def clean(self) -> None:
                tell()

        owner = Owner()
        key = janitor.register(0.01, owner.clean)
        try:
            # The first sweep only takes the mark of use away.
            assert swept.wait(30)
        finally:
            janitor.unregister(key)
        assert image.get(0, 100) == b"x" * 100


def test_zstd_without_the_package_is_refused_in_words(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "z.qcow2", 1 << 20, compression_type="zstd")
    monkeypatch.setattr(compress, "_zstandard", lambda: None)
    with pytest.raises(GenericError, match="needs the Python package zstandard"):
        add(bench, tmp_path / "z.qcow2")


# -- reopening
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.interop
def test_reopen_read_only_leaves_a_clean_image_and_back_it_works_again(bench: Bench, path: Path, qemu_img: str) -> None:
    node = add(bench, path, lazy_refcounts=True)
    node.write(0, memoryview(b"a" * 100_000))
    assert path.read_bytes()[79] & 1
    set_read_only(node, True)
    assert not path.read_bytes()[79] & 1
    with pytest.raises(OSError) as caught:
        node.write(0, memoryview(b"b"))
    assert caught.value.errno == errno.EPERM
    qemu_check(path)
    set_read_only(node, False)
    node.write(200_000, memoryview(b"c" * 10))
    bench.graph.close()
    qemu_check(path)
    assert qemu_read(path)[200_000:200_011] == b"c" * 10 + b"\0"


def test_reopen_changes_the_caches_and_keeps_the_data(bench: Bench, path: Path) -> None:
    node = add(bench, path)
    node.write(0, memoryview(b"a" * 100_000))
    wire = {"l2-cache-size": 8192, "l2-cache-entry-size": 1024, "overlap-check": {"template": "all"}}
    reopen(node, wire, keep_old=True)
    image = driver_of(node).image
    assert (image.slice_size, image.l2_cache.capacity) == (1024, 8)
    node.write(100_000, memoryview(b"b" * 100))
    buffer = bytearray(200)
    node.read(99_900, memoryview(buffer))
    assert buffer == b"a" * 100 + b"b" * 100


def test_failed_reopen_changes_nothing(bench: Bench, path: Path) -> None:
    node = add(bench, path)
    before = driver_of(node).image.settings
    with pytest.raises(GenericError, match="Cache clean interval too big"):
        reopen(node, {"cache-clean-interval": 1 << 40, "read-only": True}, keep_old=True)
    assert driver_of(node).image.settings == before
    assert not node.read_only
    node.write(0, memoryview(b"x"))


@pytest.mark.interop
def test_what_others_wrote_while_read_only_is_seen_after_reopening(bench: Bench, path: Path, qemu_io: str) -> None:
    from tests.engine.drivers.qcow2.support import run

    node = add(bench, path, read_only=True, force_share=True)
    buffer = bytearray(4096)
    node.read(0, memoryview(buffer))
    run(qemu_io, "-c", "write -P 5 0 1M", path)
    node.force_share = False
    for edge in node.children.values():
        edge.child.force_share = False
    set_read_only(node, False)
    node.write(1 << 20, memoryview(b"mine" * 100))
    node.read(0, memoryview(buffer))
    assert buffer == b"\5" * 4096
    bench.graph.close()
    qemu_check(path)
    assert qemu_read(path)[(1 << 20) - 4 : (1 << 20) + 4] == b"\5\5\5\5mine"


# -- broken metadata ---------------------------------------------------------------------------------------------------


def corrupt_entry(path: Path, value: int, index: int = 0) -> None:
    """Set an L2 entry of an image whose first L2 table exists."""
    data = bytearray(path.read_bytes())
    l1 = int.from_bytes(data[40:48], "big")
    l2 = int.from_bytes(data[l1 : l1 + 8], "big") & ~(1 << 63)
    data[l2 + index * 8 : l2 + index * 8 + 8] = value.to_bytes(8, "big")
    path.write_bytes(data)


BROKEN: list[tuple[str, int, str]] = [
    ("write", 1 << 63 | CLUSTER, "Preventing invalid write on metadata (overlaps with refcount table)"),
    ("write", 1 << 63 | 2 * CLUSTER, "Preventing invalid write on metadata (overlaps with refcount block)"),
    ("write", 1 << 63 | 3 * CLUSTER, "Preventing invalid write on metadata (overlaps with active L1 table)"),
    ("write", 1 << 63 | 4 * CLUSTER, "Preventing invalid write on metadata (overlaps with active L2 table)"),
    ("write", 1 << 63 | 0x50200, "Data cluster offset 0x50200 unaligned (guest offset: 0)"),
    ("read", 1 << 63 | 0x50200, "Cluster allocation offset 0x50200 unaligned (L2 offset: 0x40000, L2 index: 0)"),
]


@pytest.mark.parametrize(("action", "entry", "text"), BROKEN)
def test_fatal_corruption_shuts_the_image_and_marks_it(action: str, entry: int, text: str, path: Path) -> None:
    with opened(path) as image:
        image.write(CLUSTER, b"x" * CLUSTER)
    corrupt_entry(path, entry)
    before = path.read_bytes()
    with opened(path) as image:
        with pytest.raises(OSError) as caught:
            image.write(0, b"y" * CLUSTER) if action == "write" else image.get(0, 512)
        assert caught.value.errno == errno.EIO
        assert [(report[0], report[3]) for report in image.reports] == [(text, True)]
        for request in (lambda: image.get(0, 512), lambda: image.write(0, b"z"), image.flush):
            with pytest.raises(OSError) as caught:
                request()
            assert caught.value.errno == errno.ENOMEDIUM
    after = bytearray(path.read_bytes())
    assert after[79] == 2
    after[79] = 0
    assert after == before, "nothing but the corrupt bit is written"


def test_corruption_found_by_a_read_only_image_fails_that_request_only(path: Path) -> None:
    with opened(path) as image:
        image.write(0, b"x" * 3 * CLUSTER)
    corrupt_entry(path, 1 << 63 | 0x50200)
    before = path.read_bytes()
    with opened(path, writable=False) as image:
        for _ in range(2):
            with pytest.raises(OSError) as caught:
                image.get(0, 512)
            assert caught.value.errno == errno.EIO
        assert image.get(CLUSTER, 3) == b"xxx"
        # Said once.
        assert len(image.reports) == 1
        assert image.reports[0][3] is False
    assert path.read_bytes() == before


def test_refcounts_that_lie_do_not_lead_into_metadata(path: Path) -> None:
    with opened(path) as image:
        image.write(0, b"x" * 100)
    data = bytearray(path.read_bytes())
    data[2 * CLUSTER : 2 * CLUSTER + 16] = bytes(16)
    path.write_bytes(data)
    with opened(path) as image:
        with pytest.raises(OSError) as caught:
            image.write(4 * CLUSTER, b"y")
        assert caught.value.errno == errno.EIO
        assert image.reports[0][0] == "Preventing invalid write on metadata (overlaps with qcow2_header)"
    assert path.read_bytes()[:4] == b"QFI\xfb"


@pytest.mark.parametrize("template", ["none", "constant", "cached", "all"])
def test_overlap_templates(template: str, path: Path) -> None:
    with opened(path) as image:
        image.write(0, b"x" * 100)
    # Entry 0 points at the L2 table, entry 1 at the L1 table.
    corrupt_entry(path, 1 << 63 | 4 * CLUSTER)
    options = BlockdevOptionsQcow2(file="-", overlap_check=Qcow2OverlapCheckMode(template))
    child = FileChild(path)
    image = Opened(child, options=options)
    refused = template in ("cached", "all")
    try:
        image.write(CLUSTER - 10, b"y")
        assert not refused
    except OSError:
        assert refused
    assert bool(image.reports) == refused
    child.close()
    image.image.close()


@pytest.mark.interop
def test_inactive_l2_tables_are_protected_when_asked_for(path: Path, qemu_img: str) -> None:
    from tests.engine.drivers.qcow2.support import run

    with opened(path) as image:
        image.write(0, b"x" * 100)
    run(qemu_img, "snapshot", "-c", "s", path)
    with opened(path) as image:
        old = image.image.l1[0] & 0xFFFFFFFFFFFE00
        image.write(0, b"y" * 100)
    corrupt_entry(path, 1 << 63 | old, index=5)
    for template, refused in (("all", True), ("cached", False)):
        copy = path.with_suffix(f".{template}")
        copy.write_bytes(path.read_bytes())
        child = FileChild(copy)
        image = Opened(child, options=BlockdevOptionsQcow2(file="-", overlap_check=Qcow2OverlapCheckMode(template)))
        try:
            image.write(5 * CLUSTER, b"z")
            assert not refused
        except OSError:
            assert image.reports[0][0].endswith("(overlaps with inactive L2 table)")
            assert refused
        image.image.close()
        child.close()


# -- discard and zeros
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "punched"),
    [({}, True), ({"pass_discard_request": False}, False), ({"pass_discard_request": True}, True)],
)
def test_discards_reach_the_file_after_the_metadata(options: dict[str, Any], punched: bool, path: Path) -> None:
    given = BlockdevOptionsQcow2(file="-", **options)
    with opened(path, options=given) as image:
        image.write(0, b"x" * (4 * CLUSTER))
        image.flush()
        host = image.block_status(0, CLUSTER).offset
        image.discard(0, 2 * CLUSTER)
        file = image.file
        assert isinstance(file, FileChild)
        assert file.discards == [], "not before the entries are on disk"
        image.flush()
        assert file.discards == ([(host, 2 * CLUSTER)] if punched else [])
        assert image.get(0, 4 * CLUSTER) == bytes(2 * CLUSTER) + b"x" * (2 * CLUSTER)


def test_space_of_discarded_clusters_is_used_again(path: Path) -> None:
    with opened(path) as image:
        for _ in range(30):
            image.write(0, os.urandom(4 << 20))
            image.discard(0, 4 << 20)
            image.flush()
    assert path.stat().st_size < 11 << 20


def test_many_discards_without_a_flush_do_not_pile_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.drivers.format.qcow2 import ordering

    monkeypatch.setattr(ordering, "MAX_PENDING_BYTES", 4 << 20)
    with opened(path) as image:
        for _ in range(30):
            image.write(0, b"x" * (2 << 20))
            image.discard(0, 2 << 20)
        assert image.image.high_water < 16 << 20


def test_zeros_over_a_backing_file_hide_it(tmp_path: Path) -> None:
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    make(base, 1 << 20)
    with opened(base) as image:
        image.write(0, b"b" * (1 << 20))
    make(top, 1 << 20)
    below = Opened(FileChild(base), writable=False)
    with opened(top, backing=lambda: below) as image:
        image.write_zeroes(1000, 3 * CLUSTER)
        image.discard(512 << 10, CLUSTER)
        assert image.get(0, 1000) == b"b" * 1000
        assert image.get(1000, 3 * CLUSTER) == bytes(3 * CLUSTER)
        assert image.get(512 << 10, CLUSTER) == bytes(CLUSTER)
        # Whole clusters are zero by their entries, without space of their own.
        status = image.block_status(CLUSTER, CLUSTER)
        assert status.flags & Status.ZERO
        assert not status.flags & Status.OFFSET_VALID
    assert top.stat().st_size < 8 * CLUSTER


def test_partial_zeros_of_an_empty_cluster_need_no_space(path: Path) -> None:
    with opened(path) as image:
        image.write_zeroes(100, 200, int(WriteFlag.NO_FALLBACK))
        assert image.block_status(0, CLUSTER).flags & Status.ZERO
        image.write(CLUSTER, b"x" * CLUSTER)
        from engine.drivers.format.qcow2 import unmap

        with pytest.raises(OSError) as caught:
            unmap.write_zeroes(image.image, CLUSTER + 10, 10, int(WriteFlag.NO_FALLBACK))
        assert caught.value.errno == errno.ENOTSUP


# -- fast paths
# -----------------------------------------------------------------------------------------------------------


def test_large_requests_are_few_requests(path: Path) -> None:
    with opened(path) as image:
        image.write(0, b"")
        image.write(0, b"w" * 512)
        image.flush()
        file = image.file
        assert isinstance(file, FileChild)
        before = file.writes
        image.write(1 << 20, b"x" * (2 << 20))
        assert file.writes == before + 1
        before = file.reads
        assert image.get(1 << 20, 2 << 20) == b"x" * (2 << 20)
        assert file.reads == before + 1
        status = image.block_status(1 << 20, 4 << 20)
        assert status.length == 2 << 20
        before = file.writes
        image.flush()
        # A refcount block and an L2 slice.
        assert file.writes - before <= 2


def test_block_status_runs_over_many_slices(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    make(path, 8 << 20, cluster_size=512)
    with opened(path) as image:
        assert image.block_status(0, 8 << 20).length == 8 << 20
        image.write_zeroes(0, 8 << 20)
        assert image.block_status(512, 8 << 20).length == (8 << 20) - 512


# -- planned writes, emptying, strings
# -----------------------------------------------------------------------------------


def test_plans_are_refused_where_something_must_be_copied(bench: Bench, path: Path) -> None:
    driver = driver_of(add(bench, path))
    assert driver.begin_write(512, CLUSTER) is None
    assert driver.begin_write(0, CLUSTER + 512) is None
    plan = driver.begin_write(0, 2 * CLUSTER)
    assert plan is not None
    plan.abort()
    assert driver.node.block_status(0, 2 * CLUSTER).flags & Status.ZERO


@pytest.mark.interop
def test_aborted_plan_gives_its_space_back(bench: Bench, path: Path, qemu_img: str) -> None:
    node = add(bench, path)
    node.write(0, memoryview(b"keep" * 100))
    for _ in range(3):
        plan = driver_of(node).begin_write(0, 4 << 20)
        assert plan is not None
        plan.abort()
    bench.graph.close()
    qemu_check(path)
    assert qemu_read(path)[:400] == b"keep" * 100


@pytest.mark.interop
def test_make_empty_shrinks_the_file_and_shows_the_backing_file(bench: Bench, tmp_path: Path, qemu_img: str) -> None:
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    make(base, 4 << 20)
    with opened(base) as image:
        image.write(0, b"b" * (1 << 20))
    make(top, 4 << 20, backing_file=str(base), backing_fmt="qcow2")
    node = add(bench, top)
    node.write(0, memoryview(b"t" * (3 << 20)))
    node.flush()
    driver_of(node).make_empty()
    assert top.stat().st_size < 8 * CLUSTER
    buffer = bytearray(2 << 20)
    node.read(0, memoryview(buffer))
    assert buffer == b"b" * (1 << 20) + bytes(1 << 20)
    node.write(100, memoryview(b"again"))
    bench.graph.close()
    qemu_check(top)


@pytest.mark.interop
def test_backing_string_is_rewritten(bench: Bench, tmp_path: Path, path: Path, qemu_img: str) -> None:
    import json

    from tests.engine.drivers.qcow2.support import run

    node = add(bench, path)
    driver_of(node).change_backing_string("other.raw", "raw")
    assert (node.auto_backing_file, node.auto_backing_format) == ("other.raw", "raw")
    with pytest.raises(OSError) as caught:
        driver_of(node).change_backing_string("x" * 1024, "raw")
    assert caught.value.errno == errno.EINVAL
    assert node.auto_backing_file == "other.raw"
    bench.graph.close()
    info = json.loads(run(qemu_img, "info", "--output=json", path))
    assert (info["backing-filename"], info["backing-filename-format"]) == ("other.raw", "raw")
    child = FileChild(path)
    Opened(child).close()
    child.close()


def test_failed_writes_leave_nothing_behind(path: Path) -> None:
    class FullDisk(FileChild):
        full = False

        def write(self, offset: int, data: memoryview, flags: int = 0) -> None:
            if self.full and len(data) >= 1 << 19:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            super().write(offset, data, flags)

    child = FullDisk(path)
    image = Opened(child)
    image.write(0, b"fits" * 100)
    child.full = True
    with pytest.raises(OSError) as caught:
        image.write(CLUSTER, b"x" * (1 << 20))
    assert caught.value.errno == errno.ENOSPC
    child.full = False
    assert image.get(CLUSTER, 1 << 20) == bytes(1 << 20)
    image.write(CLUSTER, b"y" * (1 << 20))
    assert image.get(0, 400) == b"fits" * 100
    from engine.drivers.format.qcow2 import check

    result = check.check(image.image, frozenset())
    assert (result.corruptions, result.leaks) == (0, 0)
    image.close()
    child.close()


def test_a_failed_flush_keeps_the_metadata_for_the_next(path: Path) -> None:
    class Failing(FileChild):
        fail = False

        def flush(self) -> None:
            if self.fail:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            super().flush()

    child = Failing(path)
    image = Opened(child)
    image.write(0, b"data" * 1000)
    child.fail = True
    with pytest.raises(OSError):
        image.flush()
    child.fail = False
    image.flush()
    child.close()
    with opened(path, writable=False) as again:
        assert again.get(0, 4000) == b"data" * 1000
    image.image.close()
