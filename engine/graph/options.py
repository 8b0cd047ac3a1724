"""Options of nodes as the schema names them: BlockdevOptions, BlockdevRef, BlockdevCreateOptions.

Drivers add their own branches (``engine.graph.driver.register``).
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

from engine.qapi import Alternate, Enum, Null, Struct, Union

CACHE_MODES: Final = {
    "off": (True, False, True),
    "none": (True, False, True),
    "directsync": (True, False, False),
    "writeback": (False, False, True),
    "unsafe": (False, True, True),
    "writethrough": (False, False, False),
}
"""What the old names of cache modes mean: (cache.direct, cache.no-flush, cache.writeback)."""


class BlockdevDiscardOptions(Enum):
    """What a discard request does: nothing, or reach the host.

    ignore: discards are dropped
    unmap: discards free space in the image or on the host
    """

    IGNORE = "ignore"
    UNMAP = "unmap"


class BlockdevDetectZeroesOptions(Enum):
    """Whether writes of zeros become zero writes.

    off: zeros are written like other data
    on: zeros become zero writes
    unmap: zero writes that may also free the space; needs discard=unmap
    """

    OFF = "off"
    ON = "on"
    UNMAP = "unmap"


class OnOffAuto(Enum):
    """on, off, or what is best.

    auto: what fits best
    on: in any case
    off: never
    """

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class PreallocMode(Enum):
    """Host space a new or grown image takes at once: none, for metadata, all by fallocate, all by writing.

    off: no space is taken before it is needed
    metadata: tables are written, data is not
    falloc: space for everything is reserved on the host
    full: everything is written with zeros
    """

    OFF = "off"
    METADATA = "metadata"
    FALLOC = "falloc"
    FULL = "full"


class BlockPermission(Enum):
    """What the parent of an edge may do, or lets others do.

    consistent-read: read meaningful data
    write: change data
    write-unchanged: write what is there already
    resize: change the length
    """

    CONSISTENT_READ = "consistent-read"
    WRITE = "write"
    WRITE_UNCHANGED = "write-unchanged"
    RESIZE = "resize"


class BlockdevCacheOptions(Struct):
    """Cache mode of a node. direct: go past the host's page cache. no_flush: pass flushes over, unsafe."""

    direct: bool | None = None
    no_flush: bool | None = None


class BlockdevOptions(Union, tag="driver", tag_enum="BlockdevDriver"):
    """Options of a block node; the branch is the driver's own.

    driver: the format, protocol or filter
    node_name: how to call the node; one is made up if absent
    discard: what discard requests do (default: ignore)
    cache: how the host's cache is used
    read_only: open without the right to write (default: off)
    auto_read_only: fall back to read-only where writing is not possible
    force_share: let others write to the image meanwhile; read-only nodes only
    detect_zeroes: whether writes of zeros become zero writes (default: off)
    """

    node_name: str | None = None
    discard: BlockdevDiscardOptions | None = None
    cache: BlockdevCacheOptions | None = None
    read_only: bool | None = None
    auto_read_only: bool | None = None
    force_share: bool | None = None
    detect_zeroes: BlockdevDetectZeroesOptions | None = None


BlockdevRef: TypeAlias = Annotated[
    BlockdevOptions | str, Alternate("BlockdevRef", definition=BlockdevOptions, reference=str)
]
"""A new node by its options, or an existing one by name."""

BlockdevRefOrNull: TypeAlias = Annotated[
    BlockdevOptions | str | Null,
    Alternate("BlockdevRefOrNull", definition=BlockdevOptions, reference=str, null=Null),
]
"""As BlockdevRef; null means none at all."""


class BlockdevOptionsGenericFormat(Struct):
    """Options of every format and filter that has one ``file`` child. file: the node that the bytes are in."""

    file: BlockdevRef


class BlockdevOptionsGenericCOWFormat(BlockdevOptionsGenericFormat):
    """Options of formats with a backing file."""

    backing: BlockdevRefOrNull | None = None


class BlockdevCreateOptions(Union, tag="driver", tag_enum="BlockdevDriver"):
    """What image blockdev-create makes; the branch is the format's own."""


class BlockdevAmendOptions(Union, tag="driver", tag_enum="BlockdevDriver"):
    """What x-blockdev-amend changes; the branch is the format's own."""


GENERIC_OPTIONS: frozenset[str] = frozenset(
    {"driver", "node-name", "discard", "cache", "read-only", "auto-read-only", "force-share", "detect-zeroes"}
)
"""Wire names of the options that belong to every node."""
