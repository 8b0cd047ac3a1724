"""compress: what is written through it lies compressed in the image and reads as it was written."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import GenericError
from engine.graph.backend import BlockBackend
from engine.graph.driver import Status
from engine.graph.node import Node
from engine.graph.permissions import Perm
from tests.engine.jobs.session import CLUSTER, Session, noise

MIB = 1 << 20


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    made = Session(tmp_path)
    yield made
    made.close()


@pytest.fixture
def user(session: Session) -> BlockBackend:
    """Somebody who writes through the filter ``k`` over the image ``a``, which may be resized as the rules ask."""
    session.create_qcow2("a", MIB)
    session.add_qcow2("a")
    session.do("blockdev-add", driver="compress", node_name="k", file="a")
    return attach(session, session.node("k"))


def attach(session: Session, node: Node) -> BlockBackend:
    perm = Perm.CONSISTENT_READ | Perm.WRITE
    made: BlockBackend = session.call(lambda: session.engine.graph.add_backend("user", "", node, perm, Perm.ALL))
    return made


def read(user: BlockBackend, offset: int, length: int) -> bytes:
    data = bytearray(length)
    user.read(offset, memoryview(data))
    return bytes(data)


def compressed(node: Node, offset: int) -> bool:
    return bool(node.block_status(offset, CLUSTER).flags & Status.COMPRESSED)


def test_whole_clusters(session: Session, user: BlockBackend) -> None:
    content = b"compress me " * (4 * CLUSTER // 12 + 1)
    user.write(CLUSTER, memoryview(content[: 4 * CLUSTER]))
    user.flush()
    assert read(user, CLUSTER, 4 * CLUSTER) == content[: 4 * CLUSTER]
    image = session.node("a")
    assert [compressed(image, number * CLUSTER) for number in range(6)] == [False, *[True] * 4, False]
    assert image.driver.allocated_size() is not None
    assert (session.folder / "a.qcow2").stat().st_size < 6 * CLUSTER


def test_parts_of_clusters_are_filled_up(session: Session, user: BlockBackend) -> None:
    user.write(3 * CLUSTER + 100, memoryview(b"x" * 1000))
    assert read(user, 3 * CLUSTER, CLUSTER) == bytes(100) + b"x" * 1000 + bytes(CLUSTER - 1100)
    assert compressed(session.node("a"), 3 * CLUSTER)


def test_a_cluster_is_written_once(session: Session, user: BlockBackend) -> None:
    """Compressed data can't be changed in place, as in QEMU; through the image itself they can."""
    user.write(0, memoryview(b"x" * 512))
    with pytest.raises(OSError, match="Input/output error"):
        user.write(512, memoryview(b"y" * 512))
    assert read(user, 0, 1024) == b"x" * 512 + bytes(512)
    attach(session, session.node("a")).write(512, memoryview(b"y" * 512))
    assert read(user, 0, 1024) == b"x" * 512 + b"y" * 512


def test_data_that_do_not_compress(session: Session, user: BlockBackend) -> None:
    content = noise("random", CLUSTER)
    user.write(0, memoryview(content))
    assert read(user, 0, CLUSTER) == content
    assert not compressed(session.node("a"), 0)


def test_zeros_and_discards_pass_unchanged(session: Session, user: BlockBackend) -> None:
    session.node("k").discard_unmap = session.node("a").discard_unmap = True
    user.write(0, memoryview(b"x" * 2 * CLUSTER))
    user.write_zeroes(0, CLUSTER)
    user.discard(CLUSTER, CLUSTER)
    assert read(user, 0, 2 * CLUSTER) == bytes(2 * CLUSTER)


def test_a_node_that_cannot_compress(session: Session) -> None:
    session.file("r.raw", MIB)
    session.do("blockdev-add", driver="file", node_name="r", filename=str(session.folder / "r.raw"))
    text = session.error("blockdev-add", driver="compress", node_name="k2", file="r")
    assert text == "Compression is not supported for underlying format: file"
    assert "k2" not in session.engine.graph.nodes


def test_a_writer_that_may_not_resize_needs_whole_clusters(session: Session) -> None:
    session.create_qcow2("odd", MIB + 512)
    session.add_qcow2("odd")
    session.do("blockdev-add", driver="compress", node_name="k3", file="odd")
    with pytest.raises(GenericError, match="Image size is not a multiple of request alignment"):
        attach(session, session.node("k3"))


def test_every_cluster_once_in_any_order(session: Session, user: BlockBackend) -> None:
    """As without compression, as long as nothing is written twice."""
    model = bytearray(MIB)
    rng = random.Random(3)
    clusters = list(range(MIB // CLUSTER))
    rng.shuffle(clusters)
    for number in clusters[:12]:
        start = rng.randrange(CLUSTER)
        length = rng.randrange(1, CLUSTER - start + 1)
        content = bytes([number + 1]) * length if number % 3 else rng.randbytes(length)
        at = number * CLUSTER + start
        user.write(at, memoryview(content))
        model[at : at + length] = content
    assert read(user, 0, MIB) == model
    user.flush()
    assert read(user, 0, MIB) == model
