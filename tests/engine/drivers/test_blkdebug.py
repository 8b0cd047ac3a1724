"""blkdebug: rules and states, limits, permissions, breakpoints, and the places qcow2 tells of."""

import errno
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.drivers.filter.blkdebug import BlkdebugDriver
from engine.drivers.filter.blkdebug_rules import BreakRule, ErrorRule, Rules, StateRule
from engine.drivers.filter.configfile import parse_groups
from engine.errors import GenericError
from engine.graph.drain import drained
from engine.graph.driver import WriteFlag
from engine.graph.node import Node
from engine.graph.permissions import Perm
from tests.engine.drivers.qcow2.support import make
from tests.engine.jobs.session import Session
from tests.graphs import Bench

TIMEOUT = 20.0
MIB = 1 << 20


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    made = Session(tmp_path)
    yield made
    made.close()


def debug(bench: Bench, content: bytes = bytes(MIB), **options: Any) -> Node:
    image = {"driver": "file", "filename": bench.file("a.raw", content)}
    return bench.add(driver="blkdebug", node_name="d", image=image, **options)


def error_of(request: Callable[[], object]) -> int:
    """The errno a request fails with, 0 for success."""
    try:
        request()
    except OSError as exc:
        return exc.errno or -1
    return 0


def read(node: Node, offset: int, length: int) -> bytes:
    data = bytearray(length)
    node.read(offset, memoryview(data))
    return bytes(data)


def write(node: Node, offset: int, data: bytes) -> None:
    node.write(offset, memoryview(data))


# -- rules -----------------------------------------------------------------------------------------------------------


def test_errors_by_kind_and_place(bench: Bench) -> None:
    node = debug(
        bench,
        inject_error=[
            {"event": "none", "iotype": "read", "sector": 8, "errno": errno.ENOSPC},
            {"event": "none", "iotype": "flush", "once": True},
        ],
    )
    assert error_of(lambda: read(node, 0, 8 * 512)) == 0
    assert error_of(lambda: read(node, 8 * 512 + 511, 1)) == 0, "the sector's first byte is what counts"
    assert error_of(lambda: read(node, 8 * 512, 1)) == errno.ENOSPC
    assert error_of(lambda: read(node, 0, MIB)) == errno.ENOSPC
    assert error_of(lambda: write(node, 0, bytes(MIB))) == 0
    assert [error_of(node.flush), error_of(node.flush)] == [errno.EIO, 0]


def test_block_status_fails_only_when_named(bench: Bench) -> None:
    assert error_of(lambda: debug(bench, inject_error=[{"event": "none"}]).block_status(0, 512)) == 0
    named = bench.add(
        driver="blkdebug", image="d", inject_error=[{"event": "none", "iotype": "block-status", "sector": 2}]
    )
    assert error_of(lambda: named.block_status(0, 1024)) == 0
    assert error_of(lambda: named.block_status(0, 1025)) == errno.EIO


def test_an_event_replaces_the_errors_in_force_only_if_it_has_some() -> None:
    rules = Rules()
    rules.add(ErrorRule("none"))
    rules.add(ErrorRule("read_aio", error=errno.ENOSPC))
    rules.add(ErrorRule("l2_load", state=5))
    rules.announce("none")
    rules.announce("l2_load")
    found = rules.failure("read", 0, 512)
    assert found is not None
    assert found.error == errno.EIO
    rules.announce("read_aio")
    found = rules.failure("read", 0, 512)
    assert found is not None
    assert found.error == errno.ENOSPC
    rules.add(ErrorRule("write_aio", types=frozenset({"flush"})))
    rules.announce("write_aio")
    assert rules.failure("read", 0, 512) is None


def test_the_state_changes_after_all_rules_of_the_event() -> None:
    rules = Rules()
    rules.add(ErrorRule("read_aio", state=2))
    rules.add(StateRule("read_aio", state=1, new_state=2))
    rules.add(StateRule("read_aio", state=2, new_state=3))
    seen = []
    for _ in range(3):
        rules.announce("read_aio")
        seen.append((rules.state, rules.failure("read", 0, 1) is not None))
    assert seen == [(2, False), (3, True), (3, True)]


def test_a_rule_that_acts_once_is_gone_for_good() -> None:
    rules = Rules()
    rules.add(ErrorRule("read_aio", once=True))
    for expected in (True, False):
        rules.announce("read_aio")
        assert (rules.failure("read", 0, 1) is not None) is expected


def test_config_file_and_options_are_both_in_force(bench: Bench) -> None:
    config = bench.file("rules", b'[inject-error]\nevent = "none"\niotype = "write"\nerrno = "28"\n')
    node = debug(bench, config=config, inject_error=[{"event": "none", "iotype": "read"}])
    assert error_of(lambda: write(node, 0, b"x")) == errno.ENOSPC
    assert error_of(lambda: read(node, 0, 1)) == errno.EIO
    assert node.filename.startswith("json:")
    assert '"inject-error.0.event": "none"' in node.filename


def test_groups_of_a_config_file() -> None:
    groups = parse_groups('# c\n[a]\nx = "1"\ny\n  z  =  "2 3" tail\n["]\n[b "id"]\n')
    assert [(group.name, group.id, group.values) for group in groups] == [
        ("a", "", {"x": "1", "y": "", "z": "2 3"}),
        ('"', "", {}),
        ("b", "id", {}),
    ]
    with pytest.raises(GenericError, match="parse error"):
        parse_groups("[a]\n \n")
    with pytest.raises(GenericError, match="no group defined"):
        parse_groups('x = "1"\n')


def test_by_file_name(bench: Bench) -> None:
    config = bench.file("rules", b'[inject-error]\nevent = "none"\niotype = "write"\n')
    image = bench.file("a.raw", b"z" * 4096)
    node = bench.named(f"blkdebug:{config}:{image}", driver="raw")
    assert node.filename == f"blkdebug:{config}:{image}"
    assert read(node, 0, 1) == b"z"
    assert error_of(lambda: write(node, 0, b"x")) == errno.EIO
    with pytest.raises(GenericError, match="blkdebug requires both config file and image path"):
        bench.named("blkdebug:x", driver="raw")


# -- limits ----------------------------------------------------------------------------------------------------------


class Watch:
    """What requests a node gets."""

    def __init__(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[str, int, int]] = []
        for kind in ("read", "write", "write_zeroes", "discard"):
            monkeypatch.setattr(node, kind, self._wrap(kind, getattr(node, kind)))

    def _wrap(self, kind: str, inner: Callable[..., None]) -> Callable[..., None]:
        def request(offset: int, what: Any, *rest: Any) -> None:
            self.seen.append((kind, offset, what if isinstance(what, int) else len(what)))
            inner(offset, what, *rest)

        return request


def test_requests_are_cut_to_the_limits(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    node = debug(
        bench,
        align=512,
        max_transfer=1024,
        opt_write_zero=4096,
        max_write_zero=8192,
        opt_discard=4096,
        max_discard=8192,
        discard="unmap",
    )
    below = Watch(node.children["image"].child, monkeypatch)
    write(node, 0, bytes(range(256)) * 10)
    assert below.seen == [("write", 0, 1024), ("write", 1024, 1024), ("write", 2048, 512)]
    below.seen.clear()
    write(node, 700, b"x" * 100)
    assert below.seen == [("read", 512, 512), ("write", 512, 512)]
    below.seen.clear()
    node.write_zeroes(512, 20480)
    assert below.seen == [
        *[("write", 512, 1024), ("write", 1536, 1024), ("write", 2560, 1024), ("write", 3584, 512)],
        *[("write_zeroes", 4096, 8192), ("write_zeroes", 12288, 8192), ("write", 20480, 512)],
    ]
    assert error_of(lambda: node.write_zeroes(512, 4096, int(WriteFlag.NO_FALLBACK))) == errno.ENOTSUP
    below.seen.clear()
    node.discard(100, 30000)
    assert below.seen == [("discard", 4096, 8192), ("discard", 12288, 8192), ("discard", 20480, 8192)]


def test_each_piece_meets_the_rules(bench: Bench) -> None:
    rule = {"event": "none", "iotype": "write", "sector": 4}
    node = debug(bench, max_transfer=1024, inject_error=[rule])
    assert error_of(lambda: write(node, 0, b"x" * 4096)) == errno.EIO
    assert read(node, 0, 4096) == b"x" * 2048 + bytes(2048)


# -- permissions -----------------------------------------------------------------------------------------------------


def test_permissions_are_taken_and_denied(bench: Bench) -> None:
    node = debug(bench, take_child_perms=["write", "resize"], unshare_child_perms=["write-unchanged"])
    edge = node.children["image"]
    assert edge.perm == Perm.WRITE | Perm.RESIZE
    assert edge.shared == Perm.ALL & ~Perm.WRITE_UNCHANGED
    plain = bench.add(driver="blkdebug", image="d", unshare_child_perms=["resize"])
    assert plain.children["image"].perm == Perm.NONE
    with pytest.raises(GenericError, match="'resize' are both required"):
        bench.add(driver="blkdebug", image="d", take_child_perms=["resize"])


# -- breakpoints -----------------------------------------------------------------------------------------------------


class Request(threading.Thread):
    """A request in a thread of its own."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self.start()

    def run(self) -> None:
        self._work()

    def end(self) -> None:
        self.join(TIMEOUT)
        assert not self.is_alive()


def rules_of(node: Node) -> Rules:
    assert isinstance(node.driver, BlkdebugDriver)
    return node.driver.rules


def test_a_request_is_held_up_until_it_is_resumed(bench: Bench) -> None:
    node = debug(bench)
    rules = rules_of(node)
    rules.add(BreakRule("pwritev", "A"))
    rules.add(BreakRule("pwritev_done", "B"))
    request = Request(lambda: write(node, 0, b"x"))
    rules.wait_break("A")
    assert read(node, 0, 1) == b"\0"
    assert not rules.resume("B")
    assert rules.resume("A")
    rules.wait_break("B")
    assert read(node, 0, 1) == b"x"
    assert rules.resume("B")
    request.end()
    assert rules.said().splitlines() == [
        f"blkdebug: {what} request '{tag}'" for tag in "AB" for what in ("Suspended", "Resuming")
    ]
    write(node, 0, b"y")


def test_two_tags_on_one_place_hold_a_request_until_both_are_resumed(bench: Bench) -> None:
    node = debug(bench)
    rules = rules_of(node)
    for tag in "AB":
        rules.add(BreakRule("pwritev", tag))
    request = Request(lambda: write(node, 0, b"x"))
    for tag in "AB":
        rules.wait_break(tag)
    rules.resume("A")
    assert request.is_alive()
    rules.resume("B")
    request.end()


def test_a_drain_lets_requests_go(session: Session) -> None:
    """The control plane stands still until they end, and nobody else could resume them."""
    image = {"driver": "file", "filename": str(session.file("a.raw", MIB))}
    session.do(
        "blockdev-add",
        driver="raw",
        node_name="r",
        file={"driver": "blkdebug", "node-name": "d", "image": image | {"node-name": "f"}},
    )
    rules = rules_of(session.node("d"))

    def drain(name: str) -> None:
        with drained([session.node(name)]):
            # One that gets there only now is not held up at all.
            rules.announce("cor_write")

    with session.writer("r") as guest:
        for name in ("r", "d", "f"):
            rules.add(BreakRule("pwritev", "A"))
            rules.add(BreakRule("cor_write", "B"))
            request = Request(lambda: guest.write(0, memoryview(b"x" * 512)))
            rules.wait_break("A")
            session.call(lambda name=name: drain(name))  # type: ignore[misc]
            request.end()

    def drain_by_hand() -> None:
        # As a job does that keeps its source drained for a while.
        session.node("r").drained_begin()
        session.node("r").drained_wait()
        session.node("r").drained_end()

    with session.writer("r") as guest:
        rules.add(BreakRule("pwritev", "A"))
        request = Request(lambda: guest.write(0, memoryview(b"x" * 512)))
        rules.wait_break("A")
        session.call(drain_by_hand)
        request.end()
    session.file("other.raw", MIB)
    session.do("blockdev-add", driver="file", node_name="o", filename=str(session.folder / "other.raw"))
    rules.add(BreakRule("pwritev", "A"))
    with session.writer("r") as guest:
        request = Request(lambda: guest.write(0, memoryview(b"x" * 512)))
        rules.wait_break("A")
        session.call(lambda: drain("o"))
        assert rules.resume("A"), "a drain elsewhere leaves it alone"
        request.end()


def test_the_control_plane_is_never_held_up(session: Session) -> None:
    image = {"driver": "file", "filename": str(session.file("a.raw", MIB))}
    session.do(
        "blockdev-add",
        driver="raw",
        node_name="r",
        file={"driver": "blkdebug", "node-name": "d", "image": image},
    )
    rules_of(session.node("d")).add(BreakRule("flush_to_os", "A"))
    with session.writer("r") as guest:
        guest.write(0, memoryview(b"x"))
    session.do("blockdev-del", node_name="r")
    assert (session.folder / "a.raw").read_bytes()[:1] == b"x"


# -- the places of qcow2 ---------------------------------------------------------------------------------------------


class Places:
    """A qcow2 image over blkdebug, and the places its requests pass."""

    def __init__(self, bench: Bench, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        path = bench.folder / "a.qcow2"
        make(path, 64 * MIB, **options)
        debug = {"driver": "blkdebug", "image": {"driver": "file", "filename": str(path)}}
        self.node = bench.add(driver="qcow2", node_name="q", file=debug, discard="unmap")
        self._driver = self.node.children["file"].child.driver
        self._seen: list[str] = []
        monkeypatch.setattr(self._driver, "debug_event", self._seen.append)

    def of(self, work: Callable[[], object]) -> list[str]:
        """The places that *work* passes, in order, each once."""
        self._seen.clear()
        work()
        return list(dict.fromkeys(self._seen))


def test_places_of_requests(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    places = Places(bench, monkeypatch)
    node = places.node
    allocating = places.of(lambda: write(node, 100, b"x"))
    assert allocating[0] == "cluster_alloc"
    assert allocating[-1] == "write_aio"
    assert places.of(node.flush) == ["flush_to_os", "flush_to_disk", "refblock_update_part", "l2_update", "l1_update"]
    assert places.of(lambda: write(node, 100, b"y")) == ["write_aio"]
    assert places.of(lambda: read(node, 0, 512)) == ["read_aio"]
    assert places.of(lambda: read(node, MIB, 512)) == []
    packed = places.of(lambda: node.write(MIB, memoryview(bytes(65536)), int(WriteFlag.COMPRESSED)))
    assert packed[-2:] == ["write_compressed", "l2_update_compressed"]
    assert "cluster_alloc_bytes" in packed
    assert places.of(lambda: read(node, MIB, 512)) == ["read_compressed"]
    node.discard(0, 65536)
    assert "cluster_free" in places.of(node.flush)


def test_places_of_a_resize(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    places = Places(bench, monkeypatch, cluster_size=4096)
    grown = places.of(lambda: places.node.truncate(4096 * MIB))
    names = ["l1_grow_alloc_table", "cluster_alloc", "l1_grow_write_table", "l1_grow_activate_table"]
    assert [name for name in grown if name in names] == names
    shrunk = places.of(lambda: places.node.truncate(MIB))
    assert [name for name in shrunk if name.startswith("l1_shrink")] == [
        "l1_shrink_write_table",
        "l1_shrink_free_l2_clusters",
    ]


def test_copy_on_write_of_a_backing_file(bench: Bench) -> None:
    bench.raw("base", b"b" * MIB)
    make(bench.folder / "top.qcow2", MIB, cluster_size=2 * MIB)
    file = {"driver": "blkdebug", "image": {"driver": "file", "filename": str(bench.folder / "top.qcow2")}}
    rule = {"event": "cow_write", "iotype": "write", "once": True}
    node = bench.add(driver="qcow2", file=file | {"inject-error": [rule]}, backing="base")
    assert error_of(lambda: write(node, 1000, b"x")) == errno.EIO
    assert read(node, 1000, 1) == b"b", "nothing is linked when the copy failed"
    write(node, 1000, b"x")
    assert read(node, 999, 3) == b"bxb"
