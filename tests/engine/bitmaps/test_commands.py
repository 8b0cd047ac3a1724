"""Dirty bitmap commands where QEMU 7.2 is no example: it crashes, or its main loop lets no guest write come between."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.bitmaps.dirty import find_bitmap
from engine.commands.bitmaps import (
    BitmapAddAction,
    BitmapClearAction,
    BitmapMergeAction,
    BitmapRemoveAction,
    BlockDirtyBitmap,
    BlockDirtyBitmapAdd,
    BlockDirtyBitmapMerge,
)
from engine.engine import Engine
from engine.errors import GenericError
from engine.graph.node import Node
from engine.transaction.action import Action, run
from engine.transaction.actions import ActionContext

MIB = 1 << 20


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = Engine()
    (tmp_path / "r.raw").write_bytes(bytes(MIB))
    file = {"driver": "file", "filename": str(tmp_path / "r.raw")}
    engine.execute("blockdev-add", {"driver": "raw", "node-name": "n", "file": file})
    for name in ("a", "b"):
        engine.execute("block-dirty-bitmap-add", {"node": "n", "name": name, "granularity": 4096})
    yield engine
    engine.close()


def node_of(engine: Engine) -> Node:
    return engine.graph.nodes["n"]


def dirty(engine: Engine, name: str) -> list[tuple[int, int]]:
    bitmap = find_bitmap(node_of(engine), name)
    assert bitmap is not None
    return list(bitmap.areas())


def write(engine: Engine, offset: int) -> None:
    node_of(engine).write(offset, memoryview(b"x"))


def act(verb: str, name: str) -> dict[str, Any]:
    return {"type": f"block-dirty-bitmap-{verb}", "data": {"node": "n", "name": name}}


@pytest.mark.parametrize("verb", ["clear", "enable", "disable", "remove"])
def test_an_unknown_bitmap_in_a_transaction(engine: Engine, verb: str) -> None:
    with pytest.raises(GenericError) as told:
        engine.execute("transaction", {"actions": [act("disable", "a"), act(verb, "unknown")]})
    assert told.value.desc == "Dirty bitmap 'unknown' not found"
    write(engine, 0)
    assert dirty(engine, "a") == [(0, 4096)]


def test_merging_nothing(engine: Engine) -> None:
    with pytest.raises(GenericError, match="'bitmaps' must name at least one bitmap"):
        engine.execute("block-dirty-bitmap-merge", {"node": "n", "target": "a", "bitmaps": []})
    merge = {"type": "block-dirty-bitmap-merge", "data": {"node": "n", "target": "a", "bitmaps": []}}
    with pytest.raises(GenericError, match="'bitmaps' must name at least one bitmap"):
        engine.execute("transaction", {"actions": [merge]})


class GuestWrites(Action):
    """Stands for a guest that writes in the middle of a transaction."""

    def __init__(self, engine: Engine, offset: int) -> None:
        self._engine, self._offset = engine, offset

    def prepare(self) -> None:
        write(self._engine, self._offset)


class Fails(Action):
    def prepare(self) -> None:
        raise GenericError("as wanted")


def undo(engine: Engine, *actions: Action) -> None:
    with pytest.raises(GenericError, match="as wanted"):
        engine.control.call(lambda: run([*actions, Fails()]))


def test_what_guests_write_in_between_is_kept_when_a_transaction_is_undone(engine: Engine) -> None:
    context = ActionContext(engine)
    write(engine, 0)
    b = BlockDirtyBitmap(node="n", name="b")
    undo(engine, BitmapClearAction(context, b), GuestWrites(engine, 8192))
    assert dirty(engine, "b") == [(0, 4096), (8192, 4096)]
    engine.execute("block-dirty-bitmap-clear", {"node": "n", "name": "b"})
    merge = BlockDirtyBitmapMerge(node="n", target="b", bitmaps=["a"])
    undo(engine, BitmapMergeAction(context, merge))
    assert dirty(engine, "b") == []
    undo(engine, BitmapMergeAction(context, merge), GuestWrites(engine, 65536))
    assert (65536, 4096) in dirty(engine, "b")
    undo(engine, BitmapRemoveAction(context, b), GuestWrites(engine, 131072))
    assert (131072, 4096) in dirty(engine, "b")


def test_a_failed_transaction_leaves_no_new_bitmap_behind(engine: Engine) -> None:
    undo(engine, BitmapAddAction(ActionContext(engine), BlockDirtyBitmapAdd(node="n", name="new")))
    trackers = node_of(engine).trackers
    assert find_bitmap(node_of(engine), "new") is None
    assert len(trackers) == 2
