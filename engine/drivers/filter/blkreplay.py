"""blkreplay: in QEMU it gives requests their places in a recorded run; without a record or replay it passes all on.

There is no record and replay here, so passing on is all there is to do.
"""

from __future__ import annotations

from engine.graph.driver import FilterDriver, Opening, register
from engine.graph.options import BlockdevRef
from engine.graph.permissions import Role
from engine.qapi import Struct


class BlockdevOptionsBlkreplay(Struct):
    """image: what requests go to."""

    image: BlockdevRef


@register
class BlkreplayDriver(FilterDriver):
    """The blkreplay filter."""

    name = "blkreplay"
    Options = BlockdevOptionsBlkreplay
    child_options = frozenset({"image"})

    def open(self, opening: Opening) -> None:
        opening.open_child("image", Role.FILTERED | Role.PRIMARY)
