"""preallocate: the file grows ahead of the data, nobody sees it in what is read, and it is cut off in the end."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.drivers.filter.preallocate import PreallocateDriver
from engine.errors import GenericError
from engine.graph.change import set_edge_permissions
from engine.graph.driver import Prealloc, WriteFlag
from engine.graph.node import Node
from engine.graph.permissions import Perm, Role
from tests.engine.drivers.qcow2.support import make
from tests.graphs import Bench

KIB = 1 << 10
ALIGN = 4 * KIB
AHEAD = 64 * KIB
EXCLUSIVE = Perm.WRITE | Perm.RESIZE | Perm.CONSISTENT_READ


class Filter(Bench):
    """A preallocate node ``p`` over the file node ``f``, and a user that may write and resize, as a format would."""

    def __init__(self, folder: Path, content: bytes = b"x" * 1000, **options: Any) -> None:
        super().__init__(folder)
        self.path = Path(self.file("f.raw", content))
        self.child = self.add(driver="file", node_name="f", filename=str(self.path))
        given = {"prealloc_align": ALIGN, "prealloc_size": AHEAD} | options
        self.node = self.add(driver="preallocate", node_name="p", file="f", **given)
        self.user = self.graph.add_backend("user", "", self.node, EXCLUSIVE, Perm.ALL)

    def write(self, offset: int, data: bytes) -> None:
        self.node.write(offset, memoryview(data))

    def read(self, offset: int, length: int) -> bytes:
        data = bytearray(length)
        self.node.read(offset, memoryview(data))
        return bytes(data)

    @property
    def host_length(self) -> int:
        return self.path.stat().st_size


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Filter]:
    made = Filter(tmp_path)
    yield made
    made.graph.close()


def test_growth_ahead(bench: Filter) -> None:
    bench.write(1000, b"y" * 24)
    # So much past the data, up to a whole multiple of the alignment.
    assert (bench.node.length, bench.host_length) == (1024, AHEAD + ALIGN)
    before = bench.host_length
    bench.write(1024, b"z" * (before - 1024))
    assert (bench.node.length, bench.host_length) == (before, before)
    bench.write(before, b"!")
    assert (bench.node.length, bench.host_length) == (before + 1, before + AHEAD + ALIGN)
    assert bench.read(990, 50) == b"x" * 10 + b"y" * 24 + b"z" * 16


def test_nothing_is_ahead_of_writes_inside(bench: Filter) -> None:
    bench.write(0, b"y" * 1000)
    assert (bench.node.length, bench.host_length) == (1000, 1000)


def test_what_is_ahead_reads_as_the_end(bench: Filter) -> None:
    bench.write(1000, b"y")
    assert bench.read(0, 5000) == b"x" * 1000 + b"y" + bytes(3999)
    assert bench.node.block_status(0, 1 << 20).length <= 1001


@pytest.mark.parametrize("lost", [Perm.WRITE, Perm.RESIZE, Perm.WRITE | Perm.RESIZE])
def test_the_file_is_cut_when_nobody_writes_and_resizes_any_more(bench: Filter, lost: Perm) -> None:
    bench.write(1000, b"y")
    assert bench.host_length > 1001
    assert bench.user.root is not None
    set_edge_permissions(bench.user.root, Perm(EXCLUSIVE & ~lost), Perm.ALL)
    assert (bench.node.length, bench.host_length) == (1001, 1001)
    set_edge_permissions(bench.user.root, EXCLUSIVE, Perm.ALL)
    bench.write(1001, b"y")
    assert (bench.node.length, bench.host_length > 1002) == (1002, True)


def test_the_file_is_cut_at_the_end(bench: Filter) -> None:
    bench.write(1000, b"y")
    bench.graph.close()
    assert bench.host_length == 1001


def test_an_image_below_is_cut_to_a_whole_sector(tmp_path: Path) -> None:
    path = tmp_path / "i.qcow2"
    make(path, 512)
    bench = Bench(tmp_path)
    image = bench.add(driver="qcow2", node_name="i", file={"driver": "file", "filename": str(path)})
    node = bench.add(driver="preallocate", node_name="p", file="i", prealloc_align=ALIGN, prealloc_size=AHEAD)
    user = bench.graph.add_backend("user", "", node, EXCLUSIVE, Perm.ALL)
    node.write(700, memoryview(b"y" * 100))
    assert image.length > 1024
    bench.graph.remove_backend(user)
    assert image.length == 1024
    bench.graph.close()


def test_a_writer_that_may_not_resize_gets_nothing_ahead(tmp_path: Path) -> None:
    bench = Filter(tmp_path)
    try:
        bench.graph.remove_backend(bench.user)
        bench.graph.add_backend("user", "", bench.node, Perm.WRITE, Perm.ALL)
        bench.write(1000, b"y")
        assert bench.host_length == 1001
        # Others may write too, hence the length is asked for.
        bench.child.write(1001, memoryview(b"z"))
        assert bench.node.length == 1002
    finally:
        bench.graph.close()


def test_nobody_else_writes_meanwhile(bench: Filter) -> None:
    with pytest.raises(GenericError, match="Permission conflict on node 'f'"):
        bench.graph.add_backend("user", "", bench.child, Perm.WRITE, Perm.ALL)


def test_zeros_past_the_end_become_part_of_what_is_ahead(bench: Filter) -> None:
    calls: list[tuple[int, int]] = []
    write_zeroes = bench.child.driver.write_zeroes

    def count(offset: int, length: int, flags: int = 0) -> None:
        calls.append((offset, length))
        write_zeroes(offset, length, flags)

    bench.child.driver.write_zeroes = count  # type: ignore[method-assign]
    bench.node.write_zeroes(ALIGN, ALIGN)
    assert calls == [(1000, 2 * ALIGN + AHEAD - 1000)]
    bench.node.write_zeroes(2 * ALIGN, ALIGN)
    assert len(calls) == 1
    assert bench.node.length == 3 * ALIGN
    # Where data were written there are zeros no more.
    bench.write(3 * ALIGN, b"y" * ALIGN)
    bench.node.write_zeroes(3 * ALIGN, ALIGN)
    assert calls[1:] == [(3 * ALIGN, ALIGN)]
    assert bench.read(ALIGN, 3 * ALIGN) == bytes(3 * ALIGN)


def test_zeros_over_the_end_of_the_data(bench: Filter) -> None:
    bench.write(1000, b"y" * 1000)
    bench.node.write_zeroes(1900, 200)
    assert bench.read(1000, 1100) == b"y" * 900 + bytes(200)


def test_zeros_over_data_written_among_zeros(bench: Filter) -> None:
    bench.node.write_zeroes(1000, 1000)
    bench.write(1500, b"y" * 500)
    bench.node.write_zeroes(1500, 1000)
    assert bench.read(1000, 1500) == bytes(1500)


def test_what_is_ahead_begins_behind_writes_under_way(bench: Filter) -> None:
    driver = bench.child.driver
    write, write_zeroes = driver.write, driver.write_zeroes
    calls: list[int] = []

    def fail_once(offset: int, length: int, flags: int = 0) -> None:
        calls.append(offset)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "as arranged")
        write_zeroes(offset, length, flags)

    def overtaken(offset: int, data: memoryview, flags: int = 0) -> None:
        driver.write = write  # type: ignore[method-assign]
        bench.write(5000, b"z" * 10)
        write(offset, data, flags)

    driver.write_zeroes = fail_once  # type: ignore[method-assign]
    driver.write = overtaken  # type: ignore[method-assign]
    bench.write(1000, b"y" * 1000)
    assert calls == [1000, 2000]
    assert bench.read(0, 5010) == b"x" * 1000 + b"y" * 1000 + bytes(3000) + b"z" * 10


def test_space_that_cannot_be_had_ahead_is_no_error(bench: Filter) -> None:
    def fail(offset: int, length: int, flags: int = 0) -> None:
        raise OSError(errno.ENOTSUP, "as arranged")

    bench.child.driver.write_zeroes = fail  # type: ignore[method-assign]
    bench.write(1000, b"y" * 24)
    assert (bench.node.length, bench.host_length) == (1024, 1024)


@pytest.mark.parametrize("mode", [Prealloc.OFF, Prealloc.FALLOC, Prealloc.FULL])
@pytest.mark.parametrize("length", [2000, 50_000, 200_000])
def test_truncate(bench: Filter, mode: Prealloc, length: int) -> None:
    bench.write(1000, b"y")
    bench.node.truncate(length, prealloc=mode)
    assert bench.node.length == length
    assert bench.read(0, length) == b"x" * 1000 + b"y" + bytes(length - 1001)
    bench.node.truncate(500)
    assert (bench.node.length, bench.host_length) == (500, 500)
    bench.write(500, b"z")
    assert bench.read(0, 501) == b"x" * 500 + b"z"


def test_truncate_falloc_takes_over_what_is_ahead(bench: Filter) -> None:
    bench.write(1000, b"y")
    ahead = bench.host_length
    bench.node.truncate(20_000, prealloc=Prealloc.FALLOC)
    assert (bench.node.length, bench.host_length) == (20_000, ahead)
    bench.graph.remove_backend(bench.user)
    assert bench.host_length == 20_000


def test_a_failed_truncate_leaves_the_length_to_the_child(bench: Filter) -> None:
    bench.write(1000, b"y")

    def fail(length: int, **_: Any) -> None:
        raise OSError(errno.EFBIG, "as arranged")

    bench.child.driver.truncate = fail  # type: ignore[method-assign]
    with pytest.raises(GenericError, match="failed to drop write-zero preallocation"):
        _wrapped(bench, 5000)
    with pytest.raises(OSError, match="as arranged"):
        bench.node.truncate(10)


def _wrapped(bench: Filter, length: int) -> None:
    """Both kinds of errors of a truncate, as the commands tell them."""
    try:
        bench.node.truncate(length)
    except OSError as exc:
        raise GenericError(exc.strerror or "") from exc


def test_a_tail_that_cannot_be_cut_is_an_error(bench: Filter) -> None:
    bench.write(1000, b"y")
    truncate = bench.child.driver.truncate

    def fail(length: int, **_: Any) -> None:
        raise OSError(errno.EIO, "as arranged")

    bench.child.driver.truncate = fail  # type: ignore[method-assign]
    assert bench.user.root is not None
    with pytest.raises(GenericError, match="Failed to drop preallocation"):
        set_edge_permissions(bench.user.root, Perm.CONSISTENT_READ, Perm.ALL)
    bench.child.driver.truncate = truncate  # type: ignore[method-assign]
    set_edge_permissions(bench.user.root, Perm.CONSISTENT_READ, Perm.ALL)
    assert bench.host_length == 1001


def test_a_tail_that_cannot_be_cut_does_not_keep_the_writer(bench: Filter, caplog: pytest.LogCaptureFixture) -> None:
    bench.write(1000, b"y")

    def fail(length: int, **_: Any) -> None:
        raise OSError(errno.EIO, "as arranged")

    bench.child.driver.truncate = fail  # type: ignore[method-assign]
    bench.graph.remove_backend(bench.user)
    assert not bench.node.parents
    assert "Failed to drop preallocation" in caplog.text


def test_threads_that_append_lose_nothing(bench: Filter) -> None:
    """Whatever is put ahead never covers what another thread has just written."""
    part, threads = 3000, 4

    def work(number: int) -> None:
        for step in range(50):
            at = 1000 + (step * threads + number) * part
            bench.write(at, bytes([number + 1]) * part)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert bench.node.length == 1000 + 200 * part
    expected = b"x" * 1000 + b"".join(bytes([number % threads + 1]) * part for number in range(200))
    assert bench.read(0, bench.node.length) == expected
    bench.graph.close()
    assert bench.path.read_bytes() == expected


def test_alignment_of_the_child(tmp_path: Path) -> None:
    class Coarse(Bench):
        def coarse(self) -> Node:
            child = self.add(driver="file", node_name="f", filename=self.file("f.raw", bytes(8192)))
            child.driver.limits.request_alignment = 4096
            return child

    bench = Coarse(tmp_path)
    bench.coarse()
    text = r"prealloc-align .* not aligned to underlying node request alignment \(4096\)"
    with pytest.raises(GenericError, match=text):
        bench.add(driver="preallocate", node_name="p", file="f", prealloc_align=1024)
    node = bench.add(driver="preallocate", node_name="p", file="f", prealloc_align=8192)
    assert isinstance(node.driver, PreallocateDriver)
    assert [edge.role for edge in node.children.values()] == [Role.FILTERED | Role.PRIMARY]
    bench.graph.close()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_as_without_the_filter(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any sequence of requests gives the same data and lengths as a plain file."""
    bench = Filter(
        tmp_path_factory.mktemp("model"),
        prealloc_align=data.draw(st.sampled_from([512, 4096, 65536])),
        prealloc_size=data.draw(st.integers(0, 20000)),
    )
    model = bytearray(b"x" * 1000)
    try:
        for step in range(data.draw(st.integers(1, 12))):
            offset = data.draw(st.integers(0, len(model) + 3000))
            length = data.draw(st.integers(1, 9000))
            end = offset + length
            action = data.draw(st.sampled_from(["write", "zero", "unmap", "truncate", "permissions"]))
            if action in ("write", "zero", "unmap"):
                model.extend(bytes(max(0, end - len(model))))
                content = bytes([step + 1]) * length if action == "write" else bytes(length)
                model[offset:end] = content
                if action == "write":
                    bench.write(offset, content)
                else:
                    bench.node.write_zeroes(offset, length, WriteFlag.MAY_UNMAP if action == "unmap" else 0)
            elif action == "truncate":
                mode = data.draw(st.sampled_from([Prealloc.OFF, Prealloc.FALLOC, Prealloc.FULL]))
                if length < len(model):
                    mode = Prealloc.OFF
                bench.node.truncate(length, prealloc=mode)
                model[length:] = b""
                model.extend(bytes(length - len(model)))
            else:
                assert bench.user.root is not None
                set_edge_permissions(bench.user.root, Perm.CONSISTENT_READ, Perm.ALL)
                assert bench.path.read_bytes() == model
                set_edge_permissions(bench.user.root, EXCLUSIVE, Perm.ALL)
            assert bench.node.length == len(model)
            assert bench.read(0, len(model)) == model
    finally:
        bench.graph.close()
    assert bench.path.read_bytes() == model


def test_data_that_comes_while_zeros_are_put_ahead_is_not_covered_by_them(bench: Filter) -> None:
    child = bench.child.driver
    real = child.write_zeroes
    begun, go_on = threading.Event(), threading.Event()

    def slow(offset: int, length: int, flags: int = 0) -> None:
        begun.set()
        # The other writer has either written by then, or waits for the end of this.
        go_on.wait(0.2)
        real(offset, length, flags)

    child.write_zeroes = slow  # type: ignore[method-assign]
    far = threading.Thread(target=lambda: bench.write(9000, b"b" * 1000))
    far.start()
    assert begun.wait(20)
    near = threading.Thread(target=lambda: (bench.write(5000, b"a" * 1000), go_on.set()))
    near.start()
    for thread in (far, near):
        thread.join(20)
    assert bench.read(5000, 1000) == b"a" * 1000
    assert bench.read(9000, 1000) == b"b" * 1000
