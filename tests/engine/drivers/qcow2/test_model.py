"""A short run of the model test on every shape; scripts/bench/qcow2_model.py makes the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.drivers.qcow2.model import Shape, play, shapes

TINY_CACHE = {"l2-cache-size": 2048, "l2-cache-entry-size": 512, "refcount-cache-size": 1}


@pytest.mark.interop
@pytest.mark.usefixtures("qemu_img")
@pytest.mark.parametrize("shape", shapes(), ids=lambda shape: str(shape.name))
def test_chain_behaves_like_an_array_of_bytes(shape: Shape, tmp_path: Path) -> None:
    operations = 60 if shape.cluster > 1 << 20 else 360
    assert play(shape, tmp_path, 7, operations, 6) == operations
    if shape.cluster <= 1 << 20:
        play(shape, tmp_path, 8, 180, 3, TINY_CACHE)
