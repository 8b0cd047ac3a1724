"""bochs, cloop and dmg: images read as they were made, by us and by the real qemu-img; broken ones are refused."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import GenericError
from engine.graph.node import Node
from engine.graph.opening import open_node
from tests.engine.drivers.formats import samples
from tests.engine.drivers.formats.model import get
from tests.graphs import Bench

SIZE = 70 * 512
KINDS = (samples.RAW, samples.ZLIB)


def holes(size: int = SIZE, seed: int = 1) -> bytes:
    """Sectors of random bytes and of zeros."""
    pick = random.Random(seed)
    return b"".join(pick.randbytes(512) if pick.random() < 0.6 else bytes(512) for _ in range(size // 512))


def padded(content: bytes, block: int) -> bytes:
    return content + bytes(-len(content) % block)


IMAGES = {
    "bochs-v2": ("bochs", samples.bochs(holes()), holes()),
    "bochs-v1": ("bochs", samples.bochs(holes(seed=2), version=0x10000), holes(seed=2)),
    "bochs-small-extents": ("bochs", samples.bochs(holes(), extent=512), holes()),
    "bochs-empty": ("bochs", samples.bochs(bytes(SIZE)), bytes(SIZE)),
    "cloop": ("cloop", samples.cloop(holes()), padded(holes(), 4096)),
    "cloop-sectors": ("cloop", samples.cloop(holes(), block=512), holes()),
    "cloop-one-block": ("cloop", samples.cloop(holes(), block=65536), padded(holes(), 65536)),
    "dmg": ("dmg", samples.dmg(holes(), KINDS), holes()),
    "dmg-resources": ("dmg", samples.dmg(holes(), KINDS, resources=True), holes()),
    "dmg-zeros": ("dmg", samples.dmg(bytes(SIZE), (samples.ZERO, samples.IGNORE)), bytes(SIZE)),
    "dmg-trailing-bytes": ("dmg", samples.dmg(holes(), KINDS) + bytes(100), holes()),
}
BY_US = {"dmg-bzip2": ("dmg", samples.dmg(holes(), (samples.BZIP2, samples.ZLIB)), holes())}


def opened(bench: Bench, driver: str, image: bytes, **options: Any) -> Node:
    path = bench.file("image", image)
    settings: dict[str, Any] = {"read_only": True} | options
    return bench.add(driver=driver, node_name="n", file={"driver": "file", "filename": path}, **settings)


@pytest.mark.parametrize("name", IMAGES | BY_US)
def test_reads_what_was_stored(bench: Bench, name: str) -> None:
    driver, image, content = (IMAGES | BY_US)[name]
    node = opened(bench, driver, image)
    assert node.length == len(content)
    assert get(node, 0, node.length) == content
    pick = random.Random(3)
    for _ in range(100):
        offset = pick.randrange(len(content))
        length = min(pick.randrange(1, 9000), len(content) - offset)
        assert get(node, offset, length) == content[offset : offset + length]


@pytest.mark.parametrize("name", IMAGES)
def test_the_real_one_reads_the_same(bench: Bench, tmp_path: Path, name: str) -> None:
    if shutil.which("qemu-img") is None:
        pytest.skip("qemu-img is not installed")
    driver, image, content = IMAGES[name]
    (tmp_path / "image").write_bytes(image)
    subprocess.run(
        ["qemu-img", "convert", "-f", driver, "-O", "raw", tmp_path / "image", tmp_path / "out"], check=True, timeout=30
    )
    assert (tmp_path / "out").read_bytes() == content


@pytest.mark.parametrize(("name", "suffix"), [("bochs-v2", ""), ("bochs-v1", ""), ("cloop", ""), ("dmg", ".dmg")])
def test_formats_are_probed(bench: Bench, name: str, suffix: str) -> None:
    driver, image, _ = IMAGES[name]
    path = bench.file("image" + suffix, image)
    node = open_node(bench.graph, {"read-only": True}, filename=path)
    assert node.driver.name == driver
    bench.graph.unpin(node)


@pytest.mark.parametrize("name", ["bochs-v2", "cloop", "dmg"])
def test_never_writable(bench: Bench, name: str) -> None:
    driver, image, _ = IMAGES[name]
    with pytest.raises(GenericError, match="Image is read-only"):
        opened(bench, driver, image, read_only=False)
    node = opened(bench, driver, image, read_only=False, auto_read_only=True)
    assert node.read_only


def changed(image: bytes, *changes: tuple[int, bytes]) -> bytes:
    raw = bytearray(image)
    for at, value in changes:
        raw[at : at + len(value)] = value
    return bytes(raw)


BOCHS, CLOOP, DMG = (IMAGES[name][1] for name in ("bochs-v2", "cloop", "dmg"))
TRAILER = len(DMG) - 512


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def too_many_sectors(kind: int = samples.ZLIB, sectors: int = 131073, size: int = 10) -> bytes:
    return samples.dmg_around(bytes(512), [samples.dmg_table([(kind, 0, sectors, 0, size)])], 8)


BROKEN = {
    "bochs magic": ("bochs", changed(BOCHS, (0, b"b")), "Image not in Bochs format"),
    "bochs kind": ("bochs", changed(BOCHS, (48, b"Volatile\0")), "Image not in Bochs format"),
    "bochs version": ("bochs", changed(BOCHS, (64, u32(0x30000))), "Image not in Bochs format"),
    "bochs catalog": ("bochs", changed(BOCHS, (72, u32(0x100001))), "Catalog size is too large"),
    "bochs short catalog": ("bochs", changed(BOCHS, (72, u32(3))), "Catalog size is too small for this disk size"),
    "bochs extent 0": ("bochs", changed(BOCHS, (80, u32(0))), "Extent size must be at least 512"),
    "bochs extent 513": ("bochs", changed(BOCHS, (80, u32(513))), "Extent size 513 is not a power of two"),
    "bochs extent 16M": ("bochs", changed(BOCHS, (80, u32(1 << 24))), "Extent size 16777216 is too large"),
    "cloop block 0": ("cloop", changed(CLOOP, (128, bytes(4))), "block_size cannot be zero"),
    "cloop block 513": ("cloop", changed(CLOOP, (128, b"\0\0\2\1")), "block_size 513 must be a multiple of 512"),
    "cloop block 128M": ("cloop", changed(CLOOP, (128, b"\x08\0\0\0")), "block_size 134217728 must be 64 MB or less"),
    "cloop blocks": ("cloop", changed(CLOOP, (132, b"\xff\xff\xff\xff")), "n_blocks 4294967295 must be 536870911 or"),
    "cloop table": ("cloop", changed(CLOOP, (132, b"\x10\0\0\0")), "image requires too many offsets, try increasing"),
    "cloop order": ("cloop", changed(CLOOP, (144, bytes(8))), "offsets not monotonically increasing at index 1"),
    "cloop far": ("cloop", changed(CLOOP, (144, b"\x10" * 8)), "invalid compressed block size at index 1"),
    "cloop table past the end": ("cloop", changed(CLOOP, (132, b"\0\1\0\0")), "image file is corrupt"),
    "dmg short": ("dmg", b"", "dmg file must be at least 512 bytes long"),
    "dmg trailer": ("dmg", changed(DMG, (TRAILER, b"x")), "Could not locate UDIF trailer in dmg file"),
    "dmg data fork": ("dmg", changed(DMG, (TRAILER + 0x18, b"\1" * 8)), "Invalid argument"),
    "dmg no list": ("dmg", changed(DMG, (TRAILER + 0xE0, bytes(8))), "Invalid argument"),
    "dmg list outside": ("dmg", changed(DMG, (TRAILER + 0xD8, b"\1" * 8)), "Invalid argument"),
    "dmg long list": ("dmg", changed(DMG, (TRAILER + 0xE0, b"\0\0\0\1" * 2)), "Invalid argument"),
    "dmg xml": ("dmg", DMG.replace(b"</data>", b"</dato>"), "Invalid argument"),
    "dmg sectors": ("dmg", too_many_sectors(), "Invalid argument"),
    "dmg length": ("dmg", too_many_sectors(sectors=8, size=1 << 27), "Invalid argument"),
    "dmg length of the disk": ("dmg", changed(DMG, (TRAILER + 0x1EC, b"\x7f" * 8)), "File too large"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_image_is_refused(bench: Bench, case: str) -> None:
    driver, image, text = BROKEN[case]
    with pytest.raises((GenericError, OSError), match=text):
        opened(bench, driver, image)


def test_zero_chunks_may_be_long(bench: Bench) -> None:
    node = opened(bench, "dmg", too_many_sectors(samples.ZERO, 1 << 30, 0))
    assert get(node, 0, 4096) == bytes(4096)


def _zlib_at(image: bytes) -> int:
    return image.index(b"\x78\x9c") + 10


UNREADABLE = {
    "cloop": ("cloop", changed(CLOOP, (_zlib_at(CLOOP), b"\xff" * 20))),
    "cloop short block": ("cloop", changed(samples.cloop(bytes(4096)), (128, b"\0\0\x20\0"))),
    "cloop long block": ("cloop", changed(samples.cloop(bytes(8192), block=8192), (128, b"\0\0\x10\0"))),
    "dmg zlib": ("dmg", changed(samples.dmg(holes(), (samples.ZLIB,)), (30, b"\xff" * 20))),
    "dmg bzip2": ("dmg", changed(samples.dmg(holes(), (samples.BZIP2,)), (300, bytes(20)))),
    "dmg lzfse": ("dmg", samples.dmg(holes(), (samples.LZFSE,))),
    "dmg adc": ("dmg", samples.dmg(holes(), (samples.ADC,))),
    "dmg gap": ("dmg", samples.dmg_around(bytes(512), [samples.dmg_table([(samples.ZERO, 3, 3, 0, 0)])], 8)),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_cannot_be_unpacked_is_an_error(bench: Bench, case: str) -> None:
    driver, image = UNREADABLE[case]
    node = opened(bench, driver, image)
    with pytest.raises(OSError, match="Input/output error"):
        get(node, 0, 512)


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(["bochs-v2", "cloop", "dmg", "dmg-resources"]),
    changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_random_damage_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, changes: list[tuple[int, int]]
) -> None:
    driver, image, _ = IMAGES[name]
    # The header of one, the trailer of the other.
    spots = [at % 600 if driver != "dmg" else max(len(image) - 1 - at % 3000, 0) for at, _ in changes]
    bench = Bench(tmp_path_factory.mktemp("fuzz"))
    try:
        broken = changed(image, *((spot, bytes([value])) for spot, (_, value) in zip(spots, changes, strict=True)))
        node = opened(bench, driver, broken)
        get(node, 0, 65536)
    except (GenericError, OSError):
        pass
    finally:
        bench.graph.close()
