"""quorum: what most children say is read; who fails or is outvoted is told of; no write makes children differ."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.drivers.filter.quorum import PARALLEL_SIZE, QuorumDriver, QuorumFailure, QuorumReportBad
from engine.drivers.filter.votes import Votes
from engine.errors import GenericError
from engine.graph.backend import BlockBackend
from engine.graph.driver import Status, WriteFlag
from engine.graph.node import Node
from engine.graph.permissions import Perm
from engine.qapi import to_wire
from tests.graphs import Bench

KIB = 1 << 10
SIZE = 1 << 20


class Children(Bench):
    """A quorum over raw nodes c0, c1, ...; what happens to one of them can be arranged."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.graph.on_event.append(lambda event: self.events.append((event.EVENT, to_wire(event))))

    def quorum(self, *contents: bytes, **options: Any) -> BlockBackend:
        """A user of a quorum of children with these contents."""
        for number, content in enumerate(contents):
            self.raw(f"c{number}", content)
        given = {"vote_threshold": len(contents) // 2 + 1} | options
        self.node = self.add(
            driver="quorum", node_name="q", children=[f"c{number}" for number in range(len(contents))], **given
        )
        return self.user(self.node)

    def user(self, node: Node) -> BlockBackend:
        perm = Perm.CONSISTENT_READ | Perm.WRITE
        return self.graph.add_backend("user", "", node, perm, Perm.ALL)

    def breaks(self, number: int, method: str, code: int = errno.EIO) -> None:
        """Let a request of a child fail from now on."""

        def fail(*_: Any, **__: Any) -> None:
            raise OSError(code, "as arranged")

        setattr(self.graph.nodes[f"c{number}"].driver, method, fail)

    def content(self, number: int) -> bytes:
        return (self.folder / f"c{number}.raw").read_bytes()

    def bad(self, number: int, offset: int, size: int, kind: str = "read", **more: Any) -> tuple[str, dict[str, Any]]:
        start = offset // 512
        data = {
            "type": kind,
            "node-name": f"c{number}",
            "sector-num": start,
            "sectors-count": -(-(offset + size) // 512) - start,
        }
        return QuorumReportBad.EVENT, data | more

    def failure(self, offset: int, size: int) -> tuple[str, dict[str, Any]]:
        start = offset // 512
        count = -(-(offset + size) // 512) - start
        return QuorumFailure.EVENT, {"reference": "q", "sector-num": start, "sectors-count": count}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Children]:
    made = Children(tmp_path)
    yield made
    made.graph.close()


def read(user: BlockBackend, offset: int, length: int) -> bytes:
    data = bytearray(length)
    user.read(offset, memoryview(data))
    return bytes(data)


# -- reading ---------------------------------------------------------------


@pytest.mark.parametrize("length", [512, PARALLEL_SIZE], ids=["one by one", "side by side"])
def test_the_majority_is_read_and_the_minority_told_of(bench: Children, length: int) -> None:
    user = bench.quorum(b"a" * SIZE, b"b" * SIZE, b"b" * SIZE)
    assert read(user, 1024, length) == b"b" * length
    assert bench.events == [bench.bad(0, 1024, length)]
    assert bench.content(0) == b"a" * SIZE


def test_children_that_agree_are_read_in_silence(bench: Children) -> None:
    user = bench.quorum(b"a" * SIZE, b"a" * SIZE)
    assert read(user, 0, SIZE) == b"a" * SIZE
    assert read(user, 3, 5) == b"a" * 5
    assert not bench.events


def test_no_majority(bench: Children) -> None:
    user = bench.quorum(b"a" * SIZE, b"b" * SIZE, b"c" * SIZE)
    with pytest.raises(OSError) as caught:
        read(user, 512, 1000)
    assert caught.value.errno == errno.EIO
    assert bench.events == [bench.failure(512, 1000)]


def test_of_equally_strong_versions_the_later_counts(bench: Children) -> None:
    user = bench.quorum(b"a" * SIZE, b"b" * SIZE, b"a" * SIZE, b"b" * SIZE, vote_threshold=2)
    assert read(user, 0, 512) == b"b" * 512
    assert bench.events == [bench.bad(2, 0, 512), bench.bad(0, 0, 512)]


@pytest.mark.parametrize("length", [512, PARALLEL_SIZE], ids=["one by one", "side by side"])
def test_rewriting(bench: Children, length: int) -> None:
    user = bench.quorum(b"a" * SIZE, b"b" * SIZE, b"b" * SIZE, rewrite_corrupted=True)
    assert read(user, 4096, length) == b"b" * length
    assert bench.content(0) == b"a" * 4096 + b"b" * length + b"a" * (SIZE - 4096 - length)
    bench.events.clear()
    read(user, 4096, length)
    assert not bench.events


def test_a_storm_of_reports_does_not_bury_the_control_plane(bench: Children) -> None:
    """While it is busy, the newest of each kind waits."""
    posted: list[Callable[[], None]] = []

    class Busy:
        def post(self, function: Callable[[], None]) -> None:
            posted.append(function)

    user = bench.quorum(b"a" * SIZE, b"b" * SIZE, b"b" * SIZE)
    bench.graph.control = Busy()
    for number in range(100):
        read(user, number * 512, 512)
    assert (len(posted), bench.events) == (1, [])
    posted.pop()()
    assert bench.events == [bench.bad(0, 99 * 512, 512)]
    read(user, 0, 512)
    posted.pop()()
    assert bench.events[1:] == [bench.bad(0, 0, 512)]


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_a_child_that_cannot_be_read_is_outvoted(bench: Children, broken: int) -> None:
    user = bench.quorum(b"a" * SIZE, b"a" * SIZE, b"a" * SIZE)
    bench.breaks(broken, "read", errno.ENOSPC)
    assert read(user, 512, 512) == b"a" * 512
    assert bench.events == [bench.bad(broken, 512, 512, error="No space left on device")]
    # The others agreed at once.
    assert {bench.graph.nodes[f"c{number}"].rd_operations for number in range(3)} == {1}


def test_a_broken_child_and_a_different_one(bench: Children) -> None:
    user = bench.quorum(b"a" * SIZE, b"a" * SIZE, b"b" * SIZE, b"b" * SIZE, b"b" * SIZE, vote_threshold=2)
    bench.breaks(0, "read")
    assert read(user, 0, 512) == b"b" * 512
    assert bench.events == [bench.bad(0, 0, 512, error="Input/output error"), bench.bad(1, 0, 512)]


def test_too_many_broken_children_fail_with_the_commonest_error(bench: Children) -> None:
    user = bench.quorum(*[b"a" * SIZE] * 4, vote_threshold=2)
    for number, code in ((0, errno.ENOSPC), (1, errno.EACCES), (2, errno.ENOSPC)):
        bench.breaks(number, "read", code)
    with pytest.raises(OSError) as caught:
        read(user, 0, 512)
    assert caught.value.errno == errno.ENOSPC
    assert [name for name, _ in bench.events] == ["QUORUM_REPORT_BAD"] * 3 + ["QUORUM_FAILURE"]


def test_of_equally_common_errors_the_later_counts(bench: Children) -> None:
    user = bench.quorum(b"a" * SIZE, b"a" * SIZE, vote_threshold=1)
    bench.breaks(0, "read", errno.ENOSPC)
    bench.breaks(1, "read", errno.EACCES)
    with pytest.raises(OSError) as caught:
        read(user, 0, 512)
    assert caught.value.errno == errno.EACCES


def test_blkverify_fails_where_the_two_differ(bench: Children, caplog: pytest.LogCaptureFixture) -> None:
    """QEMU ends the process there; an engine that others use must not."""
    user = bench.quorum(b"a" * SIZE, b"a" * 600 + b"b" + b"a" * (SIZE - 601), vote_threshold=2, blkverify=True)
    assert read(user, 0, 512) == b"a" * 512
    with pytest.raises(OSError, match="Input/output error"):
        read(user, 512, 512)
    assert bench.events == [bench.failure(512, 512)]
    assert "contents mismatch at offset 600" in caplog.text


def test_fifo_reads_the_first_that_can(bench: Children) -> None:
    user = bench.quorum(b"a" * SIZE, b"b" * SIZE, read_pattern="fifo")
    assert read(user, 0, 512) == b"a" * 512
    assert not bench.events
    bench.breaks(0, "read")
    assert read(user, 0, 512) == b"b" * 512
    bench.breaks(1, "read", errno.ENOSPC)
    with pytest.raises(OSError) as caught:
        read(user, 0, 512)
    assert caught.value.errno == errno.ENOSPC
    assert [data["node-name"] for _, data in bench.events] == ["c0", "c0", "c1"]


# -- writing ---------------------------------------------------------------


@pytest.mark.parametrize("length", [512, PARALLEL_SIZE], ids=["one by one", "side by side"])
def test_writes_reach_every_child(bench: Children, length: int) -> None:
    user = bench.quorum(*[bytes(SIZE)] * 3)
    user.write(1000, memoryview(b"x" * length))
    user.flush()
    assert {bench.content(number) for number in range(3)} == {bytes(1000) + b"x" * length + bytes(SIZE - 1000 - length)}
    assert not bench.events


def test_a_failed_minority_of_writes_is_only_told_of(bench: Children) -> None:
    user = bench.quorum(*[bytes(SIZE)] * 3)
    bench.breaks(1, "write")
    user.write(0, memoryview(b"x" * 512))
    assert bench.events == [bench.bad(1, 0, 512, "write", error="Input/output error")]
    assert bench.content(2)[:512] == b"x" * 512


def test_a_failed_majority_of_writes_fails(bench: Children) -> None:
    user = bench.quorum(*[bytes(SIZE)] * 3)
    bench.breaks(0, "write", errno.ENOSPC)
    bench.breaks(1, "write", errno.ENOSPC)
    with pytest.raises(OSError) as caught:
        user.write(0, memoryview(b"x" * 512))
    assert caught.value.errno == errno.ENOSPC
    error = "No space left on device"
    assert bench.events == [
        bench.bad(0, 0, 512, "write", error=error),
        bench.bad(1, 0, 512, "write", error=error),
        bench.failure(0, 512),
    ]


def test_zeros_reach_every_child(bench: Children) -> None:
    user = bench.quorum(*[b"x" * SIZE] * 2)
    user.write_zeroes(0, SIZE)
    assert bench.content(0) == bench.content(1) == bytes(SIZE)


def test_zeros_only_where_it_is_cheap_are_left_to_the_caller(bench: Children) -> None:
    """Were one child able to and another not, they would differ."""
    user = bench.quorum(*[b"x" * SIZE] * 2)
    with pytest.raises(OSError, match="Operation not supported"):
        user.write_zeroes(0, SIZE, WriteFlag.NO_FALLBACK)
    assert bench.content(0) == bench.content(1) == b"x" * SIZE


def test_a_failed_flush(bench: Children) -> None:
    user = bench.quorum(*[bytes(SIZE)] * 3)
    user.write(0, memoryview(b"x" * 512))
    bench.breaks(2, "flush")
    user.flush()
    assert bench.events == [bench.bad(2, 0, 0, "flush", error="Input/output error")]
    bench.events.clear()
    user.write(0, memoryview(b"x" * 512))
    bench.breaks(0, "flush", errno.ENOSPC)
    with pytest.raises(OSError) as caught:
        user.flush()
    # As many say EIO, but that is the later voice.
    assert caught.value.errno == errno.EIO
    assert [name for name, _ in bench.events] == ["QUORUM_REPORT_BAD"] * 2


def test_overlapping_writes_leave_the_children_equal(bench: Children) -> None:
    """Whatever the order of two writes is, it is the same everywhere."""
    user = bench.quorum(*[bytes(SIZE)] * 3)
    start = threading.Barrier(4)

    def work(byte: int) -> None:
        start.wait()
        for _ in range(40):
            user.write(0, memoryview(bytes([byte]) * PARALLEL_SIZE))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({bench.content(number) for number in range(3)}) == 1


def test_a_write_under_way_is_no_corruption(bench: Children) -> None:
    """A reader that finds one child written and the others not yet must neither fail nor put old data back."""
    user = bench.quorum(*[b"a" * SIZE] * 3, rewrite_corrupted=True)
    written = bench.graph.nodes["c0"].driver
    second = bench.graph.nodes["c1"].driver
    write, go, halfway = second.write, threading.Event(), threading.Event()

    def slow(offset: int, data: memoryview, flags: int = 0) -> None:
        halfway.set()
        assert go.wait(10)
        write(offset, data, flags)

    second.write = slow  # type: ignore[method-assign]
    reads: list[bytes] = []
    writer = threading.Thread(target=lambda: user.write(0, memoryview(b"b" * 512)))
    writer.start()
    assert halfway.wait(10)
    reader = threading.Thread(target=lambda: reads.append(read(user, 0, 512)))
    probe = bytearray(512)
    written.read(0, memoryview(probe))
    assert probe == b"b" * 512
    reader.start()
    reader.join(0.05)
    go.set()
    writer.join(10)
    reader.join(10)
    assert reads == [b"b" * 512]
    assert not bench.events
    assert {bench.content(number)[:512] for number in range(3)} == {b"b" * 512}


@pytest.mark.parametrize("slow", [False, True], ids=["large requests", "small requests to slow children"])
def test_requests_go_to_all_children_at_once(bench: Children, slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each child waits until all three are at work."""
    user = bench.quorum(*[bytes(SIZE)] * 3)
    if slow:
        monkeypatch.setattr("engine.drivers.filter.quorum.SLOW", -1)
    meeting = threading.Barrier(3)
    for number in range(3):
        driver = bench.graph.nodes[f"c{number}"].driver

        def meet(offset: int, data: memoryview, flags: int = 0) -> None:
            meeting.wait(10)

        driver.read = driver.write = meet  # type: ignore[method-assign, assignment]
    length = 512 if slow else PARALLEL_SIZE
    read(user, 0, length)
    user.write(0, memoryview(bytes(length)))


# -- status ---------------------------------------------------------------


def test_only_what_is_zero_in_all_children_is_zero(bench: Children) -> None:
    user = bench.quorum(bytes(SIZE), bytes(SIZE))
    for number, (start, length) in enumerate([(256 * KIB, 128 * KIB), (320 * KIB, 32 * KIB)]):
        path = bench.folder / f"c{number}.raw"
        with path.open("r+b") as file:
            file.truncate(0)
            file.truncate(SIZE)
            file.seek(start)
            file.write(b"x" * length)

    def status(offset: int) -> tuple[int, int]:
        extent = user.block_status(offset, SIZE - offset)
        return extent.length, extent.flags & (Status.ZERO | Status.DATA)

    # Zeros end where the first child has data, data where the last has no more.
    assert status(0) == (256 * KIB, Status.ZERO)
    assert status(256 * KIB) == (128 * KIB, Status.DATA)
    assert status(320 * KIB) == (64 * KIB, Status.DATA)
    assert status(384 * KIB) == (640 * KIB, Status.ZERO)


def test_a_child_that_cannot_tell_counts_as_data(bench: Children) -> None:
    user = bench.quorum(bytes(SIZE), bytes(SIZE))
    bench.breaks(1, "block_status")
    extent = user.block_status(0, SIZE)
    assert (extent.length, bool(extent.flags & Status.ZERO)) == (SIZE, False)
    assert bench.events == [bench.bad(1, 0, SIZE, error="Input/output error")]


# -- the graph ---------------------------------------------------------------


def test_children_share_neither_writing_nor_resizing(bench: Children) -> None:
    bench.quorum(bytes(SIZE), bytes(SIZE))
    with pytest.raises(GenericError, match="Permission conflict on node 'c0'"):
        bench.user(bench.graph.nodes["c0"])


def test_children_of_different_length(bench: Children) -> None:
    with pytest.raises(GenericError, match="Could not refresh total sector count: Input/output error"):
        bench.quorum(bytes(SIZE), bytes(2 * SIZE))
    assert "q" not in bench.graph.nodes
    bench.user(bench.graph.nodes["c0"])


def test_a_shorter_child_added_later_does_not_grow(bench: Children) -> None:
    """QEMU 7.2 ends by an assertion there."""
    from engine.graph.change import Transaction, refresh_permissions

    user = bench.quorum(bytes(SIZE), bytes(SIZE), vote_threshold=2)
    short = bench.raw("c2", bytes(512))
    with Transaction() as txn:
        bench.node.driver.add_child(txn, short)
        refresh_permissions(txn, [bench.node])
    user.write(4096, memoryview(b"x" * 512))
    assert bench.events == [bench.bad(2, 4096, 512, "write", error="Input/output error")]
    assert len(bench.content(2)) == 512


def test_many_threads(bench: Children) -> None:
    """The pool does not lock itself up, quorums of quorums included."""
    bench.quorum(*[bytes(SIZE)] * 2)
    bench.graph.remove_backend(bench.graph.backends[0])
    for number in range(2, 4):
        bench.raw(f"c{number}", bytes(SIZE))
    other = bench.add(driver="quorum", node_name="q2", children=["c2", "c3"], vote_threshold=1)
    top = bench.add(driver="quorum", node_name="top", children=["q", "q2"], vote_threshold=2)
    user = bench.user(top)

    def work(number: int) -> None:
        for _ in range(10):
            user.write(0, memoryview(bytes([number]) * PARALLEL_SIZE))
            read(user, 0, PARALLEL_SIZE)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert not bench.events
    assert isinstance(other.driver, QuorumDriver)
    assert len({bench.content(number) for number in range(4)}) == 1


# -- against a model ---------------------------------------------------------------


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9))
def test_votes(opinions: list[int]) -> None:
    votes: Votes[int] = Votes()
    for voter, opinion in enumerate(opinions):
        votes.add(opinion, voter)
    winner, voters = votes.winner()
    counts = {opinion: opinions.count(opinion) for opinion in opinions}
    strongest = [opinion for opinion in opinions if counts[opinion] == max(counts.values())]
    assert winner == max(strongest, key=opinions.index)
    assert voters == [voter for voter, opinion in enumerate(opinions) if opinion == winner]
    assert sorted(votes.losers(winner)) == [voter for voter, opinion in enumerate(opinions) if opinion != winner]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damage_up_to_the_threshold_is_never_seen(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Children damaged so that a majority is whole everywhere: reads are right, and rewriting mends what was read."""
    count = data.draw(st.integers(3, 5))
    threshold = count // 2 + 1
    sectors = 16
    bench = Children(tmp_path_factory.mktemp("model"))
    user = bench.quorum(*[bytes(sectors * 512)] * count, vote_threshold=threshold, rewrite_corrupted=True)
    model = bytearray(sectors * 512)
    try:
        for step in range(data.draw(st.integers(1, 8))):
            start = data.draw(st.integers(0, sectors * 512 - 1))
            length = data.draw(st.integers(1, sectors * 512 - start))
            match data.draw(st.sampled_from(["write", "zero", "damage", "read"])):
                case "write":
                    content = bytes([step + 1]) * length
                    user.write(start, memoryview(content))
                    model[start : start + length] = content
                case "zero":
                    user.write_zeroes(start, length)
                    model[start : start + length] = bytes(length)
                case "damage":
                    # Mend first, so that damages of different children don't meet.
                    assert read(user, 0, len(model)) == model
                    bench.events.clear()
                    victims = data.draw(st.sets(st.integers(0, count - 1), max_size=count - threshold))
                    for number in victims:
                        with (bench.folder / f"c{number}.raw").open("r+b") as file:
                            file.seek(start)
                            file.write(bytes([200 + number]) * length)
                    assert read(user, start, length) == model[start : start + length]
                    assert {info["node-name"] for _, info in bench.events} == {f"c{number}" for number in victims}
                case _:
                    assert read(user, start, length) == model[start : start + length]
        assert read(user, 0, len(model)) == model
        assert {bench.content(number) for number in range(count)} == {bytes(model)}
    finally:
        bench.graph.close()
