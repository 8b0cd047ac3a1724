"""copy-on-read: reads bring data into the layer, down to the bottom and no further; nothing a reader sees changes."""

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.graph.backend import BlockBackend
from engine.graph.driver import Status
from engine.graph.node import Node
from engine.graph.permissions import Perm
from tests.engine.jobs.session import CLUSTER, Guest, Session, content, noise

MIB = 1 << 20


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    made = Session(tmp_path)
    yield made
    made.close()


@pytest.fixture
def layers(session: Session) -> list[Node]:
    """base: 2 MiB of data and zeros written as data; mid: 64 KiB; an empty top."""
    session.create_qcow2("base", 4 * MIB)
    session.fill("base", (0, noise("base", 2 * MIB)), (2 * MIB, bytes(CLUSTER)))
    session.create_qcow2("mid", 4 * MIB, "base")
    session.fill("mid", (MIB, noise("mid", CLUSTER)))
    session.create_qcow2("top", 4 * MIB, "mid")
    below = None
    nodes = []
    for name in ("base", "mid", "top"):
        nodes.append(session.add_qcow2(name, below, read_only=name != "top"))
        below = name
    return nodes


def add(session: Session, **options: Any) -> Node:
    session.do("blockdev-add", driver="copy-on-read", node_name="cor", file="top", **options)
    return session.node("cor")


def reader(session: Session, node: Node) -> BlockBackend:
    graph = session.engine.graph
    made: BlockBackend = session.call(lambda: graph.add_backend("device", "r", node, Perm.CONSISTENT_READ, Perm.ALL))
    return made


def allocated(node: Node, offset: int) -> bool:
    return bool(node.block_status(offset, 512).flags & Status.ALLOCATED)


def read(user: BlockBackend, offset: int, length: int) -> bytes:
    data = bytearray(length)
    user.read(offset, memoryview(data))
    return bytes(data)


def test_a_read_populates_whole_clusters(session: Session, layers: list[Node]) -> None:
    top = layers[2]
    user = reader(session, add(session))
    assert read(user, CLUSTER + 1000, 10) == noise("base", 2 * MIB)[CLUSTER + 1000 : CLUSTER + 1010]
    assert [allocated(top, at * CLUSTER) for at in range(3)] == [False, True, False]
    assert content(top)[: 2 * MIB] != bytes(2 * MIB)
    assert read(user, 2 * MIB, 512) == bytes(512)
    assert top.block_status(2 * MIB, CLUSTER).flags & Status.ZERO


def test_everything_once_read_is_there(session: Session, layers: list[Node]) -> None:
    top = layers[2]
    before = content(top)
    user = reader(session, add(session))
    assert read(user, 0, 4 * MIB) == before
    assert allocated(top, 0)
    assert allocated(top, MIB)
    assert content(top) == before


def test_down_to_the_bottom(session: Session, layers: list[Node]) -> None:
    _, _, top = layers
    before = content(top)
    user = reader(session, add(session, bottom="mid"))
    assert read(user, 0, 4 * MIB) == before
    assert allocated(top, MIB)
    assert not allocated(top, 0)
    assert content(top) == before


def test_the_chain_to_the_bottom_is_frozen(session: Session, layers: list[Node]) -> None:
    add(session, bottom="mid")
    top = layers[2]
    assert top.backing is not None
    assert top.backing.frozen
    session.do("blockdev-del", node_name="cor")
    assert not top.backing.frozen
    assert top.cumulative_permissions() == (Perm.NONE, Perm.ALL)


@pytest.mark.parametrize(
    ("bottom", "text"),
    [
        ("x", "Bottom node 'x' not found"),
        ("apart", "Bottom node 'apart' is not in the backing chain of 'top'"),
    ],
)
def test_bad_bottoms(session: Session, layers: list[Node], bottom: str, text: str) -> None:
    session.do("blockdev-add", driver="null-co", node_name="apart")
    assert session.error("blockdev-add", driver="copy-on-read", node_name="cor", file="top", bottom=bottom) == text
    assert layers[2].backing is not None
    assert not layers[2].backing.frozen
    assert "cor" not in session.engine.graph.nodes


def test_not_over_a_read_only_node(session: Session, layers: list[Node]) -> None:
    assert (
        session.error("blockdev-add", driver="copy-on-read", node_name="cor", file="mid") == "Block node is read-only"
    )


def test_over_raw_it_only_passes_on(session: Session) -> None:
    data = noise(1, MIB)
    path = session.file("r.raw", data)
    session.do(
        "blockdev-add",
        driver="copy-on-read",
        node_name="cor",
        file={"driver": "raw", "file": {"driver": "file", "filename": str(path)}},
    )
    with session.writer("cor") as user:
        assert read(user, 5, 1000) == data[5:1005]
        user.write(0, memoryview(b"x" * 512))
        assert read(user, 0, 512) == b"x" * 512


def test_reads_and_writes_at_the_same_time(session: Session, layers: list[Node]) -> None:
    """A copy must never put old data over a write that came between."""
    add(session)
    with session.writer("cor") as user:
        guest = Guest(user, 3)
        stop = threading.Event()
        rng = random.Random(1)

        def look() -> None:
            while not stop.is_set():
                read(user, 512 * rng.randrange(4 * MIB // 512 - 300), 512 * rng.randrange(1, 300))

        readers = [threading.Thread(target=look) for _ in range(2)]
        for thread in readers:
            thread.start()
        for _ in range(400):
            guest.once()
        stop.set()
        for thread in readers:
            thread.join()
        assert content(user) == guest.model
    assert content(layers[2]) == guest.model


def test_a_copy_waits_for_a_write(session: Session, layers: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    """The filter has read the old data when the guest writes there."""
    from engine.graph import populate

    add(session)
    real = populate.is_zero
    threads: list[threading.Thread] = []
    with session.writer("cor") as user:

        def late(data: memoryview) -> bool:
            if not threads:
                threads.append(threading.Thread(target=lambda: user.write(0, memoryview(b"!" * CLUSTER))))
                threads[0].start()
                threads[0].join(0.1)  # without the lock it gets through here, and is overwritten
                assert threads[0].is_alive()
            return real(data)

        monkeypatch.setattr(populate, "is_zero", late)
        read(user, 0, 512)
        threads[0].join(10)
        assert read(user, 0, CLUSTER) == b"!" * CLUSTER


def test_a_new_layer_between_is_populated_from_then_on(session: Session, layers: list[Node]) -> None:
    cor = add(session)
    user = reader(session, cor)
    before = content(layers[2])
    session.create_qcow2("snap", 4 * MIB, "top")
    snap = session.add_qcow2("snap", None)
    session.do("blockdev-snapshot", node="top", overlay="snap")
    assert read(user, 0, 512) == before[:512]
    session.do("query-jobs")  # what the read has asked of the control plane is done
    assert read(user, CLUSTER, 512) == before[CLUSTER : CLUSTER + 512]
    assert allocated(snap, CLUSTER)
    assert not allocated(layers[2], CLUSTER)
