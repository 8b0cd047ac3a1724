"""The copy path: right bytes by every way, zeros stay holes, errors name the side, the kernel works where it can."""

import errno
import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from engine.copying import copier as copying
from engine.copying import host_copy
from engine.copying.copier import BackendTarget, Copier, CopyError, PopulateTarget
from engine.drivers.filter.internal import NoOptions, new_filter_node
from engine.drivers.protocol import hostfile
from engine.graph.backend import BlockBackend
from engine.graph.driver import Extent, FilterDriver, Opening, Status
from engine.graph.node import Node
from engine.graph.permissions import Perm
from engine.jobs.chain import insert_filter
from tests.engine.jobs.session import CLUSTER, Session, content, noise
from tests.graphs import Bench

MIB = 1 << 20


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    made = Bench(tmp_path)
    yield made
    made.graph.close()


def backend(bench: Bench, node: Node) -> BlockBackend:
    return bench.graph.add_backend("job", "", node, Perm.WRITE | Perm.CONSISTENT_READ, Perm.ALL)


def sparse(size: int = 4 * MIB) -> bytearray:
    data = bytearray(size)
    data[MIB : MIB + 200_000] = noise(1, 200_000)
    data[3 * MIB - 512 : 3 * MIB + 70_000] = noise(2, 70_512)
    return data


def test_file_to_file_in_the_kernel_and_sparse(bench: Bench) -> None:
    path = bench.folder / "from.raw"
    with path.open("wb") as out:
        out.truncate(64 * MIB)
        out.seek(5 * MIB)
        out.write(noise(1, MIB))
    source = bench.add(driver="raw", node_name="s", file={"driver": "file", "filename": str(path)})
    target = bench.raw("t", b"")
    target.truncate(64 * MIB)
    copier = Copier(source, BackendTarget(backend(bench, target)))
    copier.copy(0, 64 * MIB)
    assert (bench.folder / "t.raw").read_bytes() == path.read_bytes()
    assert copier.host_bytes == MIB
    assert os.stat(bench.folder / "t.raw").st_blocks * 512 <= 2 * MIB


@pytest.fixture
def in_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has copies made by copy_file_range, as on a filesystem that shares blocks."""
    monkeypatch.setattr(host_copy, "copies_by_pages", lambda fd: False)


@pytest.mark.usefixtures("in_kernel")
@pytest.mark.parametrize("why", [errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO])
def test_falls_back_to_reads_and_writes(bench: Bench, monkeypatch: pytest.MonkeyPatch, why: int) -> None:
    calls = 0

    def refuse(*args: object, **kwargs: object) -> int:
        nonlocal calls
        calls += 1
        raise OSError(why, os.strerror(why))

    monkeypatch.setattr(os, "copy_file_range", refuse)
    data = sparse()
    source, target = bench.raw("s", bytes(data)), bench.raw("t", noise(9, len(data)))
    copier = Copier(source, BackendTarget(backend(bench, target)))
    copier.copy(0, 2 * MIB)
    copier.copy(2 * MIB, 2 * MIB)
    assert content(target) == data
    # What can't be done is not tried again, what failed once may work the next time.
    assert (calls, copier.host_bytes > 0) == ((2, False) if why == errno.EIO else (1, True))


def test_a_source_file_that_ends_early_reads_as_zeros(bench: Bench) -> None:
    source = bench.raw("s", noise(1, 100_000))
    target = bench.raw("t", noise(2, 131072))
    assert source.length == 100_352
    Copier(source, BackendTarget(backend(bench, target))).copy(0, source.length)
    assert content(target)[:100_352] == noise(1, 100_000) + bytes(352)


@pytest.mark.usefixtures("in_kernel")
def test_short_results_of_the_kernel_are_continued(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.copy_file_range

    def little(src: int, dst: int, count: int, offset_src: int, offset_dst: int) -> int:
        return real(src, dst, min(count, 10_001), offset_src, offset_dst)

    monkeypatch.setattr(os, "copy_file_range", little)
    data = noise(1, MIB)
    source, target = bench.raw("s", data), bench.raw("t", bytes(MIB))
    Copier(source, BackendTarget(backend(bench, target))).copy(0, MIB)
    assert content(target) == data


class Watch(FilterDriver):
    """A filter that sees requests."""

    name = "watch"
    Options = NoOptions

    def open(self, opening: Opening) -> None:
        raise AssertionError


@pytest.mark.parametrize("side", ["source", "target"])
def test_through_a_filter_by_requests(bench: Bench, monkeypatch: pytest.MonkeyPatch, side: str) -> None:
    """Throttling and the like have to see each request."""
    source, target = bench.raw("s", noise(1, MIB)), bench.raw("t", bytes(MIB))
    data = content(source)
    seen: list[int] = []
    watched = new_filter_node(bench.graph, Watch, "w", read_only=False)
    insert_filter(watched, source if side == "source" else target, name="file")
    for name in ("read", "write"):
        real = getattr(watched.driver, name)
        monkeypatch.setattr(watched.driver, name, lambda *a, real=real: (seen.append(len(a[1])), real(*a)))
    if side == "source":
        source = watched
    else:
        target = watched
    copier = Copier(source, BackendTarget(backend(bench, target)))
    copier.copy(0, MIB)
    assert content(target)[: len(data)] == data
    assert copier.host_bytes == 0
    assert seen[0] == MIB


@pytest.mark.parametrize("kernel", [True, False])
def test_zeros_in_data_are_found(bench: Bench, monkeypatch: pytest.MonkeyPatch, kernel: bool) -> None:
    if not kernel:
        monkeypatch.setattr(copying, "transparent", lambda node: False)
    data = bytearray(noise(1, 4 * MIB))
    data[MIB : 2 * MIB] = bytes(MIB)
    data[3 * MIB : 3 * MIB + 1000] = bytes(1000)
    path = bench.file("s.raw", bytes(data))
    source = bench.add(driver="raw", node_name="s", file={"driver": "file", "filename": path})
    target = bench.raw("t", noise(2, 4 * MIB))
    zeroed: list[tuple[int, int]] = []
    used = BackendTarget(backend(bench, target))
    real = used.write_zeroes

    def write_zeroes(offset: int, length: int) -> None:
        zeroed.append((offset, length))
        real(offset, length)

    monkeypatch.setattr(used, "write_zeroes", write_zeroes)
    Copier(source, used, look_for_zeros=True).copy(0, 4 * MIB)
    assert content(target) == data
    assert sum(length for _, length in zeroed) == MIB
    assert min(offset for offset, _ in zeroed) == MIB


def test_reading_and_writing_errors_are_told_apart(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = bench.raw("s", noise(1, MIB)), bench.raw("t", bytes(MIB))
    copier = Copier(source, BackendTarget(backend(bench, target)))
    monkeypatch.setattr(copying, "transparent", lambda node: False)

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "")

    with monkeypatch.context() as patch:
        patch.setattr(source.driver, "read", fail)
        with pytest.raises(CopyError) as caught:
            copier.copy(0, MIB)
        assert (caught.value.reading, caught.value.error.errno) == (True, errno.ENOSPC)
    with monkeypatch.context() as patch:
        patch.setattr(target.driver, "write", fail)
        with pytest.raises(CopyError) as caught:
            copier.copy(0, MIB)
        assert (caught.value.reading, caught.value.error.errno) == (False, errno.ENOSPC)
    copier.copy(0, MIB)
    assert content(target) == content(source)


def test_dirty_trackers_and_counters_of_the_target_hear_of_it(bench: Bench) -> None:
    source, target = bench.raw("s", noise(1, MIB)), bench.raw("t", bytes(MIB))
    assert target.file is not None
    seen: list[tuple[str, int, int]] = []
    target.trackers = (lambda offset, length: seen.append(("raw", offset, length)),)
    target.file.child.trackers = (lambda offset, length: seen.append(("file", offset, length)),)
    written = target.wr_bytes, target.file.child.wr_bytes
    copier = Copier(source, BackendTarget(backend(bench, target)))
    copier.copy(65536, 131072)
    assert copier.host_bytes == 131072
    assert sorted(seen) == [("file", 65536, 131072), ("raw", 65536, 131072)]
    assert (target.wr_bytes, target.file.child.wr_bytes) == (written[0] + 131072, written[1] + 131072)


def test_a_flush_after_a_kernel_copy_reaches_the_file(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = bench.raw("s", noise(1, MIB)), bench.raw("t", bytes(MIB))
    user = backend(bench, target)
    user.flush()
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    Copier(source, BackendTarget(user)).copy(0, MIB)
    user.flush()
    assert len(synced) == 1


def test_the_flush_passes_nodes_in_between(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    source = bench.raw("s", noise(1, MIB))
    bench.raw("inner", bytes(MIB))
    target = bench.add(driver="raw", node_name="t", file="inner")
    user = backend(bench, target)
    user.flush()
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    copier = Copier(source, BackendTarget(user))
    copier.copy(0, MIB)
    user.flush()
    assert (copier.host_bytes, len(synced)) == (MIB, 1)


def test_no_kernel_copy_into_a_node_that_looks_for_zeros(bench: Bench) -> None:
    source = bench.raw("s", noise(1, MIB))
    target = bench.raw("t", bytes(MIB), detect_zeroes="on")
    copier = Copier(source, BackendTarget(backend(bench, target)))
    copier.copy(0, MIB)
    assert content(target) == content(source)
    assert copier.host_bytes == 0


def test_random_ranges(bench: Bench) -> None:
    rng = random.Random(5)
    size = 2 * MIB
    data = bytearray(size)
    for _ in range(20):
        at = rng.randrange(size - 30_000)
        data[at : at + 30_000] = noise(at, 30_000)
    source, target = bench.raw("s", bytes(data)), bench.raw("t", noise(3, size))
    model = bytearray(noise(3, size))
    copier = Copier(source, BackendTarget(backend(bench, target)))
    for _ in range(60):
        offset = 512 * rng.randrange(size // 512)
        length = min(512 * rng.randrange(1, 600), size - offset)
        copier.copy(offset, length)
        model[offset : offset + length] = data[offset : offset + length]
    assert content(target) == model


def test_status_is_asked_for_long_runs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = bench.raw("s", noise(1, 4 * MIB)), bench.raw("t", bytes(4 * MIB))
    asked: list[int] = []
    real = source.block_status

    def status(offset: int, length: int, want_zero: bool = True) -> Extent:
        asked.append(length)
        return real(offset, length, want_zero)

    monkeypatch.setattr(source, "block_status", status)
    Copier(source, BackendTarget(backend(bench, target))).copy(0, 4 * MIB)
    assert asked == [4 * MIB]


# -- with qcow2 --------------------------------------------------------------------------------------------------------


def test_into_qcow2_whole_clusters_go_by_the_kernel(session: Session) -> None:
    session.create_qcow2("t", 4 * MIB)
    target = session.add_qcow2("t")
    data = noise(1, 4 * MIB)
    session.do("blockdev-add", driver="file", node_name="s", filename=str(session.file("s", data)))
    with session.writer("t") as user:
        copier = Copier(session.node("s"), BackendTarget(user))
        copier.copy(1000 * 512, 2 * MIB)
        head = -1000 * 512 % CLUSTER
        assert copier.host_bytes == (2 * MIB - head) // CLUSTER * CLUSTER
        expected = bytes(512_000) + data[512_000 : 512_000 + 2 * MIB]
        assert content(target) == expected + bytes(4 * MIB - len(expected))


def test_from_qcow2_layers(session: Session) -> None:
    nodes = session.chain("a", "b", read_only_below=False)
    with session.writer("b") as user:
        user.write(0, memoryview(noise(1, 300_032)))
        user.write_zeroes(MIB, 65536)
    nodes[0].write(MIB - 65536, memoryview(noise(2, 3 * 65536)))
    session.do("blockdev-add", driver="file", node_name="t", filename=str(session.file("t", noise(4, 4 * MIB))))
    with session.writer("t") as user:
        copier = Copier(nodes[1], BackendTarget(user))
        copier.copy(0, 4 * MIB)
        assert content(session.node("t")) == content(nodes[1])
        assert copier.host_bytes > 300_000


def test_populate_leaves_trackers_alone(session: Session) -> None:
    nodes = session.chain("a", "b", read_only_below=False)
    nodes[0].write(0, memoryview(noise(1, MIB)))
    top = nodes[1]
    before = content(top)
    seen: list[tuple[int, int]] = []
    top.trackers = (lambda offset, length: seen.append((offset, length)),)
    with top.ranges.hold(0, 2 * MIB):
        Copier(top, PopulateTarget(top), look_for_zeros=True).copy(0, 2 * MIB)
    assert seen == []
    assert content(top) == before
    assert top.block_status(0, MIB).flags & Status.ALLOCATED


@pytest.mark.parametrize(("options", "begun"), [({}, True), ({"cache": {"no-flush": True}}, False)])
def test_the_disk_begins_to_write_while_the_copy_goes_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], begun: bool
) -> None:
    asked: list[int] = []
    real = hostfile.start_writeback

    def note(fd: int) -> None:
        asked.append(os.fstat(fd).st_ino)
        real(fd)

    monkeypatch.setattr(hostfile, "start_writeback", note)
    source = bench.raw("s", noise(1, 64 * MIB))
    path = bench.folder / "t.raw"
    path.write_bytes(b"")
    os.truncate(path, 64 * MIB)
    file = {"driver": "file", "filename": str(path), **options}
    target = bench.add(driver="raw", node_name="t", file=file)
    user = backend(bench, target)
    copier = Copier(source, BackendTarget(user))
    for offset in range(0, 64 * MIB, MIB):
        copier.copy(offset, MIB)
    bench.graph.remove_backend(user)
    target.monitor_owned = False
    target.pins += 1
    bench.graph.unpin(target)  # closes it, and waits for what has begun
    assert target.closed
    assert set(asked) == ({path.stat().st_ino} if begun else set())
    assert len(asked) <= 4


def test_a_copy_below_a_copy_has_a_buffer_of_its_own(session: Session) -> None:
    """A mirror writes by requests into a node whose old content is kept: each of its writes makes a copy first."""
    for name in ("s", "t", "old"):
        session.create_qcow2(name, 4 * MIB)
    session.fill("s", (0, noise("s", 4 * MIB)))
    session.fill("t", (0, noise("t", 4 * MIB)))
    session.add_qcow2("s")
    session.add_qcow2("t", detect_zeroes="on")  # so nothing is copied from host file to host file
    session.add_qcow2("old")
    session.do("blockdev-add", driver="copy-before-write", node_name="cbw", file="t", target="old")
    session.do("blockdev-mirror", job_id="m", device="s", target="cbw", sync="full")
    session.wait_status("m", "ready")
    session.do("job-cancel", id="m")
    session.wait_status("m", "null")
    assert content(session.node("t")) == noise("s", 4 * MIB)
    assert content(session.node("old")) == noise("t", 4 * MIB)


def test_several_pieces_are_asked_for_at_once_where_a_read_waits(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from an NBD server: here each read waits for another one."""
    source = bench.add(driver="null-co", node_name="s", size=4 * MIB, read_zeroes=False)
    target = bench.raw("t", bytes(4 * MIB))
    two = threading.Barrier(2, timeout=20)

    def read(offset: int, buffer: memoryview) -> None:
        two.wait()
        buffer[:] = noise(offset, len(buffer))

    monkeypatch.setattr(source.driver, "read", read)
    Copier(source, BackendTarget(backend(bench, target))).copy(0, 4 * MIB)
    assert content(target) == b"".join(noise(at, MIB) for at in range(0, 4 * MIB, MIB))


def test_an_error_among_several_pieces_ends_the_copy(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    source = bench.add(driver="null-co", node_name="s", size=8 * MIB, read_zeroes=False)
    target = bench.raw("t", bytes(8 * MIB))

    def read(offset: int, buffer: memoryview) -> None:
        if offset == 3 * MIB:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(source.driver, "read", read)
    with pytest.raises(CopyError) as caught:
        Copier(source, BackendTarget(backend(bench, target))).copy(0, 8 * MIB)
    assert caught.value.reading
