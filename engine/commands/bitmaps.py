"""Dirty bitmaps: block-dirty-bitmap-* and their transaction actions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from engine.bitmaps.dirty import (
    SMALLEST_GRANULARITY,
    DirtyBitmap,
    Refuse,
    add_bitmap,
    default_granularity,
    find_bitmap,
    merge_checked,
)
from engine.errors import GenericError
from engine.qapi import Alternate, Struct, UInt32, Wire, command
from engine.transaction.action import Action
from engine.transaction.actions import ActionContext, action, perform

if TYPE_CHECKING:
    from engine.bitmaps.hbitmap import HBitmap
    from engine.engine import Engine


class BlockDirtyBitmap(Struct):
    """A dirty bitmap that there is.

    node: the node, or device, it belongs to
    name: its name
    """

    node: str
    name: str


class BlockDirtyBitmapAdd(Struct):
    """A dirty bitmap to be made.

    node: the node, or device, whose writes it records
    name: its name, at most 1023 bytes
    granularity: bytes a bit stands for, a power of two from 512; by default the cluster size between 4 and 64 KiB
    persistent: store it in the image when that is closed
    disabled: do not record yet
    """

    node: str
    name: str
    granularity: UInt32 | None = None
    persistent: bool | None = None
    disabled: bool | None = None


BlockDirtyBitmapOrStr = Annotated[
    BlockDirtyBitmap | str,
    Alternate("BlockDirtyBitmapOrStr", local=str, external=BlockDirtyBitmap),
]
"""A bitmap of the node in question, by its name, or one of any node."""


class BlockDirtyBitmapMerge(Struct):
    """Bitmaps to put together.

    node: the node, or device, of the target
    target: name of the bitmap that gets the bits of the others
    bitmaps: the others
    """

    node: str
    target: str
    bitmaps: list[BlockDirtyBitmapOrStr]


class BlockDirtyBitmapSha256(Struct):
    """sha256: hash of a bitmap's bits, hexadecimal."""

    sha256: Annotated[str, Wire("sha256")]


def look_up(engine: Engine, node: str, name: str) -> DirtyBitmap:
    """The bitmap *name* of the node or device *node*. Errors: GenericError."""
    try:
        found = engine.graph.find_either(node)
    except GenericError:
        raise GenericError(f"Node '{node}' not found") from None
    bitmap = find_bitmap(found, name)
    if bitmap is None:
        raise GenericError(f"Dirty bitmap '{name}' not found")
    return bitmap


# -- actions ---------------------------------------------------------------------------------------------------------


@action("block-dirty-bitmap-add", data=BlockDirtyBitmapAdd, since="2.5")
class BitmapAddAction(Action):
    """Makes a bitmap; taken back, it is gone again. Nothing is written to the image before the image is closed."""

    def __init__(self, context: ActionContext, data: BlockDirtyBitmapAdd) -> None:
        self._engine = context.engine
        self._data = data
        self._bitmap: DirtyBitmap | None = None

    def prepare(self) -> None:
        data = self._data
        if not data.name:
            raise GenericError("Bitmap name cannot be empty")
        node = self._engine.graph.find_either(data.node)
        granularity = data.granularity
        if granularity is None:
            granularity = default_granularity(node)
        elif granularity < SMALLEST_GRANULARITY or granularity & (granularity - 1):
            raise GenericError(f"Granularity must be power of 2 and at least {SMALLEST_GRANULARITY}")
        if data.persistent:
            node.driver.check_bitmap_storable(data.name, granularity)
        self._bitmap = bitmap = add_bitmap(node, granularity, data.name)
        bitmap.enabled = not data.disabled
        bitmap.persistent = bool(data.persistent)

    def abort(self) -> None:
        if self._bitmap is not None:
            self._bitmap.detach()


class _OnBitmap(Action):
    """What the actions on a bitmap that exists have in common."""

    def __init__(self, context: ActionContext, data: BlockDirtyBitmap) -> None:
        self._engine = context.engine
        self._data = data
        self._bitmap: DirtyBitmap | None = None
        """Set once it was changed."""

    def look_up(self, refuse: Refuse) -> DirtyBitmap:
        bitmap = look_up(self._engine, self._data.node, self._data.name)
        bitmap.check(refuse)
        return bitmap


@action("block-dirty-bitmap-remove", data=BlockDirtyBitmap, since="4.2")
class BitmapRemoveAction(_OnBitmap):
    """Removes a bitmap, from the image too. That is done at once; taken back, it will be stored again on closing."""

    def prepare(self) -> None:
        bitmap = self.look_up(Refuse.BUSY | Refuse.READONLY)
        if bitmap.persistent:
            bitmap.node.driver.remove_stored_bitmap(self._data.name)
        self._bitmap = bitmap
        bitmap.skip_store = bitmap.busy = True

    def commit(self) -> None:
        bitmap = self._bitmap
        assert bitmap is not None
        bitmap.busy = False
        bitmap.detach()

    def abort(self) -> None:
        if self._bitmap is not None:
            self._bitmap.skip_store = self._bitmap.busy = False


@action("block-dirty-bitmap-clear", data=BlockDirtyBitmap, since="2.5")
class BitmapClearAction(_OnBitmap):
    """Clears all bits; they are kept aside for taking it back."""

    _bits: HBitmap
    _recorded: int

    def prepare(self) -> None:
        bitmap = self.look_up(Refuse.TO_CHANGE)
        self._bits = bitmap.clear()
        self._recorded = bitmap.recorded
        self._bitmap = bitmap

    def abort(self) -> None:
        if self._bitmap is not None:
            self._bitmap.restore_bits(self._bits, self._recorded)


class _Switch(_OnBitmap):
    """Switches recording on or off."""

    enabled: bool
    _was_enabled = False

    def prepare(self) -> None:
        bitmap = self.look_up(Refuse.TO_READ)
        self._was_enabled = bitmap.enabled
        bitmap.enabled = self.enabled
        self._bitmap = bitmap

    def abort(self) -> None:
        if self._bitmap is not None:
            self._bitmap.enabled = self._was_enabled


@action("block-dirty-bitmap-enable", data=BlockDirtyBitmap, since="4.0")
class BitmapEnableAction(_Switch):
    """Begins to record."""

    enabled = True


@action("block-dirty-bitmap-disable", data=BlockDirtyBitmap, since="4.0")
class BitmapDisableAction(_Switch):
    """Stops recording."""

    enabled = False


@action("block-dirty-bitmap-merge", data=BlockDirtyBitmapMerge, since="4.0")
class BitmapMergeAction(Action):
    """Adds the bits of other bitmaps to one; those it had are kept aside for taking it back."""

    def __init__(self, context: ActionContext, data: BlockDirtyBitmapMerge) -> None:
        self._engine = context.engine
        self._data = data
        self._target: DirtyBitmap | None = None
        self._bits: HBitmap | None = None
        self._recorded = 0

    def prepare(self) -> None:
        data = self._data
        target = look_up(self._engine, data.node, data.target)
        if not data.bitmaps:
            # QEMU 7.2 ends with a crash here.
            raise GenericError("Parameter 'bitmaps' must name at least one bitmap")
        for item in data.bitmaps:
            if isinstance(item, str):
                source = find_bitmap(target.node, item)
                if source is None:
                    raise GenericError(f"Dirty bitmap '{item}' not found")
            else:
                source = look_up(self._engine, item.node, item.name)
            if self._bits is None:
                target.check(Refuse.TO_CHANGE)
                self._recorded = target.recorded
                self._target, self._bits = target, target.copy_bits()
            merge_checked(target, source)

    def abort(self) -> None:
        if self._target is not None and self._bits is not None:
            self._target.restore_bits(self._bits, self._recorded)


# -- commands --------------------------------------------------------------------------------------------------------


@command(name="block-dirty-bitmap-add", since="2.4", boxed=True, allow_preconfig=True)
def bitmap_add(engine: Engine, data: BlockDirtyBitmapAdd) -> None:
    """Make a dirty bitmap."""
    perform(engine, BitmapAddAction, data)


@command(name="block-dirty-bitmap-remove", since="2.4", boxed=True, allow_preconfig=True)
def bitmap_remove(engine: Engine, data: BlockDirtyBitmap) -> None:
    """Remove a dirty bitmap, stored ones from the image too."""
    perform(engine, BitmapRemoveAction, data)


@command(name="block-dirty-bitmap-clear", since="2.4", boxed=True, allow_preconfig=True)
def bitmap_clear(engine: Engine, data: BlockDirtyBitmap) -> None:
    """Mark everything clean."""
    perform(engine, BitmapClearAction, data)


@command(name="block-dirty-bitmap-enable", since="4.0", boxed=True, allow_preconfig=True)
def bitmap_enable(engine: Engine, data: BlockDirtyBitmap) -> None:
    """Let a bitmap record writes."""
    perform(engine, BitmapEnableAction, data)


@command(name="block-dirty-bitmap-disable", since="4.0", boxed=True, allow_preconfig=True)
def bitmap_disable(engine: Engine, data: BlockDirtyBitmap) -> None:
    """Let a bitmap stay as it is."""
    perform(engine, BitmapDisableAction, data)


@command(name="block-dirty-bitmap-merge", since="4.0", boxed=True, allow_preconfig=True)
def bitmap_merge(engine: Engine, data: BlockDirtyBitmapMerge) -> None:
    """Add the bits of bitmaps to another; if one can't be merged, none is."""
    perform(engine, BitmapMergeAction, data)


@command(name="x-debug-block-dirty-bitmap-sha256", since="2.10", features=("unstable",), allow_preconfig=True)
def bitmap_sha256(engine: Engine, *, node: str, name: str) -> BlockDirtyBitmapSha256:
    """Hash the bits of a dirty bitmap, for comparing.

    node: the node, or device, it belongs to
    name: its name
    """
    return BlockDirtyBitmapSha256(sha256=look_up(engine, node, name).sha256())
