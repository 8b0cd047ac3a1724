"""An engine, and chains it makes itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.engine import Engine


@pytest.fixture
def engine() -> Iterator[Engine]:
    found = Engine()
    yield found
    found.close()


def make_chain(engine: Engine, folder: Path, overlays: int = 1, *, size: int = 1 << 20) -> list[Path]:
    """Make base.raw and qcow2 overlays with the engine alone; nothing of it stays open. Base first."""
    base = folder / "base.raw"
    with base.open("wb") as file:
        file.truncate(size)
    paths = [base]
    name = "make0"
    engine.execute(
        "blockdev-add",
        {"driver": "raw", "node-name": name, "file": {"driver": "file", "filename": str(base), "node-name": "make0-f"}},
    )
    engine.execute("blockdev-add", {"driver": "raw", "node-name": "hold", "file": name})
    for number in range(1, overlays + 1):
        path = folder / f"overlay{number}.qcow2"
        arguments = {"node-name": name, "snapshot-node-name": f"make{number}", "snapshot-file": str(path)}
        engine.execute("blockdev-snapshot-sync", arguments)
        paths.append(path)
        name = f"make{number}"
    engine.execute("blockdev-del", {"node-name": "hold"})
    engine.execute("blockdev-del", {"node-name": "make0"})
    assert not engine.graph.nodes
    return paths
