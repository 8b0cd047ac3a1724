"""DirtyBitmap: what a node's writes leave in it."""

from pathlib import Path

from engine.bitmaps.dirty import DirtyBitmap, bitmaps_of, default_granularity
from tests.graphs import Bench


def test_writes_of_every_kind_set_bits(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    node = bench.raw("r", bytes(1 << 20), discard="unmap")
    bitmap = DirtyBitmap(node, 4096)
    node.write(0, memoryview(b"x" * 512))
    assert bitmap.count == 0
    bitmap.attach()
    assert bitmaps_of(node) == [bitmap]
    node.write(512, memoryview(b"x" * 512))
    node.write_zeroes(65536, 4097)
    node.discard(131072, 4096)
    areas = []
    while (area := bitmap.take_area(0, 1 << 20)) is not None:
        areas.append(area)
    assert areas == [(0, 4096), (65536, 8192), (131072, 4096)]
    assert bitmap.count == 0
    bitmap.enabled = False
    node.write(0, memoryview(b"x" * 512))
    assert bitmap.count == 0
    bitmap.enabled = True
    bitmap.detach()
    node.write(0, memoryview(b"x" * 512))
    assert bitmap.count == 0
    assert default_granularity(node) == 65536
    bench.graph.close()
