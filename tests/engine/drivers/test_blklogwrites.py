"""blklogwrites: what stands in the log. Byte for byte it is compared with QEMU's in tests/interop/test_faults.py."""

import errno
import threading
from pathlib import Path
from typing import Any

import pytest

from engine.drivers.filter.blklogwrites import DISCARD, ENTRY, FLUSH, MAGIC, SUPERBLOCK
from engine.errors import GenericError
from engine.graph.driver import WriteFlag
from engine.graph.node import Node
from tests.graphs import Bench

MIB = 1 << 20
LogEntry = tuple[int, int, int, bytes]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    (tmp_path / "log").touch()
    (tmp_path / "image").write_bytes(bytes(MIB))
    return Bench(tmp_path)


def logger(bench: Bench, **options: Any) -> Node:
    file = {"driver": "file", "filename": str(bench.folder / "image")}
    log = {"driver": "file", "filename": str(bench.folder / "log")}
    return bench.add(**{"driver": "blklogwrites", "file": file, "log": log, "discard": "unmap"} | options)


def entries(bench: Bench) -> list[LogEntry]:
    """(sector, sectors, flags, data) of all that the superblock counts."""
    data = (bench.folder / "log").read_bytes()
    magic, version, count, sector = SUPERBLOCK.unpack_from(data)
    assert (magic, version) == (MAGIC, 1)
    at = sector
    found = []
    for _ in range(count):
        where, length, flags, _ = ENTRY.unpack_from(data, at)
        size = 0 if flags & DISCARD else length * sector
        found.append((where, length, flags, data[at + sector : at + sector + size]))
        at += sector + size
    return found


def test_every_change_is_logged_and_done(bench: Bench) -> None:
    node = logger(bench)
    node.write(0, memoryview(b"a" * 1024))
    node.write_zeroes(4096, 1024)
    node.discard(700, 2000)
    node.flush()
    node.flush()
    assert entries(bench) == [
        (0, 2, 0, b"a" * 1024),
        (8, 2, 0, bytes(1024)),
        (2, 3, DISCARD, b""),
        (0, 0, FLUSH, b""),
    ]
    assert (bench.folder / "image").read_bytes()[:1024] == b"a" * 1024


def test_a_write_that_must_be_durable_is_followed_by_a_flush(bench: Bench) -> None:
    logger(bench).write(512, memoryview(b"a" * 512), int(WriteFlag.FUA))
    assert [entry[2] for entry in entries(bench)] == [0, FLUSH]


def test_parts_of_sectors_are_logged_as_sectors(bench: Bench) -> None:
    node = logger(bench, log_sector_size=4096)
    node.write(5000, memoryview(b"x"))
    node.flush()
    assert entries(bench) == [(1, 1, 0, bytes(904) + b"x" + bytes(3191)), (0, 0, FLUSH, b"")]


def test_the_superblock_follows_at_flushes_and_intervals(bench: Bench) -> None:
    node = logger(bench, log_super_update_interval=3)
    for number in range(1, 8):
        node.write(0, memoryview(bytes([number]) * 512))
        if number >= 3:
            assert len(entries(bench)) == number // 3 * 3


def test_a_log_is_continued(bench: Bench) -> None:
    first = logger(bench, node_name="l", log_sector_size=4096)
    first.write(0, memoryview(b"a" * 4096))
    first.monitor_owned = False
    bench.graph.release_if_unused(first)
    assert [entry[2] for entry in entries(bench)] == [0, FLUSH], "closing flushes"
    again = logger(bench, log_append=True)
    again.write(4096, memoryview(b"b" * 4096))
    again.flush()
    assert [(entry[0], entry[2]) for entry in entries(bench)] == [(0, 0), (0, FLUSH), (1, 0), (0, FLUSH)]


def test_a_damaged_log_is_refused(bench: Bench) -> None:
    log = bench.folder / "log"
    log.write_bytes(SUPERBLOCK.pack(MAGIC, 1, 1 << 60, 512) + bytes(2000))
    assert logger(bench, node_name="cut", log_append=True).length == MIB, "and soon, however much it claims"
    bench.graph.nodes["cut"].monitor_owned = False
    bench.graph.release_if_unused(bench.graph.nodes["cut"])
    for head, text in (
        ((MAGIC + 1, 1, 0, 512), "Invalid log superblock magic"),
        ((MAGIC, 2, 0, 512), "Unsupported log version 2"),
        ((MAGIC, 1, 0, 513), "Invalid log sector size 513"),
    ):
        log.write_bytes(SUPERBLOCK.pack(*head) + bytes(2000))
        with pytest.raises(GenericError, match=text):
            logger(bench, log_append=True)


def test_a_failed_write_is_in_the_log_as_well(bench: Bench) -> None:
    rule = {"event": "none", "iotype": "write", "errno": errno.ENOSPC}
    image = {"driver": "file", "filename": str(bench.folder / "image")}
    node = logger(bench, file={"driver": "blkdebug", "image": image, "inject-error": [rule]})
    with pytest.raises(OSError, match="No space left"):
        node.write(0, memoryview(b"a" * 512))
    node.flush()
    assert [entry[2] for entry in entries(bench)] == [0, FLUSH]


def test_a_failing_log_fails_the_request(bench: Bench) -> None:
    rule = {"event": "none", "iotype": "write"}
    log = {"driver": "file", "filename": str(bench.folder / "log")}
    node = logger(bench, log={"driver": "blkdebug", "image": log, "inject-error": [rule]})
    with pytest.raises(OSError, match="Input/output error"):
        node.write(0, memoryview(b"a" * 512))


def test_entries_of_many_threads_keep_apart(bench: Bench) -> None:
    node = logger(bench)

    def work(number: int) -> None:
        for turn in range(20):
            node.write((number * 20 + turn) * 512, memoryview(bytes([number + 1]) * 512))
            node.write_zeroes((number * 20 + turn) * 512, 512)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    node.flush()
    found = entries(bench)
    assert len(found) == 161
    for where, length, flags, data in found[:-1]:
        assert (length, flags) == (1, 0)
        assert data in (bytes([where // 20 + 1]) * 512, bytes(512))
