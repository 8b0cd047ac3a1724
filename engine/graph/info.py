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


class ImageInfo(Struct):
    """Facts of an image. Sizes are bytes; actual_size is what it takes on the host, backing files not included."""

    filename: str
    format: str
    dirty_flag: bool | None = None
    actual_size: Int | None = None
    virtual_size: Int
    cluster_size: Int | None = None
    encrypted: bool | None = None
    compressed: bool | None = None
    backing_filename: str | None = None
    full_backing_filename: str | None = None
    backing_filename_format: str | None = None
    snapshots: list[SnapshotInfo] | None = None
    backing_image: ImageInfo | None = None
    format_specific: ImageInfoSpecific | None = None
