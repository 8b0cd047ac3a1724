"""Backups: the target is the source as it was at one moment, whatever guests do meanwhile; errors, bitmaps, the end."""

import contextlib
import errno
import functools
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.bitmaps.dirty import DirtyBitmap, add_bitmap, find_bitmap
from engine.errors import QMPError
from engine.graph.backend import BlockBackend
from engine.graph.drain import drained
from engine.graph.driver import Status, WriteFlag
from engine.graph.node import Node
from engine.graph.permissions import Perm
from engine.jobs.backup import BackupJob, Performance, make_backup
from engine.jobs.types import BitmapSyncMode, MirrorSyncMode
from tests.engine.jobs.session import CLUSTER, TIMEOUT, Session, content, noise

MIB = 1 << 20
SIZE = 16 * MIB
PERM = Perm.CONSISTENT_READ | Perm.WRITE
SHARED = Perm.ALL & ~Perm.RESIZE


class Scribblers:
    """Threads that write, write zeros and discard at random, at any offset, until they are stopped."""

    def __init__(self, backend: BlockBackend, seed: int, threads: int = 3) -> None:
        self.operations = 0
        self._backend = backend
        self._stop = threading.Event()
        self._failed: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, args=(seed * 10 + n,)) for n in range(threads)]

    def _run(self, seed: int) -> None:
        rng = random.Random(seed)
        backend = self._backend
        length = backend.length
        try:
            while not self._stop.is_set():
                size = rng.choice((1, 512, 4096, 70_000, rng.randrange(1, 400_000)))
                offset = rng.randrange(length - size)
                kind = rng.randrange(8)
                if kind == 0:
                    backend.write_zeroes(offset, size, int(WriteFlag.MAY_UNMAP))
                elif kind == 1:
                    start = offset - offset % CLUSTER
                    backend.discard(start, min(CLUSTER * rng.randrange(1, 4), length - start))
                else:
                    backend.write(offset, memoryview(bytes([rng.randrange(256)]) * size))
                self.operations += 1
        except BaseException as exc:
            self._failed.append(exc)

    def __enter__(self) -> "Scribblers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(TIMEOUT)
            assert not thread.is_alive()
        if self._failed:
            raise self._failed[0]


def raw(session: Session, name: str, data: bytes | int, **options: Any) -> Node:
    """A raw disk NAME over a file."""
    path = session.file(f"{name}.raw", data)
    file = {"driver": "file", "filename": str(path), "discard": "unmap"}
    session.do("blockdev-add", driver="raw", node_name=name, file=file, discard="unmap", **options)
    return session.node(name)


def layers(session: Session) -> Node:
    """base <- top, each with data of its own, and zeros."""
    session.create_qcow2("base", SIZE)
    session.fill("base", (0, noise("base", 6 * MIB)), (9 * MIB, noise("b2", 100_352)))
    session.create_qcow2("top", SIZE, "base")
    session.fill("top", (2 * MIB, noise("top", 3 * MIB + 512)), (12 * MIB, noise("t2", MIB)), (MIB, bytes(CLUSTER)))
    session.add_qcow2("base", read_only=True)
    top = session.add_qcow2("top", "base", discard="unmap")
    session.events.clear()
    return top


def empty(session: Session, name: str = "target", size: int = SIZE, **options: Any) -> Node:
    session.create_qcow2(name, size)
    return session.add_qcow2(name, **options)


def begin(session: Session, source: Node, target: Node, **options: Any) -> bytes:
    """Start the backup ``b`` and return what the source holds at that moment."""
    kinds: dict[str, Any] = {"sync": MirrorSyncMode.FULL} | options

    def run() -> bytes:
        with drained([source]):
            # Straight from the node: nobody gets in while it is drained.
            reference = content(source)
            job = make_backup(session.engine.jobs, "b", source, target, **kinds)
            job.start()
        return reference

    made = session.call(run)
    assert isinstance(made, bytes)
    return made


@contextmanager
def device(session: Session, name: str) -> Iterator[BlockBackend]:
    """A guest on the node *name*, its device called the same."""
    graph = session.engine.graph

    def attach() -> BlockBackend:
        return graph.add_backend("device", name, graph.nodes[name], PERM, SHARED)

    backend = session.call(attach)
    assert isinstance(backend, BlockBackend)
    try:
        yield backend
    finally:
        session.call(lambda: graph.remove_backend(backend))


def allocated(node: Node, offset: int) -> bool:
    return bool(node.block_status(offset, 512).flags & Status.ALLOCATED)


def eventually(session: Session, condition: Callable[[dict[str, Any]], bool]) -> None:
    """Ask for the job until *condition* holds; progress is no event."""
    end = time.monotonic() + TIMEOUT
    while not condition(session.job("b") or {}):
        assert time.monotonic() < end, session.job("b")


def finished(session: Session) -> dict[str, Any]:
    session.wait_status("b", "null")
    return session.wait_event("BLOCK_JOB_COMPLETED")


# -- the point in time ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [True, False], ids=["kernel", "buffer"])
@pytest.mark.parametrize("kinds", ["qcow2 qcow2", "qcow2 raw", "raw qcow2", "raw raw"])
def test_point_in_time(session: Session, kinds: str, kernel: bool) -> None:
    """Guests write, write zeros and discard all the time; the target is what was there when the job was made."""
    source_kind, target_kind = kinds.split()
    source = layers(session) if source_kind == "qcow2" else raw(session, "top", noise("raw", SIZE))
    target = empty(session) if target_kind == "qcow2" else raw(session, "target", SIZE)
    with session.writer("top") as guest, Scribblers(guest, seed=len(kinds)) as busy:
        reference = begin(session, source, target, performance=Performance(kernel=kernel))
        before = busy.operations
        finished(session)
        after = busy.operations
    assert after > before, "the guests stood still"
    assert content(target) == reference
    assert content(source) != reference


@pytest.mark.parametrize("seed", range(3))
def test_point_in_time_slowly(session: Session, seed: int) -> None:
    """With a speed limit most of the copying is done for guests; pauses and drains come on top."""
    source = layers(session)
    target = empty(session)
    rng = random.Random(seed)
    with session.writer("top") as guest, Scribblers(guest, seed):
        reference = begin(session, source, target, speed=MIB)
        for _ in range(6):
            verb = rng.choice(["pause", "drain", "speed"])
            if verb == "drain":
                session.call(lambda: drain(source, target))
                continue
            with contextlib.suppress(QMPError):  # over already, by what the guests have had copied
                if verb == "pause":
                    session.do("job-pause", id="b")
                    threading.Event().wait(0.01)
                    session.do("job-resume", id="b")
                else:
                    session.do("block-job-set-speed", device="b", speed=rng.choice([MIB, 2 * MIB]))
        with contextlib.suppress(QMPError):
            session.do("block-job-set-speed", device="b", speed=0)
        finished(session)
    assert content(target) == reference


def drain(*nodes: Node) -> None:
    with drained(nodes):
        pass


def test_sync_none_keeps_the_old_data(session: Session) -> None:
    """A target over the source, read while guests write: at every moment it shows the point in time (fleecing)."""
    source = layers(session)
    session.create_qcow2("target", SIZE)
    target = session.add_qcow2("target", "top")
    with session.writer("top") as guest, Scribblers(guest, seed=7):
        reference = begin(session, source, target, sync=MirrorSyncMode.NONE)
        rng = random.Random(1)
        for _ in range(300):
            size = rng.randrange(1, 300_000)
            offset = rng.randrange(SIZE - size)
            seen = bytearray(size)
            target.read(offset, memoryview(seen))
            assert seen == reference[offset : offset + size]
        assert content(target) == reference
    session.do("job-cancel", id="b")
    session.wait_status("b", "null")
    assert session.wait_event("BLOCK_JOB_CANCELLED")["len"] == SIZE


def test_a_write_waits_for_who_reads_through_the_target(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fleecing: a reader of the target who is in the middle of the source gets the old data, however long it takes."""
    source = raw(session, "top", noise("x", SIZE))
    session.create_qcow2("target", SIZE)
    target = session.add_qcow2("target", "top")
    inside, go_on, wrote = threading.Event(), threading.Event(), threading.Event()
    original = source.driver.read
    seen = bytearray(512)

    def slow(offset: int, buffer: memoryview) -> None:
        if threading.current_thread().name == "reader":
            inside.set()
            assert go_on.wait(TIMEOUT)
        original(offset, buffer)

    monkeypatch.setattr(source.driver, "read", slow)
    with session.writer("top") as guest:
        begin(session, source, target, sync=MirrorSyncMode.NONE)
        reader = threading.Thread(target=lambda: target.read(0, memoryview(seen)), name="reader")
        reader.start()
        assert inside.wait(TIMEOUT)

        def write() -> None:
            guest.write(0, memoryview(b"new"))
            wrote.set()

        writer = threading.Thread(target=write)
        writer.start()
        assert not wrote.wait(0.1)
        go_on.set()
        reader.join(TIMEOUT)
        writer.join(TIMEOUT)
    assert seen == noise("x", SIZE)[:512]
    assert content(source)[:3] == b"new"


def test_odd_length(session: Session) -> None:
    """The last cluster is a part of one."""
    size = 3 * MIB + 512 * 7
    source = raw(session, "top", noise("odd", size))
    target = empty(session, size=size)
    with session.writer("top") as guest, Scribblers(guest, seed=3):
        reference = begin(session, source, target)
        done = finished(session)
    assert content(target) == reference
    assert done["len"] == done["offset"] == 3 * MIB + CLUSTER


# -- what is copied --------------------------------------------------------------------------------------------------


def test_top_copies_the_layer_alone(session: Session) -> None:
    source = layers(session)
    session.create_qcow2("target", SIZE, "base")
    target = session.add_qcow2("target", "base")
    with session.writer("top"):
        session.do("blockdev-backup", job_id="b", device="top", target="target", sync="top")
        done = finished(session)
    assert content(target) == content(source)
    assert not allocated(target, 0)
    assert allocated(target, 2 * MIB)
    # 3 MiB and 512 bytes, 1 MiB, one cluster of zeros
    assert done["len"] == done["offset"] == 4 * MIB + 2 * CLUSTER


def test_holes_stay_holes(session: Session) -> None:
    source = raw(session, "top", 64 * MIB)
    with session.writer("top") as guest:
        guest.write(5 * MIB, memoryview(noise("data", CLUSTER)))
    target = raw(session, "target", 64 * MIB)
    session.do("blockdev-backup", job_id="b", device="top", target="target", sync="full")
    finished(session)
    assert content(target) == content(source)
    taken = os.stat(session.folder / "target.raw").st_blocks * 512
    assert taken <= 2 * CLUSTER


def test_zeros_hide_what_was_there(session: Session) -> None:
    """A target that is not empty: zeros and holes of the source overwrite it."""
    source = layers(session)
    target = raw(session, "target", noise("old", SIZE))
    session.do("blockdev-backup", job_id="b", device="top", target="target", sync="full")
    finished(session)
    assert content(target) == content(source)


def test_zeros_hide_a_later_backing_image(session: Session) -> None:
    """The target is open without a backing image and gets one afterwards: it must still read as the source did."""
    source = raw(session, "top", SIZE)
    session.create_qcow2("base", SIZE)
    session.fill("base", (0, noise("base", MIB)))
    session.create_qcow2("target", SIZE, "base")
    session.add_qcow2("target")
    session.do("blockdev-backup", job_id="b", device="top", target="target", sync="full")
    finished(session)
    session.do("blockdev-del", node_name="target")
    with session.offline("target") as opened:
        assert content(opened) == content(source)


def test_zeros_of_the_layer_are_copied(session: Session) -> None:
    """sync=top to an image without a backing image, which is put over the base later."""
    source = layers(session)
    empty(session)
    session.do("blockdev-backup", job_id="b", device="top", target="target", sync="top")
    finished(session)
    session.do("blockdev-del", node_name="target")
    assert content(session.add_qcow2("target", "base")) == content(source)


def test_compressed(session: Session) -> None:
    source = raw(session, "top", b"compress me " * (SIZE // 12) + bytes(SIZE % 12))
    target = empty(session)
    with session.writer("top") as guest, Scribblers(guest, seed=11):
        reference = begin(session, source, target, compress=True)
        finished(session)
    assert content(target) == reference
    flags = [target.block_status(at, 512).flags for at in range(0, SIZE, CLUSTER)]
    assert sum(bool(flag & Status.COMPRESSED) for flag in flags) > SIZE // CLUSTER // 2


def test_largest_chunk(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """x-perf.max-chunk bounds each request."""
    raw(session, "top", noise("x", 2 * MIB))
    target = raw(session, "target", 2 * MIB)
    sizes: list[int] = []
    write = target.driver.write

    def noted(offset: int, data: memoryview, flags: int = 0) -> None:
        sizes.append(len(data))
        write(offset, data, flags)

    monkeypatch.setattr(target.driver, "write", noted)
    session.do(
        "blockdev-backup",
        job_id="b",
        device="top",
        target="target",
        sync="full",
        x_perf={"max-chunk": 2 * CLUSTER + 512, "use-copy-range": False},
    )
    finished(session)
    assert max(sizes) == 2 * CLUSTER


# -- bitmaps ---------------------------------------------------------------------------------------------------------


def bitmap(session: Session, name: str = "m") -> DirtyBitmap:
    made = session.call(lambda: add_bitmap(session.node("top"), CLUSTER, name))
    assert isinstance(made, DirtyBitmap)
    return made


def areas(session: Session, name: str = "m") -> list[tuple[int, int]]:
    found = find_bitmap(session.node("top"), name)
    assert found is not None
    return list(found.areas())


def test_incremental_chain(session: Session) -> None:
    """A full backup and incremental ones on it, guests writing all the time: each is the state at its moment."""
    source = layers(session)
    below = empty(session, "inc0")
    bitmap(session)
    with session.writer("top") as guest, Scribblers(guest, 5, threads=1):
        mode = BitmapSyncMode.ON_SUCCESS
        reference = begin(session, source, below, bitmap=find_bitmap(source, "m"), bitmap_mode=mode)
        finished(session)
        assert content(below) == reference
        for number in range(1, 4):
            session.create_qcow2(f"inc{number}", SIZE, f"inc{number - 1}")
            target = session.add_qcow2(f"inc{number}", f"inc{number - 1}")
            reference = begin(
                session,
                source,
                target,
                sync=MirrorSyncMode.BITMAP,
                bitmap=find_bitmap(source, "m"),
                bitmap_mode=mode,
            )
            finished(session)
            assert content(target) == reference


@pytest.mark.parametrize("outcome", ["success", "cancel"])
@pytest.mark.parametrize("mode", ["on-success", "never", "always"])
def test_bitmap_afterwards(session: Session, mode: str, outcome: str) -> None:
    """What the bitmap says of clusters dirty before the job, written during it, and not copied by it."""
    layers(session)
    empty(session)
    bitmap(session)
    with session.writer("top") as guest:
        for cluster in (1, 2, 40):
            guest.write(cluster * CLUSTER, memoryview(b"before"))
        session.do(
            "blockdev-backup",
            job_id="b",
            device="top",
            target="target",
            sync="bitmap",
            bitmap="m",
            bitmap_mode=mode,
            auto_finalize=False,
            speed=1 if outcome == "cancel" else 0,
        )
        if outcome == "cancel":
            # The first one is copied at any speed; a guest's write has another one copied.
            eventually(session, lambda job: job["current-progress"] >= CLUSTER)
        else:
            session.wait_status("b", "pending")
        guest.write(40 * CLUSTER, memoryview(b"during"))
        guest.write(70 * CLUSTER, memoryview(b"during"))
        if outcome == "cancel":
            session.do("job-cancel", id="b")
        else:
            session.do("job-finalize", id="b")
        session.wait_status("b", "null")
        during = [(40 * CLUSTER, CLUSTER), (70 * CLUSTER, CLUSTER)]
        everything = [(CLUSTER, 2 * CLUSTER), *during]
        if outcome == "success":
            expected = everything if mode == "never" else during
        elif mode == "always":
            expected = [(2 * CLUSTER, CLUSTER), *during]
        else:
            expected = everything
        assert areas(session) == expected
        found = find_bitmap(session.node("top"), "m")
        assert found is not None
        assert (found.busy, found.recording) == (False, True)
        guest.write(100 * CLUSTER, memoryview(b"after"))
        assert (100 * CLUSTER, CLUSTER) in areas(session)


def test_bitmap_is_free_after_a_start_that_failed(session: Session) -> None:
    layers(session)
    empty(session, size=SIZE // 2)
    made = bitmap(session)
    made.set(0, CLUSTER)
    text = session.error("blockdev-backup", job_id="b", device="top", target="target", sync="incremental", bitmap="m")
    assert text == "Source and target image have different sizes"
    assert not made.busy
    assert areas(session) == [(0, CLUSTER)]
    assert session.story() == []


# -- errors ----------------------------------------------------------------------------------------------------------


@contextmanager
def failing(
    monkeypatch: pytest.MonkeyPatch, node: Node, kind: str, wanted: Callable[[int, int], bool]
) -> Iterator[list[int]]:
    """Requests of *kind* to *node* for which wanted(offset, length) fail with EIO; collects the offsets."""
    hits: list[int] = []
    original = getattr(node.driver, kind)

    def broken(offset: int, data: Any, *rest: Any) -> Any:
        if wanted(offset, len(data)):
            hits.append(offset)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(offset, data, *rest)

    monkeypatch.setattr(node.driver, kind, broken)
    try:
        yield hits
    finally:
        monkeypatch.undo()


def test_ignored_errors_cost_no_more_than_their_cluster(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bad cluster: everything else is copied; the job tries on until the cluster can be read."""
    bad = 10 * CLUSTER
    source = raw(session, "top", noise("x", SIZE))
    target = raw(session, "target", SIZE)
    options = {"on_source_error": "ignore", "x_perf": {"use-copy-range": False}}
    with failing(monkeypatch, source, "read", lambda offset, length: offset <= bad < offset + length):
        session.do("blockdev-backup", job_id="b", device="top", target="target", sync="full", **options)
        eventually(session, lambda job: job["current-progress"] == SIZE - CLUSTER)
        errors = [event["event"] for event in session.events].count("BLOCK_JOB_ERROR")
    finished(session)
    assert content(target) == content(source)
    # The first request fails, and the cluster; after a round it is tried again.
    assert 2 <= errors <= 4


def test_stop_and_go_on(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    source = raw(session, "top", noise("x", SIZE))
    target = raw(session, "target", SIZE)
    options = {"on_target_error": "stop", "x_perf": {"use-copy-range": False}}
    with session.writer("top") as guest:
        with failing(monkeypatch, target, "write", lambda offset, length: offset >= 8 * MIB):
            session.do("blockdev-backup", job_id="b", device="top", target="target", sync="full", **options)
            session.wait_status("b", "paused", times=2)
            (info,) = session.do("query-block-jobs")
            assert info["io-status"] == "failed"
            # Guests go on: what they overwrite can't be copied, so their writes fail there and nowhere else.
            guest.write(0, memoryview(b"new"))
            with pytest.raises(OSError, match="Input/output"):
                guest.write(15 * MIB, memoryview(b"new"))
        session.do("job-resume", id="b")
        finished(session)
    assert content(target) == noise("x", SIZE)
    assert content(source)[:3] == b"new"


def test_a_failed_job_leaves_no_filter(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    source = raw(session, "top", noise("x", SIZE))
    target = raw(session, "target", SIZE)
    nodes = set(session.engine.graph.nodes)
    with session.writer("top") as guest, failing(monkeypatch, target, "write", lambda offset, length: True):
        session.do(
            "blockdev-backup",
            job_id="b",
            device="top",
            target="target",
            sync="full",
            x_perf={"use-copy-range": False},
        )
        done = finished(session)
        assert done["error"] == "Input/output error"
        assert guest.node is source
    assert set(session.engine.graph.nodes) == nodes
    assert source.trackers == ()


# -- drive-backup ----------------------------------------------------------------------------------------------------


def test_drive_backup_target_goes_with_the_job(session: Session) -> None:
    source = layers(session)
    nodes = set(session.engine.graph.nodes)
    with session.writer("top") as guest:
        session.do("drive-backup", device="guest", target=str(session.folder / "new.qcow2"), sync="full")
        session.wait_status("guest", "null")
        assert guest.node is source
    assert set(session.engine.graph.nodes) == nodes
    with session.offline("new") as opened:
        assert content(opened) == content(source)


def test_transaction_takes_several_disks_at_one_moment(session: Session) -> None:
    """Two disks, written to in step: the backups of both are of the same step."""
    size = 4 * MIB
    with ExitStack() as stack:
        for name in ("one", "two"):
            raw(session, name, size)
            raw(session, f"{name}-copy", size)
        guests = [stack.enter_context(device(session, name)) for name in ("one", "two")]
        stop = threading.Event()

        def write() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                for guest in guests:
                    guest.write(number * 512 % size, memoryview(number.to_bytes(512, "big")))

        thread = threading.Thread(target=write)
        thread.start()
        try:
            session.do(
                "transaction",
                actions=[
                    {
                        "type": "blockdev-backup",
                        "data": {"device": name, "target": f"{name}-copy", "sync": "full"},
                    }
                    for name in ("one", "two")
                ],
            )
            for name in ("one", "two"):
                session.wait_status(name, "null")
        finally:
            stop.set()
            thread.join(TIMEOUT)
    one, two = (content(session.node(f"{name}-copy")) for name in ("one", "two"))
    differing = [at for at in range(0, size, 512) if one[at : at + 512] != two[at : at + 512]]
    # The first disk may be one write ahead.
    assert len(differing) <= 1
    assert any(one)


def test_engine_closes_in_the_middle(tmp_path: Path) -> None:
    session = Session(tmp_path)
    source, target = raw(session, "top", noise("x", SIZE)), raw(session, "target", SIZE)
    begin(session, source, target, speed=1)
    session.close()
    assert session.engine.graph.nodes == {}


def test_many_workers_are_one_job(session: Session) -> None:
    """max-workers=1 copies one after the other; more do it side by side; both come to the same."""
    source = layers(session)
    for workers in (1, 64):
        target = empty(session, f"w{workers}")
        reference = begin(session, source, target, performance=Performance(max_workers=workers))
        finished(session)
        session.events.clear()
        assert content(target) == reference


@pytest.mark.parametrize("seed", range(3))
def test_anything_goes(session: Session, seed: int) -> None:
    """Backups one over the other, with a stream below them, guests above, verbs and drains: each has its own moment."""
    rng = random.Random(seed)
    source = layers(session)
    graph = session.engine.graph
    references: dict[str, bytes] = {}

    def start(name: str) -> None:
        target = graph.nodes[name]
        options: dict[str, Any] = {"speed": rng.choice([0, 2 * MIB, 16 * MIB])}
        if rng.random() < 0.3:
            options["compress"] = target.driver.name == "qcow2"
        performance = Performance(max_workers=rng.choice([1, 64]), kernel=rng.random() < 0.5)
        with drained([source]):
            references[name] = content(source)
            make_backup(
                session.engine.jobs,
                name,
                source,
                target,
                sync=MirrorSyncMode.FULL,
                performance=performance,
                **options,
            ).start()

    with session.writer("top") as guest, Scribblers(guest, seed, threads=2):
        for number in range(5):
            name = f"t{number}"
            if rng.random() < 0.5:
                empty(session, name)
            else:
                raw(session, name, SIZE)
            session.call(functools.partial(start, name))
            for _ in range(rng.randrange(4)):
                job = rng.choice([*references])
                verb = rng.choice(["job-pause", "job-resume", "drain", "job-cancel" if number == 3 else "job-resume"])
                if verb == "drain":
                    session.call(functools.partial(drain, source, graph.nodes[job]))
                    continue
                try:
                    session.do(verb, id=job)
                except QMPError:
                    continue  # over already, or not paused
                if verb == "job-cancel":
                    del references[job]
        # From now on no more backups of the source: the stream blocks that, and not the other way round.
        session.do("block-stream", job_id="stream", device="top", speed=rng.choice([0, 16 * MIB]))
        for job in references:
            with contextlib.suppress(QMPError):
                session.do("job-resume", id=job)
        for job in list(references):
            with contextlib.suppress(QMPError):
                session.do("block-job-set-speed", device=job, speed=0)
        session.wait(lambda: not session.engine.jobs.jobs)
        assert guest.node is source
    for name, reference in references.items():
        assert content(session.node(name)) == reference, name


def test_is_a_backup_job(session: Session) -> None:
    source, target = raw(session, "top", SIZE), raw(session, "target", SIZE)
    begin(session, source, target, sync=MirrorSyncMode.NONE)
    assert isinstance(session.engine.jobs.find("b"), BackupJob)
    assert session.error("blockdev-del", node_name="target").endswith("in use by block job: backup")
    session.do("job-cancel", id="b")
    session.wait_status("b", "null")
