from __future__ import annotations

import errno
import json
import os

import pytest

from engine.errors import GenericError
from engine.graph.driver import Status, WriteFlag
from engine.graph.opening import open_node
from engine.graph.permissions import Perm
from engine.graph.requests import is_zero
from engine.graph.status import resolve_host
from tests.graphs import Bench


def test_raw_window_maps_offsets_both_ways(bench: Bench) -> None:
    path = bench.file("disk", bytes(range(256)) * 8)
    node = bench.add(
        driver="raw", node_name="w", offset=512, size=1024, file={"driver": "file", "filename": path, "node-name": "f"}
    )
    assert node.length == 1024
    node.write(0, memoryview(b"x" * 4))
    assert os.pread(os.open(path, os.O_RDONLY), 4, 512) == b"xxxx"
    extent = resolve_host(node.block_status(16, 100))
    assert extent.node is bench.graph.nodes["f"]
    assert extent.offset == 528
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        node.write(1020, memoryview(b"12345678"))
    assert not node.driver.is_filter
    shown = json.loads(node.filename.removeprefix("json:"))
    assert (shown["driver"], shown["offset"], shown["size"]) == ("raw", 512, 1024)


def test_reads_past_the_end_are_zeros(bench: Bench) -> None:
    node = bench.raw("r", b"a" * 700)
    assert node.length == 1024
    buffer = bytearray(b"?" * 1024)
    node.read(512, memoryview(buffer))
    assert bytes(buffer[:188]) == b"a" * 188
    assert not any(buffer[188:])


def test_user_requests_stay_inside_the_node(bench: Bench) -> None:
    backend = bench.graph.add_backend("device", "vda", bench.raw("r"), Perm.CONSISTENT_READ | Perm.WRITE, Perm.ALL)
    for action in (
        lambda: backend.read(65000, memoryview(bytearray(1000))),
        lambda: backend.write(65536, memoryview(b"x")),
        lambda: backend.write_zeroes(-512, 512),
    ):
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            action()
    assert backend.stats.failed_rd_operations == 1
    assert backend.stats.failed_wr_operations == 2


def test_user_without_write_permission_cannot_write(bench: Bench) -> None:
    backend = bench.graph.add_backend("device", "vda", bench.raw("r"), Perm.CONSISTENT_READ, Perm.ALL)
    with pytest.raises(OSError, match=os.strerror(errno.EPERM)):
        backend.write(0, memoryview(b"x"))


def test_zero_write_punches_only_where_unmap_is_allowed(bench: Bench) -> None:
    content = b"z" * (1 << 20)
    kept = bench.raw("kept", content)
    freed = bench.raw("freed", content, discard="unmap")
    for node in (kept, freed):
        node.write_zeroes(0, 1 << 20, WriteFlag.MAY_UNMAP)
        buffer = bytearray(b"?" * 4096)
        node.read(1 << 19, memoryview(buffer))
        assert not any(buffer)
    assert (freed.driver.allocated_size() or 0) < (1 << 16)
    assert not (bench.folder / "freed.raw").read_bytes().strip(b"\0")


def test_detect_zeroes_turns_zero_buffers_into_zero_writes(bench: Bench) -> None:
    node = bench.raw("r", b"d" * (1 << 20), discard="unmap", detect_zeroes="unmap")
    node.write(0, memoryview(bytes(1 << 20)))
    assert (node.driver.allocated_size() or 0) < (1 << 16)


def test_detect_zeroes_unmap_needs_discard(bench: Bench) -> None:
    with pytest.raises(GenericError, match="setting detect-zeroes to unmap is not allowed without setting discard"):
        bench.raw("r", detect_zeroes="unmap")


def test_trackers_hear_of_failed_writes_too(bench: Bench) -> None:
    node = bench.raw("r", bytes(1024), size=512)
    heard: list[tuple[int, int]] = []
    node.trackers = (lambda offset, length: heard.append((offset, length)),)
    with pytest.raises(OSError):
        node.write(256, memoryview(b"x" * 512))
    node.write(0, memoryview(b"y" * 512))
    assert heard == [(256, 512), (0, 512)]


def test_probed_raw_image_cannot_turn_into_another_format(bench: Bench) -> None:
    path = bench.file("guest.img", bytes(4096))
    node = open_node(bench.graph, {}, filename=path)
    assert node.driver.name == "raw"
    assert node.limits.request_alignment == 512
    header = b"QFI\xfb\0\0\0\3".ljust(512, b"\0")
    with pytest.raises(OSError, match=os.strerror(errno.EPERM)):
        node.write(0, memoryview(header))
    assert (bench.folder / "guest.img").read_bytes() == bytes(4096)
    node.write(512, memoryview(header))
    bench.graph.unpin(node)


def test_misaligned_requests_on_an_aligned_node(bench: Bench) -> None:
    path = bench.file("guest.img", b"a" * 4096)
    node = open_node(bench.graph, {}, filename=path)
    node.write(700, memoryview(b"b" * 10))
    buffer = bytearray(20)
    node.read(695, memoryview(buffer))
    assert bytes(buffer) == b"aaaaa" + b"b" * 10 + b"aaaaa"
    node.write_zeroes(100, 1000)
    content = (bench.folder / "guest.img").read_bytes()
    assert content == b"a" * 100 + bytes(1000) + b"a" * 2996
    bench.graph.unpin(node)


def test_block_status_tells_holes_from_data(bench: Bench) -> None:
    node = bench.raw("r", bytes(0))
    os.truncate(bench.folder / "r.raw", 0)
    path = bench.folder / "sparse.raw"
    with path.open("wb") as out:
        out.truncate(1 << 20)
        out.seek(1 << 19)
        out.write(b"x" * 65536)
    node = bench.add(driver="raw", node_name="s", file={"driver": "file", "filename": str(path)})
    hole = node.block_status(0, 1 << 20)
    assert (hole.length, bool(hole.flags & Status.ZERO), bool(hole.flags & Status.DATA)) == (1 << 19, True, False)
    data = node.block_status(1 << 19, 1 << 19)
    assert (data.length, bool(data.flags & Status.DATA)) == (65536, True)
    tail = node.block_status((1 << 19) + 65536, 1 << 20)
    assert tail.flags & Status.EOF
    assert (1 << 19) + 65536 + tail.length == 1 << 20


@pytest.mark.parametrize("size", [0, 1, 511, 4096, (1 << 20) + 17])
def test_is_zero(size: int) -> None:
    data = bytearray(size)
    assert is_zero(memoryview(data))
    for at in {0, size // 2, size - 1} if size else ():
        data[at] = 1
        assert not is_zero(memoryview(data))
        data[at] = 0


def test_flush_waits_for_one_that_is_running_and_skips_when_clean(bench: Bench) -> None:
    node = bench.raw("r")
    assert node.file is not None
    backend = bench.graph.add_backend("device", "vda", node, Perm.CONSISTENT_READ | Perm.WRITE, Perm.ALL)
    calls: list[int] = []
    driver = node.file.child.driver
    original = driver.flush
    driver.flush = lambda: (calls.append(1), original())[1]  # type: ignore[method-assign]
    backend.flush()
    assert not calls
    backend.write(0, memoryview(b"x" * 512))
    backend.flush()
    backend.flush()
    assert calls == [1]
