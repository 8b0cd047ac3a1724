"""The metadata caches keep to their options, however much of an image is used and whether or not anybody flushes."""

from __future__ import annotations

import gc
import random
from pathlib import Path

import pytest

from engine.drivers.format.qcow2.cache import Table
from engine.drivers.format.qcow2.options import BlockdevOptionsQcow2
from engine.graph.options import PreallocMode
from tests.engine.drivers.qcow2.support import make, opened, qemu_check


@pytest.mark.parametrize("writing", [False, True], ids=["reads", "writes"])
def test_tables_in_memory_are_bounded(tmp_path: Path, writing: bool) -> None:
    path = tmp_path / "image.qcow2"
    size = 256 << 20
    make(path, size, cluster_size=4096, preallocation=PreallocMode.OFF if writing else PreallocMode.METADATA)
    options = BlockdevOptionsQcow2(file="-", l2_cache_size=8 * 4096, refcount_cache_size=4 * 4096)
    rng = random.Random(1)
    with opened(path, options=options) as image:
        buffer = memoryview(bytearray(512))
        most = 0
        for count in range(2000):
            offset = rng.randrange(0, size, 512)
            if writing:
                image.write(offset, b"x" * 512)
            else:
                image.read(offset, buffer)
            if count % 200 == 0:
                gc.collect()
                alive = sum(isinstance(each, Table) for each in gc.get_objects())
                most = max(most, alive)
    assert most <= 8 + 4 + 4
    qemu_check(path)
