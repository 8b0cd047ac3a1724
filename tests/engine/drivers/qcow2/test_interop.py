"""Images made by the real tools read alike, and images made here are what the real tools would have made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.drivers.format.qcow2 import Qcow2Driver, create
from engine.drivers.format.qcow2.options import BlockdevCreateOptionsQcow2
from engine.errors import GenericError
from engine.graph.creation import GraphCreateContext
from engine.graph.driver import Prealloc, Status
from engine.graph.node import Node
from engine.qapi import from_wire, to_wire
from tests.engine.drivers.qcow2.support import make, opened, qemu_check, qemu_read, run
from tests.graphs import Bench
from tests.qemu import storage_daemon

pytestmark = [pytest.mark.interop, pytest.mark.usefixtures("qemu_img", "qemu_io")]


def qemu_create(path: Path, size: int | None, *options: str, backing: str = "", fmt: str = "qcow2") -> None:
    args: list[str] = ["-q", "-f", "qcow2"]
    if options:
        args += ["-o", ",".join(options)]
    if backing:
        args += ["-b", backing, "-F", fmt]
    run("qemu-img", "create", *args, path, *([str(size)] if size is not None else []))


def qemu_io(path: Path, *commands: str) -> None:
    args = [part for command in commands for part in ("-c", command)]
    out = run("qemu-io", "-d", "unmap", "-f", "qcow2", *args, path)
    assert "failed" not in out, out


def whole(node: Node) -> bytes:
    """All the node's bytes, read in unlike portions."""
    data = bytearray(node.length)
    at, step = 0, 512
    while at < len(data):
        part = min(step, len(data) - at)
        node.read(at, memoryview(data)[at : at + part])
        at += part
        step = step * 3 + 512 if step < 3 << 20 else 700
    return bytes(data)


def open_chain(bench: Bench, path: Path, **options: Any) -> Node:
    return bench.add(driver="qcow2", file={"driver": "file", "filename": str(path)}, **options)


FORMATS = [
    ("512", ("cluster_size=512",)),
    ("1k-rc1", ("cluster_size=1024", "refcount_bits=1")),
    ("4k-v2", ("cluster_size=4096", "compat=0.10")),
    ("32k-rc2", ("cluster_size=32768", "refcount_bits=2")),
    ("64k", ()),
    ("64k-rc64-lazy", ("refcount_bits=64", "lazy_refcounts=on")),
    ("2m-rc8", ("cluster_size=2M", "refcount_bits=8")),
    ("16k-extended", ("cluster_size=16k", "extended_l2=on")),
    ("128k-extended-zstd", ("cluster_size=128k", "extended_l2=on", "compression_type=zstd")),
]


@pytest.mark.parametrize(("name", "options"), FORMATS, ids=[name for name, _ in FORMATS])
def test_chain_of_the_real_tools_reads_the_same(
    name: str, options: tuple[str, ...], bench: Bench, tmp_path: Path
) -> None:
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    qemu_create(base, 6 << 20, *options)
    qemu_io(base, "write -P 1 0 3M", "write -P 2 1000k 70k", "write -z 2M 300k", "write -P 3 4M 513")
    if name != "1k-rc1":
        run("qemu-img", "snapshot", "-c", "before", base)
    qemu_io(base, "write -P 4 100k 200k", "discard 1M 512k")
    # An overlay that is longer, and whose size is no multiple of the cluster.
    qemu_create(top, (8 << 20) + 512, *options, backing=base.name)
    qemu_io(
        top, "write -P 5 50k 7k", "write -z -u 2500k 512k", "write -P 6 8M 512", "discard 128k 256k", "write -P 7 5M 1"
    )
    node = open_chain(bench, top, read_only=True)
    assert whole(node) == qemu_read(top)


@pytest.mark.parametrize("kind", ["zlib", "zstd"])
@pytest.mark.parametrize("options", [("cluster_size=4k",), (), ("cluster_size=2M",), ("extended_l2=on",)])
def test_compressed_clusters(kind: str, options: tuple[str, ...], bench: Bench, tmp_path: Path) -> None:
    raw, packed = tmp_path / "plain.raw", tmp_path / "packed.qcow2"
    text = b"".join(b"line %d of a text that compresses\n" % i for i in range(60_000))
    raw.write_bytes(text + bytes(1 << 20) + text[:333_333] + bytes(-(len(text) + 333_333) % 512))
    run("qemu-img", "convert", "-c", "-O", "qcow2", "-o", ",".join((f"compression_type={kind}", *options)), raw, packed)
    node = open_chain(bench, packed, discard="unmap")
    assert whole(node) == raw.read_bytes()
    assert node.block_status(0, 4096).flags & Status.COMPRESSED
    # Writing replaces compressed clusters by plain ones, and frees what they shared.
    node.write(10_000, memoryview(b"new" * 5000))
    node.write_zeroes(300_000, 100_000)
    node.discard(0, 4096)
    expected = whole(node)
    bench.graph.close()
    qemu_check(packed)
    assert qemu_read(packed) == expected
    assert expected[10_000:25_000] == b"new" * 5000
    assert expected[300_000:400_000] == bytes(100_000)


def test_writes_leave_internal_snapshots_alone(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    qemu_create(path, 4 << 20)
    qemu_io(path, "write -P 1 0 2M")
    run("qemu-img", "snapshot", "-c", "first", path)
    qemu_io(path, "write -P 2 1M 128k")
    run("qemu-img", "snapshot", "-c", "second", path)
    node = open_chain(bench, path, discard="unmap")
    node.write(5000, memoryview(b"x" * 100))
    node.discard(1 << 20, 65536)
    node.write_zeroes(1536 << 10, 65536)
    node.truncate(5 << 20)
    now = whole(node)
    assert now[5000:5100] == b"x" * 100
    bench.graph.close()
    qemu_check(path)
    assert qemu_read(path) == now
    for name, pattern in (("first", 1), ("second", 2)):
        run("qemu-img", "convert", "-l", f"snapshot.name={name}", "-O", "raw", path, f"{path}.{name}")
        data = Path(f"{path}.{name}").read_bytes()
        assert data[5000:5100] == b"\1" * 100
        assert data[1 << 20 : (1 << 20) + 65536] == bytes([pattern]) * 65536
        assert data[1536 << 10 : (1536 << 10) + 65536] == b"\1" * 65536


def test_version_2_image_with_snapshots_is_not_resized(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    qemu_create(path, 1 << 20, "compat=0.10")
    run("qemu-img", "snapshot", "-c", "s", path)
    node = open_chain(bench, path)
    with pytest.raises(GenericError, match=r"^Can't resize a v2 image which has snapshots$"):
        node.truncate(2 << 20)


def test_external_data_file(bench: Bench, tmp_path: Path) -> None:
    path, data = tmp_path / "meta.qcow2", tmp_path / "data.raw"
    for raw in ("off", "on"):
        qemu_create(path, 4 << 20, f"data_file={data}", f"data_file_raw={raw}")
        qemu_io(path, "write -P 1 0 1M", "write -P 2 2M 1k")
        before = qemu_read(path)
        node = open_chain(bench, path, discard="unmap", node_name=f"n-{raw}")
        assert whole(node) == before
        node.write(3 << 20, memoryview(b"abc"))
        node.write_zeroes(100, 1000)
        node.discard(65536, 131072)
        node.truncate(5 << 20)
        node.write((5 << 20) - 3, memoryview(b"end"))
        now = whole(node)
        assert now[3 << 20 : (3 << 20) + 4] == b"abc\0"
        assert now[65536:196608] == bytes(131072)
        bench.graph.close()
        qemu_check(path)
        assert qemu_read(path) == now
        if raw == "on":
            assert data.read_bytes() == now


def test_data_file_name_is_never_a_protocol(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "meta.qcow2"
    qemu_create(path, 1 << 20, f"data_file={tmp_path / 'data.raw'}")
    qemu_img_amend = path.read_bytes().replace(
        str(tmp_path / "data.raw").encode(), b"nbd:localhost:1".ljust(len(str(tmp_path / "data.raw")), b"\0")
    )
    path.write_bytes(qemu_img_amend)
    with pytest.raises(GenericError, match=r"nbd:localhost:1.*No such file or directory"):
        open_chain(bench, path, read_only=True)


def test_map_agrees_with_qemu_img(bench: Bench, tmp_path: Path) -> None:
    for name, options in (("plain", ()), ("extended", ("extended_l2=on",)), ("small", ("cluster_size=512",))):
        path = tmp_path / f"{name}.qcow2"
        qemu_create(path, 20 << 20, *options)
        qemu_io(
            path, "write -P 1 1M 3M", "write -z 2M 100k", "write -P 2 10M 65536", "write -z 12M 4M", "write -P 3 7M 1k"
        )
        node = open_chain(bench, path, read_only=True)
        found: list[tuple[int, int, bool, bool, int | None]] = []
        at = 0
        while at < node.length:
            extent = node.block_status(at, node.length - at)
            valid = extent.flags & Status.OFFSET_VALID
            item = (
                at,
                extent.length,
                bool(extent.flags & Status.DATA),
                bool(extent.flags & Status.ZERO),
                extent.offset if valid else None,
            )
            found.append(item)
            at += extent.length
        expected = json.loads(run("qemu-img", "map", "--output=json", path))
        assert found == [(e["start"], e["length"], e["data"], e["zero"], e.get("offset")) for e in expected]


# -- creation --------------------------------------------------------------------------------------------------------

CREATIONS: list[dict[str, Any]] = [
    {},
    {"version": "v2"},
    {"cluster-size": 512},
    {"cluster-size": 2 << 20, "refcount-bits": 1},
    {"refcount-bits": 64, "lazy-refcounts": True},
    {"extended-l2": True, "cluster-size": 16384},
    {"compression-type": "zstd"},
    {"compression-type": "zlib"},
    {"preallocation": "metadata"},
    {"preallocation": "falloc"},
    {"preallocation": "full", "cluster-size": 4096},
    {"preallocation": "metadata", "extended-l2": True},
    {"backing-file": "base.raw", "backing-fmt": "raw"},
    {"backing-file": "base.raw", "backing-fmt": "raw", "version": "v2", "cluster-size": 1024},
    {"data-file": "DATA"},
    {"data-file": "DATA", "data-file-raw": True},
    {"data-file": "DATA", "preallocation": "metadata"},
]


@pytest.mark.parametrize("options", CREATIONS, ids=lambda o: ",".join(f"{k}={v}" for k, v in o.items()) or "default")
@pytest.mark.parametrize("size", [0, 3 << 20, (40 << 20) + 512])
def test_created_images_are_as_those_of_qemu(options: dict[str, Any], size: int, tmp_path: Path) -> None:
    (tmp_path / "base.raw").write_bytes(bytes(1 << 20))
    found = []
    for side in ("theirs", "ours"):
        folder = tmp_path / side
        folder.mkdir()
        (folder / "base.raw").symlink_to(tmp_path / "base.raw")
        path, data = folder / "image.qcow2", folder / "data"
        (create_here if side == "ours" else create_there)(path, size, options, data)
        info = json.loads(run("qemu-img", "info", "--output=json", path))
        check = qemu_check(path)
        # Where what lies, and what it takes on the disk, may differ.
        for entry in (info, check):
            for key in ("filename", "actual-size", "image-end-offset", "full-backing-filename", "fragmented-clusters"):
                entry.pop(key, None)
        specific = info["format-specific"]["data"]
        assert (specific.pop("data-file", None) is not None) == ("data-file" in options)
        found.append((info, check))
        assert qemu_read(path) == bytes(size)
        full = options.get("preallocation") in ("falloc", "full")
        assert (sum(p.stat().st_blocks * 512 for p in folder.iterdir() if not p.is_symlink()) > size) or not full
    assert found[1] == found[0]


def create_there(path: Path, size: int, options: dict[str, Any], data: Path) -> None:
    words = []
    for key, value in options.items():
        if key == "version":
            words.append("compat=0.10")
        elif key == "data-file":
            words.append(f"data_file={data}")
        else:
            text = ("on" if value else "off") if isinstance(value, bool) else value
            words.append(f"{key.replace('-', '_')}={text}")
    qemu_create(path, size, *words)


def create_here(path: Path, size: int, options: dict[str, Any], data: Path) -> None:
    bench = Bench(path.parent)
    wire: dict[str, Any] = {"size": size, **options, "file": {"driver": "file", "filename": str(path)}}
    path.write_bytes(b"")
    if "data-file" in options:
        data.write_bytes(b"")
        wire["data-file"] = {"driver": "file", "filename": str(data)}
    context = GraphCreateContext(bench.graph, lambda function: function())
    Qcow2Driver.create(from_wire(BlockdevCreateOptionsQcow2, wire), context)
    bench.graph.close()


def test_information_agrees_with_qemu_img(bench: Bench, tmp_path: Path) -> None:
    base = tmp_path / "base.raw"
    base.write_bytes(bytes(1 << 20))
    for i, options in enumerate((("compat=0.10",), ("extended_l2=on", "refcount_bits=8", "compression_type=zstd"))):
        path = tmp_path / f"{i}.qcow2"
        qemu_create(path, 1 << 20, *options, backing=str(base), fmt="raw")
        node = open_chain(bench, path, read_only=True)
        theirs = json.loads(run("qemu-img", "info", "--output=json", path))
        specific = node.driver.format_specific()
        assert specific is not None
        assert {"type": specific[0], "data": to_wire(specific[1])} == theirs["format-specific"]
        info = node.driver.info()
        assert info is not None
        assert info.cluster_size == theirs["cluster-size"]
        assert info.is_dirty is theirs["dirty-flag"]
        assert node.auto_backing_file == theirs["backing-filename"]
        assert node.auto_backing_format == theirs["backing-filename-format"]


BAD_CREATIONS: list[dict[str, Any]] = [
    {"size": 1000},
    {"size": 1 << 20, "cluster-size": 1000},
    {"size": 1 << 20, "cluster-size": 256},
    {"size": 1 << 20, "cluster-size": 4 << 20},
    {"size": 1 << 20, "version": "v2", "lazy-refcounts": True},
    {"size": 1 << 20, "version": "v2", "extended-l2": True},
    {"size": 1 << 20, "extended-l2": True, "cluster-size": 8192},
    {"size": 1 << 20, "preallocation": "metadata", "backing-file": "x", "backing-fmt": "raw"},
    {"size": 1 << 20, "backing-fmt": "raw"},
    {"size": 1 << 20, "refcount-bits": 3},
    {"size": 1 << 20, "refcount-bits": 128},
    {"size": 1 << 20, "refcount-bits": 8, "version": "v2"},
    {"size": 1 << 20, "data-file-raw": True},
    {"size": 1 << 20, "data-file": "d", "data-file-raw": True, "backing-file": "x", "backing-fmt": "raw"},
    {"size": 1 << 20, "data-file": "d", "version": "v2"},
    {"size": 1 << 20, "compression-type": "zstd", "version": "v2"},
    {"size": 1 << 20, "backing-file": "x" * 1024, "backing-fmt": "raw"},
    {"size": 1 << 20, "backing-file": "x" * 600, "backing-fmt": "raw", "cluster-size": 512},
    {"size": 1 << 61},
    {"size": 1 << 50, "cluster-size": 512},
]


def test_errors_of_creation_are_those_of_qemu(qsd: str, bench: Bench, tmp_path: Path) -> None:
    ours: list[str | None] = []
    theirs: list[str | None] = []
    for side in ("f", "d", "g"):
        (tmp_path / side).write_bytes(b"")
    with storage_daemon(qsd) as daemon:
        for name in ("f", "d"):
            daemon.execute("blockdev-add", driver="file", node_name=name, filename=str(tmp_path / name))
        for options in BAD_CREATIONS:
            wire = {"driver": "qcow2", "file": "f", **options}
            daemon.execute("blockdev-create", job_id="j", options=wire)
            daemon.wait_event("JOB_STATUS_CHANGE", id="j", status="concluded")
            daemon.events.clear()
            theirs.append(daemon.execute("query-jobs")[0].get("error"))
            daemon.execute("job-dismiss", id="j")
    for options in BAD_CREATIONS:
        given = from_wire(BlockdevCreateOptionsQcow2, {"file": "f", **options})
        try:
            head = create.header_for(given)
            with opened_file(tmp_path / "g") as file:
                create.build(file, None, head, given)
            ours.append(None)
        except GenericError as exc:
            ours.append(exc.desc)
    assert ours == theirs


def opened_file(path: Path) -> Any:
    from contextlib import closing

    from tests.engine.drivers.qcow2.support import FileChild

    return closing(FileChild(path))


# -- resizing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [Prealloc.METADATA, Prealloc.FALLOC, Prealloc.FULL])
def test_growing_with_preallocation(mode: Prealloc, bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    qemu_create(path, 1 << 20)
    qemu_io(path, "write -P 9 0 1M")
    node = open_chain(bench, path)
    node.truncate(5 << 20, prealloc=mode)
    extent = node.block_status(1 << 20, 4 << 20)
    assert extent.flags & Status.DATA
    assert extent.length == 4 << 20
    bench.graph.close()
    check = qemu_check(path)
    assert check["allocated-clusters"] == 80
    assert qemu_read(path) == b"\t" * (1 << 20) + bytes(4 << 20)
    taken = path.stat().st_blocks * 512
    assert (taken > 5 << 20) == (mode != Prealloc.METADATA)


def test_shrinking_gives_space_back_and_growing_shows_zeros(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    qemu_create(path, 64 << 20, "cluster_size=4k")
    qemu_io(path, "write -P 9 0 64M")
    node = open_chain(bench, path)
    node.truncate((1 << 20) - 512)
    assert node.length == (1 << 20) - 512
    node.flush()
    assert path.stat().st_size < 3 << 20
    node.truncate(64 << 20)
    assert whole(node) == b"\t" * ((1 << 20) - 512) + bytes((63 << 20) + 512)
    bench.graph.close()
    qemu_check(path)


def test_truncate_errors(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    qemu_create(path, 1 << 20)
    node = open_chain(bench, path)
    with pytest.raises(GenericError, match=r"^The new size must be a multiple of 512$"):
        node.truncate(1000)
    with pytest.raises(GenericError, match=r"^Preallocation can't be used for shrinking an image$"):
        node.truncate(512, prealloc=Prealloc.FULL)
    with pytest.raises(GenericError, match=r"^Failed to grow the L1 table: File too large$"):
        node.truncate(1 << 61)
    node.write(0, memoryview(b"still alive"))


# -- what others must not notice ------------------------------------------------------------------------------------


def test_unknown_extensions_and_the_feature_table_survive_a_rewrite(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    make(path, 1 << 20)
    data = bytearray(path.read_bytes())
    header_length = int.from_bytes(data[100:104], "big")
    extra = (0x12345678).to_bytes(4, "big") + (5).to_bytes(4, "big") + b"hello\0\0\0"
    data[header_length : header_length + 1000] = extra + data[header_length : header_length + 1000 - len(extra)]
    path.write_bytes(data)
    with opened(path) as image:
        image.image.header.backing_file = "somewhere.raw"
        image.image.header.backing_format = "raw"
        image.image.rewrite_header()
    assert extra in path.read_bytes()[:4096]
    info = json.loads(run("qemu-img", "info", "--output=json", path))
    assert (info["backing-filename"], info["backing-filename-format"]) == ("somewhere.raw", "raw")
