"""x-blockdev-change under way: no request is lost or goes to a child that is not there any more."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.graph.backend import BlockBackend
from engine.graph.permissions import Perm
from tests.engine.jobs.session import Session

MIB = 1 << 20


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    made = Session(tmp_path)
    for name in ("a", "b", "c"):
        made.file(f"{name}.raw", MIB)
        made.do("blockdev-add", driver="file", node_name=name, filename=str(tmp_path / f"{name}.raw"))
    yield made
    made.close()


def user_of(session: Session, name: str, kind: str = "user", backend: str = "") -> BlockBackend:
    node, perm = session.node(name), Perm.CONSISTENT_READ | Perm.WRITE
    made: BlockBackend = session.call(lambda: session.engine.graph.add_backend(kind, backend, node, perm, Perm.ALL))
    return made


def test_children_come_and_go_while_a_guest_writes(session: Session) -> None:
    session.do("blockdev-add", driver="quorum", node_name="q", children=["a", "b"], vote_threshold=2)
    user = user_of(session, "q")
    stop = threading.Event()
    errors: list[Exception] = []
    written = 0

    def guest() -> None:
        nonlocal written
        try:
            while not stop.is_set():
                written = written % 255 + 1
                user.write(0, memoryview(bytes([written]) * 4096))
                data = bytearray(4096)
                user.read(0, memoryview(data))
                assert data == bytes([written]) * 4096
        except Exception as exc:
            errors.append(exc)

    thread = threading.Thread(target=guest)
    thread.start()
    for _ in range(25):
        # The new child has old data until the next write, which the others outvote.
        session.do("x-blockdev-change", parent="q", node="c")
        session.do("x-blockdev-change", parent="q", child="children.2")
    session.do("x-blockdev-change", parent="q", node="c")
    stop.set()
    thread.join(10)
    assert not errors
    user.write(0, memoryview(b"!" * MIB))
    assert {(session.folder / f"{name}.raw").read_bytes() for name in "abc"} == {b"!" * MIB}


def test_a_child_taken_away_is_free_again(session: Session) -> None:
    session.do("blockdev-add", driver="quorum", node_name="q", children=["a", "b", "c"], vote_threshold=2)
    user = user_of(session, "q")
    assert "Permission conflict" in session.error("block_resize", node_name="c", size=2 * MIB)
    session.do("x-blockdev-change", parent="q", child="children.2")
    session.do("block_resize", node_name="c", size=2 * MIB)
    user.write(0, memoryview(b"!" * MIB))
    assert (session.folder / "c.raw").read_bytes() == bytes(2 * MIB)
    session.do("blockdev-del", node_name="c")


def test_what_is_below_a_child_taken_away_is_free_too(session: Session) -> None:
    session.do("blockdev-add", driver="raw", node_name="r", file="c")
    session.do("blockdev-add", driver="quorum", node_name="q", children=["a", "b", "r"], vote_threshold=2)
    user = user_of(session, "q")
    assert "Permission conflict" in session.error("block_resize", node_name="c", size=2 * MIB)
    session.do("x-blockdev-change", parent="q", child="children.2")
    session.do("block_resize", node_name="c", size=2 * MIB)
    user.write(0, memoryview(b"!"))


def test_a_change_waits_for_requests_under_way(session: Session) -> None:
    session.do("blockdev-add", driver="quorum", node_name="q", children=["a", "b"], vote_threshold=2)
    user, driver = user_of(session, "q"), session.node("b").driver
    write, under_way, go_on = driver.write, threading.Event(), threading.Event()

    def slow(offset: int, data: memoryview, flags: int = 0) -> None:
        under_way.set()
        assert go_on.wait(10)
        write(offset, data, flags)

    driver.write = slow  # type: ignore[method-assign]
    thread = threading.Thread(target=lambda: user.write(0, memoryview(b"!" * 512)))
    thread.start()
    assert under_way.wait(10)
    change = session.engine.submit("x-blockdev-change", {"parent": "q", "node": "c"})
    with pytest.raises(TimeoutError):
        change.result(0.1)
    go_on.set()
    change.result(10)
    thread.join(10)
    assert set(session.node("q").children) == {"children.0", "children.1", "children.2"}


def test_a_child_of_its_own_goes_with_its_link(session: Session) -> None:
    inline = {"driver": "raw", "file": "c", "node-name": "inline"}
    session.do("blockdev-add", driver="quorum", node_name="q", children=["a", "b", inline], vote_threshold=2)
    session.do("x-blockdev-change", parent="q", child="children.2")
    assert set(session.engine.graph.nodes) == {"a", "b", "c", "q"}


def test_a_refused_child_leaves_everything_as_it_was(session: Session) -> None:
    session.do("blockdev-add", driver="quorum", node_name="q", children=["a"], vote_threshold=1)
    user_of(session, "q")
    read_only = str(session.file("ro.raw", MIB))
    session.do("blockdev-add", driver="file", node_name="ro", filename=read_only, read_only=True)
    assert session.error("x-blockdev-change", parent="q", node="ro") == "Block node is read-only"
    assert set(session.node("q").children) == {"children.0"}
    assert not session.node("ro").parents
    session.do("x-blockdev-change", parent="q", node="b")
    assert set(session.node("q").children) == {"children.0", "children.1"}


def test_a_failure_names_the_device(session: Session) -> None:
    (session.folder / "a.raw").write_bytes(b"x" * MIB)
    session.do("blockdev-add", driver="quorum", node_name="q", children=["a", "b"], vote_threshold=2)
    user = user_of(session, "q", "device", "disk0")
    with pytest.raises(OSError, match="Input/output error"):
        user.read(0, memoryview(bytearray(512)))
    assert session.wait_event("QUORUM_FAILURE") == {"reference": "disk0", "sector-num": 0, "sectors-count": 1}
    # A device's name does for its node, too.
    session.do("x-blockdev-change", parent="disk0", node="c")
    assert set(session.node("q").children) == {"children.0", "children.1", "children.2"}
