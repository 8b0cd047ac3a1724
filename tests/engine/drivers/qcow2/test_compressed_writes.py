"""Compressed writes: what comes back, how tightly it is packed, what is refused, and that QEMU agrees."""

from __future__ import annotations

import errno
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from engine.graph.driver import WriteFlag
from tests.engine.drivers.qcow2.support import FileChild, Opened, make, opened, qemu_check, qemu_read
from tests.graphs import Bench

COMPRESSED = int(WriteFlag.COMPRESSED)


def text(random_: random.Random, length: int) -> bytes:
    """Bytes that compress to about a third."""
    return bytes(random_.choices(b"abcd", k=length))


SHAPES: list[tuple[str, dict[str, Any], int]] = [
    ("zlib", {"cluster_size": 65536}, 4 << 20),
    ("zlib-512-rc1", {"cluster_size": 512, "refcount_bits": 1}, 100 << 10),
    ("zlib-4k-rc2", {"cluster_size": 4096, "refcount_bits": 2}, 1 << 20),
    ("zlib-2m", {"cluster_size": 2 << 20}, 12 << 20),
    ("zlib-v2", {"cluster_size": 4096, "version": "v2"}, 1 << 20),
    ("zlib-lazy", {"cluster_size": 4096, "lazy_refcounts": True}, 1 << 20),
    ("zlib-extended", {"cluster_size": 16384, "extended_l2": True}, 1 << 20),
    ("zstd", {"cluster_size": 65536, "compression_type": "zstd"}, 4 << 20),
    ("zstd-4k", {"cluster_size": 4096, "compression_type": "zstd"}, 1 << 20),
    ("odd-end", {"cluster_size": 65536}, (1 << 20) + 512),
]


@pytest.mark.interop
@pytest.mark.parametrize(("options", "size"), [s[1:] for s in SHAPES], ids=[s[0] for s in SHAPES])
def test_what_is_written_compressed_reads_back_here_and_in_qemu(
    options: dict[str, Any], size: int, tmp_path: Path, qemu_img: str
) -> None:
    path = tmp_path / "image.qcow2"
    make(path, size, **options)
    cluster = options["cluster_size"]
    pick = random.Random(size)
    model = bytearray(size)
    with opened(path) as image:
        free = list(range(0, size, cluster))
        pick.shuffle(free)
        while len(free) > 2:
            offset = free.pop()
            length = min(cluster, size - offset)
            kind = pick.randrange(4)
            data = pick.randbytes(length) if kind == 0 else text(pick, length) if kind < 3 else bytes(length)
            image.write(offset, data, COMPRESSED)
            model[offset : offset + length] = data
            if pick.random() < 0.1:
                image.flush()
            if pick.random() < 0.2 and length == cluster:
                at = offset + pick.randrange(cluster // 512) * 512
                image.write(at, b"x" * 512)
                model[at : at + 512] = b"x" * 512
            if pick.random() < 0.1:
                image.discard(offset, length)
                model[offset : offset + length] = bytes(length)
        assert image.get(0, size) == model
    qemu_check(path)
    assert qemu_read(path) == model


def test_pieces_share_host_clusters(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    make(path, 8 << 20, cluster_size=65536)
    with opened(path) as image:
        image.write(0, bytes(65536), COMPRESSED)
        before = image.image.high_water
        for offset in range(65536, 8 << 20, 65536):
            image.write(offset, bytes([offset >> 16]) * 65536, COMPRESSED)
        # 128 clusters of one byte value each come to less than 100 bytes apiece.
        assert image.image.high_water == before
        assert all(image.get(offset, 1) == bytes([offset >> 16]) for offset in range(0, 8 << 20, 65536))


def test_a_freed_piece_keeps_its_neighbours_and_its_cluster_takes_no_more(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    make(path, 1 << 20, cluster_size=65536)
    pick = random.Random(1)
    parts = [text(pick, 65536) for _ in range(6)]
    child = FileChild(path)
    image = Opened(child)
    image.write(0, parts[0], COMPRESSED)
    shared = image.image.packing.position >> 16
    image.discard(0, 65536)
    image.write(65536, parts[1], COMPRESSED)
    # The first cluster is on its way to being freed and punched: the new piece is elsewhere.
    assert image.image.packing.position >> 16 != shared
    image.flush()
    assert (shared << 16, 65536) in child.discards
    assert image.image.refcounts.get(shared) == 0
    assert image.get(65536, 65536) == parts[1]
    image.close()
    child.close()


def test_writes_that_are_not_whole_free_clusters_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    make(path, 200 << 10, cluster_size=65536)

    def refused(offset: int, length: int, code: int) -> None:
        with pytest.raises(OSError) as caught:
            image.write(offset, b"1" * length, COMPRESSED)
        assert caught.value.errno == code

    with opened(path) as image:
        refused(512, 65536, errno.EINVAL)
        refused(0, 512, errno.EINVAL)
        refused(0, 65536 + 512, errno.EINVAL)
        image.write(196608, b"end!" * 2048, COMPRESSED)
        assert image.get(196608, 8192) == b"end!" * 2048
        image.write(0, b"1" * 65536, COMPRESSED)
        refused(0, 65536, errno.EIO)
        image.write(65536, b"2" * 512)
        refused(65536, 65536, errno.EIO)
        image.write_zeroes(131072, 65536)
        image.write(131072, b"3" * 65536, COMPRESSED)
        assert image.get(131072, 65536) == b"3" * 65536


def test_a_node_refuses_what_its_driver_can_t_compress(tmp_path: Path) -> None:
    with (tmp_path / "plain").open("wb") as file:
        file.truncate(1 << 20)
    bench = Bench(tmp_path)
    node = bench.add(driver="file", node_name="f", filename=str(tmp_path / "plain"))
    with pytest.raises(OSError) as caught:
        node.write(0, memoryview(bytes(65536)), COMPRESSED)
    assert caught.value.errno == errno.ENOTSUP
    bench.graph.close()


class BrokenChild(FileChild):
    """Refuses writes while ``broken``."""

    broken = False

    def write(self, offset: int, data: memoryview, flags: int = 0) -> None:
        if self.broken:
            raise OSError(errno.EIO, "broken")
        super().write(offset, data, flags)


def test_nothing_is_packed_into_a_cluster_that_a_failed_write_gave_back(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    make(path, 1 << 20, cluster_size=65536)
    child = BrokenChild(path)
    image = Opened(child)
    image.write(0, b"plain" * 100)
    child.broken = True
    with pytest.raises(OSError, match="broken"):
        image.write(65536, b"x" * 65536, COMPRESSED)
    child.broken = False
    # The cluster given back is the next one that is free.
    image.write(131072, b"y" * 65536)
    image.write(65536, b"z" * 65536, COMPRESSED)
    assert image.get(65536, 131072) == b"z" * 65536 + b"y" * 65536
    image.close()
    child.close()


def test_an_external_data_file_takes_no_compressed_data(tmp_path: Path) -> None:
    path, data = tmp_path / "image.qcow2", tmp_path / "data.raw"
    make(path, 1 << 20, data_file=data, cluster_size=65536)
    below = FileChild(data)
    with opened(path, data_file=below) as image, pytest.raises(OSError) as caught:
        image.write(0, b"1" * 65536, COMPRESSED)
    assert caught.value.errno == errno.ENOTSUP
    below.close()


def test_an_empty_compressed_write_fills_the_file_up_to_a_sector(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    make(path, 1 << 20, cluster_size=65536)
    with opened(path) as image:
        image.write(0, b"x" * 65536, COMPRESSED)
        assert path.stat().st_size % 512
        image.write(0, b"", COMPRESSED)
        assert path.stat().st_size % 512 == 0


@pytest.mark.interop
def test_threads_write_compressed_and_plain_at_the_same_time(tmp_path: Path, qemu_img: str) -> None:
    path = tmp_path / "image.qcow2"
    size = 4 << 20
    make(path, size, cluster_size=4096)
    model = bytearray(size)
    failures: list[BaseException] = []

    def work(image: Opened, number: int) -> None:
        pick = random.Random(number)
        try:
            for offset in range(number * 4096, size, 4 * 4096):
                data = text(pick, 4096)
                image.write(offset, data, COMPRESSED)
                model[offset : offset + 4096] = data
                action = pick.random()
                if action < 0.2:
                    image.write(offset, b"over" * 128)
                    model[offset : offset + 512] = b"over" * 128
                elif action < 0.4:
                    image.discard(offset, 4096)
                    model[offset : offset + 4096] = bytes(4096)
                elif action < 0.45:
                    image.flush()
                assert image.get(offset, 4096) == model[offset : offset + 4096]
        except BaseException as exc:
            failures.append(exc)

    with opened(path) as image:
        threads = [threading.Thread(target=work, args=(image, number)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
    qemu_check(path)
    assert qemu_read(path) == model


@pytest.mark.interop
def test_qemu_finds_every_cluster_compressed(tmp_path: Path, qemu_img: str) -> None:
    path = tmp_path / "image.qcow2"
    make(path, 1 << 20, cluster_size=65536, compression_type="zstd")
    with opened(path) as image:
        image.write(0, b"compress me " * 87381 + b"zzzz", COMPRESSED)
    assert qemu_check(path)["compressed-clusters"] == 16
