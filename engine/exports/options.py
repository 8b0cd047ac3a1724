"""What a block export is made from, as QMP has it."""

from __future__ import annotations

from typing import Annotated

from engine.graph.options import OnOffAuto
from engine.qapi import Alternate, Enum, Size, Struct, UInt16, Union, event
from engine.sockets.addresses import SocketAddress


class BlockExportType(Enum):
    """How a node is offered to others.

    nbd: through the NBD server
    vhost-user-blk: a virtio disk on a socket of its own
    fuse: a file on the host
    vduse-blk: a virtio disk of the host's kernel
    """

    NBD = "nbd"
    VHOST_USER_BLK = "vhost-user-blk"
    FUSE = "fuse"
    VDUSE_BLK = "vduse-blk"


class BlockExportRemoveMode(Enum):
    """safe: only an export that nobody uses. hard: whoever uses it is cut off."""

    SAFE = "safe"
    HARD = "hard"


class BlockDirtyBitmapAt(Struct):
    """The dirty bitmap *name* of *node*."""

    node: str
    name: str


BlockDirtyBitmapOrStr = Annotated[
    BlockDirtyBitmapAt | str,
    Alternate("BlockDirtyBitmapOrStr", local=str, external=BlockDirtyBitmapAt),
]
"""A bitmap's name, or its node and name."""


class BlockExportOptionsNbdBase(Struct):
    """name: what clients ask for, the node's name if absent. description: shown to clients, at most 4096 bytes."""

    name: str | None = None
    description: str | None = None


class BlockExportOptionsNbd(BlockExportOptionsNbdBase):
    """An NBD export.

    bitmaps: dirty bitmaps that clients may ask for as qemu:dirty-bitmap:NAME; a name alone is looked for in the
    backing chain. allocation_depth: clients may ask which layer of the chain holds the data (qemu:allocation-depth).
    """

    bitmaps: list[BlockDirtyBitmapOrStr] | None = None
    allocation_depth: bool | None = None


class BlockExportOptionsVhostUserBlk(Struct):
    """A virtio-blk device for a virtual machine of another process. addr: a Unix socket or a file descriptor."""

    addr: SocketAddress
    logical_block_size: Size | None = None
    num_queues: UInt16 | None = None


class BlockExportOptionsFuse(Struct):
    """A file of the host. mountpoint: a file that becomes the disk. growable: writes past its end make it longer."""

    mountpoint: str
    growable: bool | None = None
    allow_other: OnOffAuto | None = None


class BlockExportOptionsVduseBlk(Struct):
    """A virtio-blk device of the host's kernel. name: of the device."""

    name: str
    num_queues: UInt16 | None = None
    queue_size: UInt16 | None = None
    logical_block_size: Size | None = None
    serial: str | None = None


class BlockExportOptions(Union, tag="type"):
    """A block export.

    id: its name among all exports. node_name: the node to export. writable: clients may write; false by default.
    writethrough: every write is on stable storage when it is answered. iothread: the iothread that is to serve it.
    fixed_iothread: the node can't be moved to another while it is exported.
    """

    type: BlockExportType
    id: str
    fixed_iothread: bool | None = None
    iothread: str | None = None
    node_name: str
    writable: bool | None = None
    writethrough: bool | None = None


BlockExportOptions.add_branch("nbd", BlockExportOptionsNbd)
BlockExportOptions.add_branch("vhost-user-blk", BlockExportOptionsVhostUserBlk)
BlockExportOptions.add_branch("fuse", BlockExportOptionsFuse)
BlockExportOptions.add_branch("vduse-blk", BlockExportOptionsVduseBlk)


class BlockExportInfo(Struct):
    """A block export. shutting_down: its removal has begun."""

    id: str
    type: BlockExportType
    node_name: str
    shutting_down: bool


@event("BLOCK_EXPORT_DELETED")
class BlockExportDeleted(Struct):
    """A block export has gone, and its id is free."""

    id: str
