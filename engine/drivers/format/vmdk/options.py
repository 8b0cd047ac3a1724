"""The vmdk driver's part of the schema."""

from __future__ import annotations

from engine.graph.info import ImageInfo
from engine.graph.options import BlockdevOptionsGenericCOWFormat, BlockdevRef
from engine.qapi import Enum, Int, Size, Struct


class BlockdevOptionsVmdk(BlockdevOptionsGenericCOWFormat):
    """Options of vmdk nodes: those of every format with a backing file."""


class BlockdevVmdkSubformat(Enum):
    """How an image is laid out: one file or several, with tables or flat, compressed.

    monolithicSparse: one file that grows
    monolithicFlat: a descriptor and one file of full length
    twoGbMaxExtentSparse: files of up to 2 GB that grow
    twoGbMaxExtentFlat: files of up to 2 GB of full length
    streamOptimized: compressed, written once from beginning to end
    """

    MONOLITHICSPARSE = "monolithicSparse"
    MONOLITHICFLAT = "monolithicFlat"
    TWOGBMAXEXTENTSPARSE = "twoGbMaxExtentSparse"
    TWOGBMAXEXTENTFLAT = "twoGbMaxExtentFlat"
    STREAMOPTIMIZED = "streamOptimized"


class BlockdevVmdkAdapterType(Enum):
    """The disk controller that the descriptor names.

    ide: IDE
    buslogic: BusLogic SCSI
    lsilogic: LSI Logic SCSI
    legacyESX: the adapter of old ESX servers
    """

    IDE = "ide"
    BUSLOGIC = "buslogic"
    LSILOGIC = "lsilogic"
    LEGACYESX = "legacyESX"


class BlockdevCreateOptionsVmdk(Struct):
    """A new vmdk image.

    file: node for the image, or for its descriptor where the data have files of their own. size: virtual size, bytes.
    extents: nodes for these files. subformat: default monolithicSparse. backing_file: what the descriptor names;
    it is opened for its CID. adapter_type: default ide. hwversion: default "4". toolsversion: default "2147483647".
    zeroed_grain: grains of zeros need no space (default: off).
    """

    file: BlockdevRef
    size: Size
    extents: list[BlockdevRef] | None = None
    subformat: BlockdevVmdkSubformat | None = None
    backing_file: str | None = None
    adapter_type: BlockdevVmdkAdapterType | None = None
    hwversion: str | None = None
    toolsversion: str | None = None
    zeroed_grain: bool | None = None


class ImageInfoSpecificVmdk(Struct):
    """What a vmdk image says of itself. cid: changes with the data. parent_cid: the backing file's when made."""

    create_type: str
    cid: Int
    parent_cid: Int
    extents: list[ImageInfo]
