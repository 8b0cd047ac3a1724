"""vmdk beside the real programs: the same images, the same answers."""

from __future__ import annotations

import random
import re
import struct
import subprocess
from pathlib import Path

import pytest

from engine.drivers.format.vmdk import VmdkDriver
from tests.engine.drivers.formats.model import get, make
from tests.graphs import Bench
from tests.interop.cases import GRAPH, add, file, wire_names
from tests.interop.differential import SYSTEM_EMULATOR, Call, Do, Step, Until, assert_same
from tests.interop.format_talk import MIB, NODES, create, io, opened
from tests.qemu import QemuImages

pytestmark = [pytest.mark.interop, pytest.mark.usefixtures("qsd")]

# CIDs are random. QEMU pads descriptors to 10 KiB with a new CID, and writes the first block of a file that it grows.

IGNORE = {"cid", "parent-cid", "actual-size"}
CLOSE = Do("blockdev-del", {"node-name": "n"})
SUBFORMATS = [
    "monolithicSparse",
    "monolithicFlat",
    "twoGbMaxExtentSparse",
    "twoGbMaxExtentFlat",
    "streamOptimized",
]


def extent(name: str) -> list[Step]:
    """An empty file, and the node of that name for it."""
    return [
        Call(lambda where: (where / name).write_bytes(b"")),
        Do("blockdev-add", {"driver": "file", "node-name": name, "filename": f"$DIR/{name}"}),
    ]


def drop(*names: str) -> list[Step]:
    return [Do("blockdev-del", {"node-name": name}) for name in names]


def same_bytes(*names: str) -> Call:
    """The whole files but for the CIDs, and what depends on the digits of one: QEMU writes no leading zeros."""

    def read(where: Path, name: str) -> str:
        data = re.sub(rb"(CID=)[0-9a-f]{1,8}\n", rb"\1?\n", (where / name).read_bytes().rstrip(b"\0"))
        data = re.sub(rb"\0{64,}", lambda zeros: b"<%d zeros>" % len(zeros[0]), data)
        return re.sub(rb"(toolsVersion.*\n)<\d+ zeros>", rb"\1", data).decode("latin-1")

    def size(where: Path) -> int:
        path = where / names[-1]
        cid = re.match(rb"# Disk DescriptorFile.*?\nCID=([0-9a-f]{1,8})\n", path.read_bytes(), re.DOTALL)
        # A descriptor in a file of its own is as long as its text.
        return path.stat().st_size - (len(cid[1]) - 8 if cid is not None else 0)

    return Call(lambda where: [size(where), *(read(where, name) for name in names)])


def patch(name: str, offset: int, value: bytes) -> Call:
    def run(where: Path) -> None:
        with open(where / name, "r+b") as image:
            image.seek(offset)
            image.write(value)

    return Call(run)


def put(name: str, content: str | bytes) -> Call:
    def run(where: Path) -> None:
        data = content.encode() if isinstance(content, str) else content
        (where / name).write_bytes(data.replace(b"$DIR", str(where).encode()))

    return Call(run)


def described(lines: str, kind: str = "monolithicFlat", rest: str = "CID=1234abcd\nparentCID=ffffffff\n") -> Call:
    """A descriptor in d.vmdk."""
    return put("d.vmdk", f'# Disk DescriptorFile\nversion=1\n{rest}createType="{kind}"\n{lines}\n')


def job(command: str, **options: object) -> list[Step]:
    """A block job from its start to its end."""
    return [
        Do(command, {"job-id": "j", **wire_names(options), "auto-dismiss": False}),
        Until("query-jobs", lambda jobs: not jobs or jobs[0]["status"] in ("concluded", "ready")),
        Do("job-complete", {"id": "j"}),
        Until("query-jobs", lambda jobs: not jobs or jobs[0]["status"] == "concluded"),
        Do("job-dismiss", {"id": "j"}),
    ]


def words(code: str, values: dict[int, int], size: int) -> bytes:
    numbers = [values.get(index, 0) for index in range(size // struct.calcsize(code))]
    return struct.pack(f"<{len(numbers)}{code}", *numbers)


# Header, directory at 2048, grain table at 2560, the grain at 32768. Sizes in sectors.
ESX = b"COWD" + words("I", {0: 1, 1: 3, 2: 4096, 3: 8, 4: 4, 5: 1, 6: 64}, 2044)
ESX = (ESX + words("I", {0: 5}, 512) + words("I", {0: 64}, 16384)).ljust(32768, b"\0") + b"e" * 4096
SE = (
    words("Q", {0: 0xCAFEBABE, 1: 0x200000001, 2: 8192, 3: 8, 4: 64, 10: 1, 16: 2, 17: 1, 18: 3, 19: 64, 24: 67}, 512)
    + words("Q", {0: 0xCAFECAFE}, 512)
    + words("Q", {0: 1 << 60}, 512)
    + words("Q", {0: 3 << 60 | 1 << 48, 1: 2 << 60, 3: 1 << 60, 4: 3 << 60}, 32768)
    + b"0" * 4096
    + b"1" * 4096
)
D = opened("d.vmdk", "vmdk")
BROKEN = opened("x.vmdk", "vmdk")

CONVERSATIONS: dict[str, list[Step]] = {
    "create": [*create("x.vmdk", "vmdk"), same_bytes("x.vmdk"), opened("x.vmdk", "vmdk"), NODES],
    "create a stream": [
        *create("x.vmdk", "vmdk", subformat="streamOptimized"),
        same_bytes("x.vmdk"),
        opened("x.vmdk", "vmdk"),
        NODES,
    ],
    "create with all options": [
        *create(
            "x.vmdk",
            "vmdk",
            size=200 * MIB,
            adapter_type="lsilogic",
            hwversion="13",
            toolsversion="10",
            zeroed_grain=True,
        ),
        same_bytes("x.vmdk"),
        opened("x.vmdk", "vmdk"),
        NODES,
    ],
    "create flat": [
        *extent("e"),
        *create("x.vmdk", "vmdk", subformat="monolithicFlat", extents=["e"], adapter_type="buslogic"),
        *drop("e"),
        same_bytes("x.vmdk", "e"),
        opened("x.vmdk", "vmdk"),
        NODES,
    ],
    "create in parts": [
        *extent("e"),
        *extent("g"),
        *create("x.vmdk", "vmdk", subformat="twoGbMaxExtentSparse", size=3 << 30, extents=["e", "g"]),
        *drop("e", "g"),
        same_bytes("x.vmdk", "e", "g"),
        opened("x.vmdk", "vmdk"),
        NODES,
        io("n", "write -q -P 7 2147450880 64k"),
        CLOSE,
        same_bytes("e", "g"),
    ],
    "create in flat parts": [
        *extent("e"),
        *extent("g"),
        *create("x.vmdk", "vmdk", subformat="twoGbMaxExtentFlat", size=3 << 30, extents=["e", "g"]),
        *drop("e", "g"),
        same_bytes("x.vmdk"),
        opened("x.vmdk", "vmdk"),
        NODES,
    ],
    "create with wrong options": [
        *extent("e"),
        *extent("g"),
        *create("x.vmdk", "vmdk", size=1000),
        *create("x.vmdk", "vmdk", size=0),
        *create("x.vmdk", "vmdk", extents=["e"]),
        *create("x.vmdk", "vmdk", subformat="monolithicFlat"),
        *create("x.vmdk", "vmdk", subformat="monolithicFlat", extents=["e", "g"]),
        *create("x.vmdk", "vmdk", subformat="monolithicFlat", extents=["nope"]),
        *create("x.vmdk", "vmdk", subformat="monolithicFlat", extents=["e"], size=0),
        *create("x.vmdk", "vmdk", subformat="twoGbMaxExtentSparse", extents=["e"], size=5 << 30),
        *create("x.vmdk", "vmdk", subformat="monolithicFlat", extents=["e"], backing_file="base.vmdk"),
        *create("x.vmdk", "vmdk", subformat="monolithicFlat", extents=["e"], zeroed_grain=True),
        *create("x.vmdk", "vmdk", backing_file="base.raw"),
        *create("x.vmdk", "vmdk", backing_file="nope"),
        *create("x.vmdk", "vmdk", subformat="nope"),
        *create("x.vmdk", "vmdk", adapter_type="nope"),
        *create("x.vmdk", "vmdk", backing_fmt="vmdk"),
        *create("x.vmdk", "vmdk", hwversion=4),
    ],
    "write": [
        *create("x.vmdk", "vmdk", size=80 * MIB),
        opened("x.vmdk", "vmdk"),
        io("n", "write -q -P 1 4096 10000"),
        io("n", "write -q -P 2 33M 512"),
        io("n", "write -q -P 4 256k 256k"),
        io("n", "write -q -P 3 60k 200k"),
        io("n", "write -q -z 34M 64k"),
        io("n", "write -q -P 5 80000k 1920k"),
        io("n", "discard -q 0 1M"),
        io("n", "flush"),
        io("n", "read -q -P 1 4096 10000"),
        NODES,
        CLOSE,
        same_bytes("x.vmdk"),
    ],
    "write zeroed grains": [
        *create("x.vmdk", "vmdk", size=8 * MIB, zeroed_grain=True),
        opened("x.vmdk", "vmdk"),
        io("n", "write -q -P 1 0 256k"),
        io("n", "write -q -z 64k 128k"),
        io("n", "write -q -z 100k 3000"),
        io("n", "write -q -z 1M 1M"),
        io("n", "write -q -P 2 1100k 10k"),
        io("n", "read -q -P 0 1024k 76k"),
        io("n", "flush"),
        NODES,
        CLOSE,
        same_bytes("x.vmdk"),
    ],
    "write a flat one": [
        *extent("e"),
        *create("x.vmdk", "vmdk", subformat="monolithicFlat", extents=["e"]),
        *drop("e"),
        opened("x.vmdk", "vmdk"),
        io("n", "write -q -P 1 4096 10000"),
        io("n", "write -q -z 8192 512"),
        NODES,
        CLOSE,
        same_bytes("x.vmdk", "e"),
    ],
    "write a stream": [
        *create("x.vmdk", "vmdk", subformat="streamOptimized", size=MIB + 512),
        opened("x.vmdk", "vmdk"),
        io("n", "write -q -c -P 1 0 64k"),
        io("n", "write -q -P 2 64k 64k"),
        io("n", "write -P 3 64k 64k", "write failed: Input/output error\r\n"),
        io("n", "write -P 3 192k 4k", "write failed: Invalid argument\r\n"),
        io("n", "write -P 3 260k 60k", "write failed: Invalid argument\r\n"),
        io("n", "write -q -P 4 1M 512"),
        io("n", "write -q -c -P 5 512k 128k"),
        io("n", "read -q -P 1 0 64k"),
        io("n", "read -q -P 4 1M 512"),
        io("n", "read -q -P 0 128k 384k"),
        CLOSE,
    ],
    "compressed writes elsewhere": [
        *create("x.vmdk", "vmdk"),
        opened("x.vmdk", "vmdk"),
        io("n", "write -c -P 1 0 64k", "write failed: Operation not supported\r\n"),
    ],
    "write over a backing file": [
        *create("x.vmdk", "vmdk", backing_file="$DIR/base.vmdk", size=2 * MIB),
        opened("x.vmdk", "vmdk"),
        NODES,
        io("n", "write -q -P 1 4096 10000"),
        io("n", "write -q -P 2 1020k 8k"),
        io("n", "write -q -z 128k 64k"),
        io("n", "read -q -P 98 14096 512"),
        NODES,
        CLOSE,
        same_bytes("x.vmdk"),
    ],
    "a backing file that was written to": [
        *create("x.vmdk", "vmdk", backing_file="$DIR/base.vmdk", size=2 * MIB),
        add("vmdk", "b", file=file("base.vmdk", "bf")),
        io("b", "write -q -P 3 0 512"),
        Do("blockdev-del", {"node-name": "b"}),
        opened("x.vmdk", "vmdk"),
        io("n", "read 0 512", "read failed: Invalid argument\r\n"),
        io("n", "write 0 512", "write failed: Invalid argument\r\n"),
        io("n", "write -q -P 1 64k 64k"),
    ],
    "jobs": [
        *create("x.vmdk", "vmdk", backing_file="$DIR/base.vmdk"),
        *create("t.vmdk", "vmdk", subformat="streamOptimized"),
        opened("x.vmdk", "vmdk"),
        add("vmdk", "t", file=file("t.vmdk", "tf")),
        io("n", "write -q -P 1 100k 100k"),
        *job("blockdev-backup", device="n", target="t", sync="full"),
        *job("blockdev-backup", device="n", target="t", sync="full", compress=True),
        io("t", "read -q -P 1 100k 100k"),
        # QEMU writes a whole grain before a compressed one, so that its file is longer.
        *drop("t"),
        *job("block-stream", device="n"),
        NODES,
        io("n", "read -q -P 98 200k 824k"),
    ],
    "commit": [
        *create("x.vmdk", "vmdk", backing_file="$DIR/base.vmdk"),
        opened("x.vmdk", "vmdk"),
        io("n", "write -q -P 1 100k 100k"),
        *job("block-commit", device="n"),
        NODES,
    ],
    "a backing file of another format": [
        *create("x.vmdk", "vmdk", backing_file="$DIR/base.vmdk", size=2 * MIB),
        add("vmdk", "n", file=file("x.vmdk", "f"), backing={"driver": "raw", "file": file("base.raw", "r")}),
        NODES,
        io("n", "read 0 512", "read failed: Invalid argument\r\n"),
    ],
    "no backing file": [
        *create("x.vmdk", "vmdk", backing_file="$DIR/base.vmdk", size=2 * MIB),
        add("vmdk", "n", file=file("x.vmdk", "f"), backing=None),
        NODES,
        io("n", "read -q -P 0 0 2M"),
    ],
    "resize": [
        *create("x.vmdk", "vmdk"),
        opened("x.vmdk", "vmdk"),
        Do("block_resize", {"node-name": "n", "size": 3 * MIB}),
    ],
    "options": [
        *create("x.vmdk", "vmdk"),
        add("vmdk", "n"),
        add("vmdk", "n", file=file("x.vmdk"), nope=1),
        add("vmdk", "n", file=file("x.vmdk"), extents=[]),
        add("vmdk", "n", file=file("x.vmdk"), backing=1),
        add("vmdk", "m", file=file("x.vmdk"), read_only=True),
    ],
    "reopen": [
        *create("x.vmdk", "vmdk"),
        opened("x.vmdk", "vmdk"),
        io("n", "write -q -P 1 0 64k"),
        Do("blockdev-reopen", {"options": [{"driver": "vmdk", "node-name": "n", "file": "f", "read-only": True}]}),
        NODES,
        Do("blockdev-reopen", {"options": [{"driver": "vmdk", "node-name": "n", "file": "f", "read-only": False}]}),
        io("n", "write -q -P 2 64k 64k"),
        io("n", "read -q -P 1 0 64k"),
        NODES,
        CLOSE,
        same_bytes("x.vmdk"),
    ],
    "an overlay by name": [
        *create("x.vmdk", "vmdk"),
        opened("x.vmdk", "vmdk"),
        Do(
            "blockdev-snapshot-sync",
            {"node-name": "n", "snapshot-file": "$DIR/o.vmdk", "format": "vmdk", "snapshot-node-name": "o"},
        ),
        io("o", "write -q -P 1 0 1k"),
        NODES,
        Do("change-backing-file", {"device": "o", "image-node-name": "o", "backing-file": "other"}),
    ],
    "an overlay of a read-only image": [
        add("vmdk", "n", file=file("base.vmdk", "f"), read_only=True),
        Do(
            "blockdev-snapshot-sync",
            {"node-name": "n", "snapshot-file": "$DIR/o.vmdk", "format": "vmdk", "snapshot-node-name": "o"},
        ),
        NODES,
    ],
    "an ESX extent": [
        Call(lambda where: (where / "esx").write_bytes(ESX)),
        described('RW 4096 VMFSSPARSE "esx"', "vmfsSparse"),
        opened("d.vmdk", "vmdk", read_only=True),
        NODES,
        io("n", "read -q -P 101 0 4k"),
        io("n", "read -q -P 0 4k 100k"),
    ],
    "an SE sparse extent": [
        Call(lambda where: (where / "se").write_bytes(SE)),
        described('RW 8192 SESPARSE "se"', "seSparse"),
        opened("d.vmdk", "vmdk", read_only=True),
        NODES,
        io("n", "read -q -P 49 0 4k"),
        io("n", "read -q -P 0 4k 12k"),
        io("n", "read -q -P 48 16k 4k"),
        io("n", "read -q -P 0 20k 100k"),
    ],
    "broken SE sparse extents": [
        described('RW 8192 SESPARSE "se"', "seSparse"),
        *(
            step
            for word, value in [(0, 1), (1, 1), (3, 9), (4, 1), (5, 1), (7, 1), (40, 1), (64, 1), (67, 1), (80, 1)]
            for step in (
                Call(lambda where: (where / "se").write_bytes(SE)),
                patch("se", word * 8, struct.pack("<Q", value)),
                opened("d.vmdk", "vmdk", read_only=True),
            )
        ),
    ],
    "an overlay of another format": [
        add("raw", "n", file=file("base.raw", "f"), read_only=True),
        Do(
            "blockdev-snapshot-sync",
            {"node-name": "n", "snapshot-file": "$DIR/o.vmdk", "format": "vmdk", "snapshot-node-name": "o"},
            # QEMU sees it by the name of the format, we when the file is opened for its CID.
            ours={"error": {"class": "GenericError", "desc": "Invalid backing file format: raw. Must be vmdk"}},
        ),
        Call(lambda where: (where / "o.vmdk").exists()),
    ],
    "broken headers": [
        *create("x.vmdk", "vmdk"),
        *(
            step
            for offset, bad in [
                (4, b"\x04"),
                (4, b"\x03"),
                (22, b"\xff"),
                (44, b"\x01\x04"),
                (44, b"\0\0"),
                (20, b"\0"),
                (20, b"\1\0\x21"),
                (64, b"\xff\xff\xff"),
                (56, b"\xff" * 8),
                (0, b"x"),
                (12, b"\0" * 8),
            ]
            for step in (
                Call(lambda where: (where / "good").write_bytes((where / "x.vmdk").read_bytes())),
                patch("x.vmdk", offset, bad),
                BROKEN,
                CLOSE,
                Call(lambda where: (where / "x.vmdk").write_bytes((where / "good").read_bytes())),
            )
        ),
        put("x.vmdk", b""),
        BROKEN,
        put("x.vmdk", b"KDM"),
        BROKEN,
        put("x.vmdk", b"KDMV"),
        BROKEN,
        put("x.vmdk", b"COWD" + bytes(40)),
    ],
    "broken descriptors": [
        *(
            step
            for change in [
                described('RW 2048 FLAT "base.raw"'),
                described('RW 2048 FLAT "base.raw" -1'),
                described('RW 2048 FLAT "base.raw" 0 0\nRW 2048 VMFS "base.raw" 1'),
                described('RW 2048 SPARSE "base.raw" 1'),
                described('RW 2048 SPARSE "base.raw"'),
                described('RW 2048 SESPARSE "base.raw"', "seSparse"),
                described('RW 2048 FLAT "nope" 0'),
                described('RW 2048 FLAT "json:{}" 0'),
                described('RW 2048 FLAT "nbd:x" 0'),
                described('RW 2048 FLAT "base.raw" 0', "custom"),
                described('RW 2048 FLAT "base.raw" 0', "monolithicSparse"),
                described('RW 2048 FLAT "base.raw" 0', rest=""),
                described('RW 2048 FLAT "base.raw" 0', rest="CID=12\n"),
                described('RW 2048 FLAT "base.raw" 0', rest="CID=xx\nparentCID=ffffffff\n"),
                described('RW 2048 FLAT "base.raw" 0\nparentFileNameHint="base'),
                put("d.vmdk", 'version=1\ncreateType="vmfs'),
                put("d.vmdk", "version=1\n"),
            ]
            for step in (change, D)
        ),
    ],
    "descriptors": [
        described(
            'RW 1024 FLAT "base.raw" 512\nRW 1000 VMFS "$DIR/more.raw"\nRO 5 FLAT "nope" 0\nRW 0 FLAT "nope" 0\n'
            'RW 8 ZERO\nRW 2048 SPARSE "base.vmdk"',
            "vmfs",
        ),
        D,
        NODES,
        GRAPH,
        io("n", "read -q -P 97 0 512k"),
        io("n", "read -q -P 99 512k 500k"),
        io("n", "read -q -P 98 1012k 512"),
        io("n", "write -q -P 1 500k 700k"),
        CLOSE,
        same_bytes("d.vmdk", "base.raw", "more.raw", "base.vmdk"),
        described('RW 1024 FLAT "base.raw" 512\r\n', "vmfs", "CID=1234abcd\r\nparentCID=ffffffff\r\n"),
        add("vmdk", "n", file=file("d.vmdk", "f"), read_only=True),
        NODES,
    ],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_talk_is_that_of_the_daemon(name: str, images: QemuImages, tmp_path: Path) -> None:
    def prepare(where: Path) -> None:
        (where / "base.raw").write_bytes(b"a" * MIB)
        (where / "more.raw").write_bytes(b"c" * MIB)
        images.create(where / "base.vmdk", "1M", fmt="vmdk")
        images.io(where / "base.vmdk", "write -P 98 0 1M", fmt="vmdk")

    assert_same(CONVERSATIONS[name], tmp_path, prepare=prepare, real=SYSTEM_EMULATOR, ignore=IGNORE)


def filled(path: Path) -> Path:
    """A raw image with data, holes and an odd length."""
    rng = random.Random(1)
    path.write_bytes(
        rng.randbytes(300_000) + bytes(2 * MIB) + rng.randbytes(700_000) + bytes(3 * MIB) + rng.randbytes(480)
    )
    return path


@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_images_of_qemu_img_read_the_same_and_pass_its_check_when_written(
    subformat: str, images: QemuImages, tmp_path: Path
) -> None:
    raw, path = filled(tmp_path / "a.raw"), tmp_path / "a.vmdk"
    images.run("convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={subformat}", raw, path)
    content = bytearray(raw.read_bytes())
    bench = Bench(tmp_path)
    node = bench.add(driver="vmdk", node_name="n", file={"driver": "file", "filename": str(path)})
    assert get(node, 0, len(content)) == content
    assert get(node, 299_000, 5000) == content[299_000:304_000]
    if subformat != "streamOptimized":
        for offset, length in [(MIB, 300_000), (5 * MIB, 1000), (0, 700), (len(content) - 100, 100)]:
            node.write(offset, memoryview(b"\x55" * length))
            content[offset : offset + length] = b"\x55" * length
        node.write_zeroes(100_000, 200_000)
        content[100_000:300_000] = bytes(200_000)
    node.flush()
    bench.graph.close()
    raw.write_bytes(content)
    images.assert_identical(raw, path, a_format="raw", b_format="vmdk")
    images.check(path, fmt="vmdk")


@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_images_made_here_are_images_for_qemu_img(subformat: str, images: QemuImages, tmp_path: Path) -> None:
    bench, size = Bench(tmp_path), 3 * MIB + 512
    (tmp_path / "e").write_bytes(b"")
    extents = (
        []
        if subformat in ("monolithicSparse", "streamOptimized")
        else [{"driver": "file", "filename": str(tmp_path / "e")}]
    )
    path = make(bench, tmp_path / "a.vmdk", "vmdk", size, subformat=subformat, extents=extents)
    node = bench.add(driver="vmdk", node_name="n", file={"driver": "file", "filename": str(path)})
    content = bytearray(size)
    for offset, length in [(0, 65536), (MIB, 3 * 65536), (3 * MIB, 512)]:
        content[offset : offset + length] = random.Random(offset).randbytes(length)
        node.write(offset, memoryview(content[offset : offset + length]))
    bench.graph.close()
    raw = tmp_path / "a.raw"
    raw.write_bytes(content)
    images.assert_identical(raw, path, a_format="raw", b_format="vmdk")
    images.check(path, fmt="vmdk")
    assert images.info(path)["format-specific"]["data"]["create-type"] == subformat


def test_chain_with_backing_reads_like_qemu_img_and_shows_a_changed_backing_file(
    images: QemuImages, tmp_path: Path
) -> None:
    base, over = tmp_path / "base.vmdk", tmp_path / "over.vmdk"
    images.create(base, "4M", fmt="vmdk")
    images.io(base, "write -P 1 0 2M", fmt="vmdk")
    bench = Bench(tmp_path)
    make(bench, over, "vmdk", 4 * MIB, backing_file="base.vmdk")
    node = bench.add(driver="vmdk", node_name="n", file={"driver": "file", "filename": str(over)})
    node.write(1000, memoryview(b"x" * 5000))
    node.write(2 * MIB - 100, memoryview(b"y" * 200))
    content = bytearray(b"\1" * 2 * MIB + bytes(2 * MIB))
    content[1000:6000] = b"x" * 5000
    content[2 * MIB - 100 : 2 * MIB + 100] = b"y" * 200
    assert get(node, 0, 4 * MIB) == content
    bench.graph.close()
    raw = tmp_path / "a.raw"
    raw.write_bytes(content)
    images.assert_identical(raw, over, a_format="raw", b_format="vmdk")
    images.check(over, fmt="vmdk")


def test_grain_tables_added_to_an_esx_extent_are_read_by_qemu(images: QemuImages, tmp_path: Path) -> None:
    path, raw, size = tmp_path / "d.vmdk", tmp_path / "a.raw", 40 * MIB
    (tmp_path / "esx").write_bytes(b"COWD" + words("I", {0: 1, 1: 3, 2: size // 512, 3: 8, 4: 4, 5: 3, 6: 5}, 2556))
    path.write_text('version=1\nCID=1\nparentCID=ffffffff\ncreateType="vmfsSparse"\nRW 81920 VMFSSPARSE "esx"\n')
    bench = Bench(tmp_path)
    node = bench.add(driver="vmdk", node_name="n", file={"driver": "file", "filename": str(path)})
    content = bytearray(size)
    for offset, length in [(5000, 10_000), (17 * MIB, MIB), (16 * MIB - 100, 200), (size - 1000, 1000)]:
        content[offset : offset + length] = random.Random(offset).randbytes(length)
        node.write(offset, memoryview(content[offset : offset + length]))
    bench.graph.close()
    raw.write_bytes(content)
    images.assert_identical(raw, path, a_format="raw", b_format="vmdk")
    images.check(path, fmt="vmdk")


@pytest.mark.parametrize("flat", [False, True])
def test_check_finds_what_qemu_img_finds(flat: bool, images: QemuImages, tmp_path: Path) -> None:
    path = tmp_path / "a.vmdk"
    images.create(path, "8M", fmt="vmdk", subformat="monolithicFlat" if flat else "monolithicSparse")
    images.io(path, "write 0 8M", fmt="vmdk")
    if flat:
        (tmp_path / "a-flat.vmdk").write_bytes(b"")
    else:
        with open(path, "r+b") as image:
            image.truncate(5 * MIB)
    bench = Bench(tmp_path)
    node = bench.add(driver="vmdk", node_name="n", read_only=True, file={"driver": "file", "filename": str(path)})
    assert isinstance(node.driver, VmdkDriver)
    ours = node.driver.check()
    bench.graph.close()
    theirs = subprocess.run(["qemu-img", "check", path], capture_output=True, text=True, check=False, timeout=60)
    assert ours.corruptions == 1
    assert theirs.stderr.splitlines()[0].strip() == ours.messages[0], theirs
