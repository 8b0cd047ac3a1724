"""What a mirror is asked to do."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from engine.graph.node import Node
from engine.jobs.types import BlockdevOnError

DEFAULT_BUFFER = 16 << 20


class TargetBacking(enum.Enum):
    """What becomes of the target's backing image when the copy is good (QEMU's BlockMirrorBackingMode)."""

    LEAVE = enum.auto()
    SOURCE_CHAIN = enum.auto()
    """It gets the source's (none when everything was copied)."""
    OPEN_CHAIN = enum.auto()
    """What its header names is opened."""


@dataclass(frozen=True)
class MirrorSettings:
    """How to mirror.

    base: the layer of the source's chain below those that are copied; None for everything. only_new: copy new writes
    alone. backing: see TargetBacking. zero_target: the target may hold anything, so zeros count. granularity: bytes a
    bit of the bitmap stands for, 0 for the default. buf_size: bytes copied at once, 0 for the default. unmap: zeros may
    become holes. write_blocking: writes go to both at once. replaces: name of the node that the target takes the place
    of instead of the source.
    """

    base: Node | None = None
    only_new: bool = False
    backing: TargetBacking = TargetBacking.LEAVE
    zero_target: bool = False
    granularity: int = 0
    buf_size: int = 0
    on_source_error: BlockdevOnError = BlockdevOnError.REPORT
    on_target_error: BlockdevOnError = BlockdevOnError.REPORT
    unmap: bool = True
    write_blocking: bool = False
    replaces: str | None = None
