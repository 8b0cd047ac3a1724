"""blkverify: requests go to both images, and what differs is an error."""

import errno
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.errors import GenericError
from engine.graph.filenames import dirname_of
from engine.graph.node import Node
from tests.engine.drivers.qcow2.support import make
from tests.graphs import Bench

MIB = 1 << 20


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def verify(bench: Bench, raw: bytes = bytes(MIB)) -> Node:
    """A raw copy beside a new qcow2 image."""
    make(bench.folder / "test.qcow2", MIB)
    return bench.add(
        driver="blkverify",
        node_name="v",
        raw={"driver": "file", "filename": bench.file("raw", raw)},
        test={
            "driver": "qcow2",
            "node-name": "t",
            "file": {"driver": "file", "filename": str(bench.folder / "test.qcow2")},
        },
        discard="unmap",
    )


def read(node: Node, offset: int, length: int) -> bytes:
    data = bytearray(length)
    node.read(offset, memoryview(data))
    return bytes(data)


def fails(request: Callable[[], object]) -> None:
    with pytest.raises(OSError) as caught:
        request()
    assert caught.value.errno == errno.EIO


def test_both_get_what_is_written(bench: Bench) -> None:
    node = verify(bench)
    node.write(1000, memoryview(b"x" * 5000))
    node.write_zeroes(2000, 100)
    node.discard(0, 65536)
    node.flush()
    expected = bytes(1000) + b"x" * 1000 + bytes(100) + b"x" * 3900 + bytes(1000)
    assert read(node, 0, 7000) == expected
    assert (bench.folder / "raw").read_bytes()[:7000] == expected
    assert read(bench.graph.nodes["t"], 0, 7000) == expected
    assert node.error is None


def test_what_differs_is_named(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    node = verify(bench, bytes(5000) + b"x" + bytes(MIB - 5001))
    with caplog.at_level(logging.ERROR):
        assert read(node, 0, 5000) == bytes(5000)
        fails(lambda: read(node, 4096, 4096))
    assert caplog.messages == ["blkverify: read offset=4096 bytes=4096 contents mismatch at offset 5000"]
    assert node.error == caplog.messages[0]


def test_failing_alone_differs_and_failing_alike_does_not(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    rules = [{"event": "none", "iotype": "read", "sector": 8, "errno": errno.ENOSPC}]
    for name in "ab":
        image = {"driver": "file", "filename": bench.file(name, bytes(MIB))}
        bench.add(driver="blkdebug", node_name=name, image=image, inject_error=rules)
    plain = {"driver": "file", "filename": bench.file("c", bytes(MIB))}
    alike = bench.add(driver="blkverify", raw="a", test="b")
    with pytest.raises(OSError) as caught:
        read(alike, 4096, 512)
    assert caught.value.errno == errno.ENOSPC
    assert not caplog.messages
    alone = bench.add(driver="blkverify", raw=plain, test="a")
    fails(lambda: read(alone, 4096, 512))
    assert caplog.messages == ["blkverify: read offset=4096 bytes=512 return value mismatch -28 != 0"]


def test_the_name_and_the_folder(bench: Bench) -> None:
    node = verify(bench)
    assert node.filename == f"blkverify:{bench.folder}/raw:{bench.folder}/test.qcow2"
    with pytest.raises(GenericError, match="Cannot generate a base directory for blkverify nodes"):
        dirname_of(node)
    again = bench.file("raw2", bytes(MIB)), bench.file("raw3", bytes(MIB))
    named = bench.named(f"blkverify:{again[0]}:{again[1]}", driver="raw")
    assert named.children["file"].child.driver.name == "blkverify"
    named.write(0, memoryview(b"both"))
    assert [Path(path).read_bytes()[:4] for path in again] == [b"both"] * 2
    with pytest.raises(GenericError, match="blkverify requires raw copy and original image path"):
        bench.named("blkverify:x", driver="raw")


def test_the_length_is_that_of_the_image_under_test(bench: Bench) -> None:
    node = bench.add(driver="blkverify", raw={"driver": "null-co"}, test={"driver": "null-co", "size": 4096})
    assert node.length == 4096
