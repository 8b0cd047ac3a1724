"""What drivers tell of their images beside the common facts: the unions of query results that grow with the drivers."""

from __future__ import annotations

from engine.qapi import Int, Struct, Union


class ImageInfoSpecific(Union, tag="type", tag_enum="ImageInfoSpecificKind"):
    """Facts of one image format, in ``data``; a driver's branch is its ``SpecificInfo``."""

    type: str


class BlockStatsSpecific(Union, tag="driver", tag_enum="BlockdevDriver"):
    """Counters of one driver; its branch is the driver's ``SpecificStats``."""

    driver: str


class SnapshotInfo(Struct):
    """An internal snapshot. vm_state_size: bytes. date: since the epoch. vm_clock: since the guest's start."""

    id: str
    name: str
    vm_state_size: Int
    date_sec: Int
    date_nsec: Int
    vm_clock_sec: Int
    vm_clock_nsec: Int
    icount: Int | None = None
