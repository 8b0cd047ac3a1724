"""file and null against models; what QEMU says about bad names."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.drivers.protocol import hostfile
from engine.errors import GenericError
from engine.graph.driver import Prealloc, WriteFlag
from tests.graphs import Bench

SIZE = 1 << 16

requests = st.lists(
    st.tuples(
        st.sampled_from(["write", "zero", "unmap", "discard", "read"]),
        st.integers(0, SIZE - 1),
        st.integers(1, 9000),
        st.integers(1, 255),
    ),
    max_size=25,
)


@pytest.mark.parametrize("direct", [False, True])
def test_file_is_its_bytes(tmp_path: Path, direct: bool) -> None:
    if direct:
        try:
            os.close(os.open(tmp_path / "probe", os.O_CREAT | os.O_RDWR | os.O_DIRECT))
        except OSError:
            pytest.skip("the file system has no O_DIRECT")

    @settings(max_examples=40, deadline=None)
    @given(requests)
    def run(steps: list[tuple[str, int, int, int]]) -> None:
        desk = Bench(tmp_path)
        node = desk.add(
            driver="file",
            node_name="f",
            filename=desk.file("model", bytes(SIZE)),
            discard="unmap",
            cache={"direct": direct},
        )
        model = bytearray(SIZE)
        for kind, offset, length, value in steps:
            length = min(length, SIZE - offset)
            if kind == "write":
                node.write(offset, memoryview(bytes([value]) * length))
                model[offset : offset + length] = bytes([value]) * length
            elif kind == "discard":
                node.discard(offset, length)
                model[offset : offset + length] = bytes(length)
            elif kind == "read":
                got = bytearray(length)
                node.read(offset, memoryview(got))
                assert got == model[offset : offset + length]
            else:
                node.write_zeroes(offset, length, WriteFlag.MAY_UNMAP if kind == "unmap" else 0)
                model[offset : offset + length] = bytes(length)
        node.flush()
        desk.graph.close()
        assert (tmp_path / "model").read_bytes() == model

    run()


def test_growing_and_shrinking(bench: Bench) -> None:
    node = bench.add(driver="file", node_name="f", filename=bench.file("f", b"x" * 1000))
    node.truncate(5000)
    assert node.length == 5000
    buffer = bytearray(b"?" * 4000)
    node.read(1000, memoryview(buffer))
    assert not any(buffer)
    node.truncate(100)
    assert (bench.folder / "f").stat().st_size == 100
    node.truncate(1 << 20, prealloc=Prealloc.FALLOC)
    assert (node.driver.allocated_size() or 0) >= (1 << 20) - 4096
    with pytest.raises(GenericError, match="Preallocation can't be used for shrinking files"):
        node.truncate(10, prealloc=Prealloc.FULL)
    assert node.length == 1 << 20


def test_writing_past_the_end_grows_the_file(bench: Bench) -> None:
    node = bench.add(driver="file", node_name="f", filename=bench.file("f", b""))
    node.write(4096, memoryview(b"end"))
    assert node.length == 4099
    node.write_zeroes(8192, 4096)
    assert node.length == 12288
    assert (bench.folder / "f").read_bytes() == bytes(4096) + b"end" + bytes(12288 - 4099)


def test_zeroing_falls_back_where_the_host_cannot(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    node = bench.add(driver="file", node_name="f", filename=bench.file("f", b"x" * 8192), discard="unmap")

    def refuse(*args: int) -> None:
        raise OSError(95, os.strerror(95))

    monkeypatch.setattr(hostfile, "fallocate", refuse)
    node.write_zeroes(1000, 5000)
    node.discard(0, 512)
    assert (bench.folder / "f").read_bytes() == b"x" * 1000 + bytes(5000) + b"x" * 2192


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: path.mkdir(), "Could not open '{}': Is a directory"),
        (lambda path: None, "Could not open '{}': No such file or directory"),
        (os.mkfifo, "'file' driver requires '{}' to be a regular file"),
        (lambda path: socket.socket(socket.AF_UNIX).bind(str(path)), "Could not open '{}': No such device or address"),
    ],
)
def test_what_is_no_file_is_refused(bench: Bench, make: object, text: str) -> None:
    path = bench.folder / "thing"
    make(path)  # type: ignore[operator]
    with pytest.raises(GenericError) as caught:
        bench.add(driver="file", node_name="f", filename=str(path))
    assert caught.value.desc == text.format(path)
    assert not bench.graph.nodes


def test_option_texts(bench: Bench) -> None:
    path = bench.file("f", b"")
    for options, text in (
        ({"filename": ""}, "The 'file' block driver requires a file name"),
        ({"filename": path, "aio": "native"}, "aio=native was specified, but it requires cache.direct=on"),
        ({"filename": path, "pr-manager": "x"}, "No persistent reservation manager with id 'x'"),
        ({"filename": path, "colour": "red"}, "Block protocol 'file' doesn't support the option 'colour'"),
    ):
        with pytest.raises(GenericError, match=text):
            bench.add(driver="file", node_name="f", **options)
    with pytest.raises(GenericError, match=r"'host_device' driver requires '.*' to be either a character or block"):
        bench.add(driver="host_device", node_name="f", filename=path)


def test_auto_read_only_takes_the_file_writable_when_somebody_writes(bench: Bench) -> None:
    from engine.graph.permissions import Perm

    node = bench.add(driver="file", node_name="f", filename=bench.file("f", bytes(512)), auto_read_only=True)
    driver = node.driver
    assert driver.fd_read_only  # type: ignore[attr-defined]
    backend = bench.graph.add_backend("device", "vda", node, Perm.CONSISTENT_READ | Perm.WRITE, Perm.ALL)
    backend.write(0, memoryview(b"x" * 512))
    bench.graph.remove_backend(backend)
    assert driver.fd_read_only  # type: ignore[attr-defined]
    assert (bench.folder / "f").read_bytes() == b"x" * 512


def test_null_swallows_and_reads_zeros(bench: Bench) -> None:
    node = bench.add(driver="null-co", node_name="n", size=1 << 20, read_zeroes=True)
    node.write(0, memoryview(b"x" * 512))
    buffer = bytearray(b"?" * 512)
    node.read(0, memoryview(buffer))
    assert not any(buffer)
    assert json.loads(node.filename.removeprefix("json:")) == {
        "driver": "null-co",
        "read-zeroes": True,
        "size": 1 << 20,
    }
    assert bench.add(driver="null-aio", node_name="d").length == 1 << 30
    with pytest.raises(GenericError, match="size is invalid"):
        bench.add(driver="null-co", node_name="m", size=-1)
