"""The values that cross the interface between nodes and drivers: extents, flags, limits, plans, states of a reopen."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from engine.graph.options import PreallocMode
from engine.graph.permissions import Perm, Role
from engine.qapi.keyval import crumple

if TYPE_CHECKING:
    from engine.graph.backend import BlockBackend
    from engine.graph.edge import Edge
    from engine.graph.node import Node

Buffer = bytes | bytearray | memoryview
"""Payload of a write. Reads fill a writable ``memoryview`` of format ``B``."""


class Status(enum.IntFlag):
    """Flags of an extent (QEMU's BDRV_BLOCK_*)."""

    NONE = 0
    DATA = 0x01
    ZERO = 0x02
    OFFSET_VALID = 0x04
    RAW = 0x08
    ALLOCATED = 0x10
    EOF = 0x20
    RECURSE = 0x40
    COMPRESSED = 0x80


class Extent(NamedTuple):
    """A run of bytes that answers "what is at this offset?".

    length: bytes, at least 1. flags: Status bits, as a plain int (tests of int bits are several times as fast).
    node, offset: with OFFSET_VALID (or RAW), the node the bytes are found in and the offset there.
    """

    length: int
    flags: int
    node: Node | None = None
    offset: int = 0


class WriteFlag(enum.IntFlag):
    """Flags of write, write_zeroes and discard."""

    NONE = 0
    FUA = 0x1
    MAY_UNMAP = 0x2
    NO_FALLBACK = 0x4
    COMPRESSED = 0x8
    UNCHANGED = 0x10
    """The data equals what a read would return (copy-on-read, stream): needs WRITE_UNCHANGED only."""


Prealloc = PreallocMode


@dataclass(slots=True)
class Limits:
    """Limits of requests, in bytes. Alignments are powers of two; 0 for a maximum means unlimited."""

    request_alignment: int = 1
    max_transfer: int = 0
    opt_transfer: int = 0
    write_zeroes_alignment: int = 0
    discard_alignment: int = 0


class Opening(Protocol):
    """What a driver's open() gets from the graph: its typed options and the way to open children."""

    @property
    def options(self) -> Any:
        """An instance of the driver's ``Options`` struct, validated."""

    @property
    def read_only(self) -> bool:
        """Whether the node is to be opened read-only."""

    @property
    def filename(self) -> str:
        """The file name the node was opened by, or ''."""

    @property
    def for_check(self) -> bool:
        """Whether the image is opened to be checked: one that needs it before it may be written is not refused."""

    def fall_back_to_read_only(self, message: str) -> None:
        """Make the node read-only if auto-read-only allows it; else raise GenericError(*message*)."""

    def open_child(
        self,
        name: str,
        role: Role,
        *,
        filename: str | None = None,
        required: bool = True,
        parse_filename: bool = True,
        probe: bool = False,
    ) -> Edge | None:
        """Open (or reference) the child that the options give under *name* and attach it to the node.

        filename: used when the options name none. parse_filename: whether ``json:`` and protocol prefixes are
        honoured in it (never for names found inside images, save backing files). probe: probe a missing format,
        else a missing driver means a protocol driver. ``NAME.0`` means the first in the list NAME.
        """

    def child_count(self, name: str) -> int:
        """How many children the options list under *name*. Errors: GenericError when it is no list."""


@dataclass(slots=True)
class WritePlan:
    """Host space reserved for a caller that puts the data there itself (in-kernel copies).

    extents: (node, offset there, length) runs in guest order; each node is a protocol node.
    commit: makes the data visible; call it after the data is written. abort: gives the space back.
    """

    extents: list[tuple[Node, int, int]]
    commit: Callable[[], None]
    abort: Callable[[], None]


@dataclass(slots=True)
class DriverInfo:
    """What a node tells of its format (QEMU's BlockDriverInfo)."""

    cluster_size: int = 0
    vm_state_offset: int = 0
    is_dirty: bool | None = None


class CreateContext(Protocol):
    """What a driver's create() gets: blocking calls that are safe in a job's thread."""

    def open(self, reference: str | Mapping[str, Any], perm: Perm, shared: Perm) -> BlockBackend:
        """A BlockBackend on the node named *reference*, or on a new node opened by these options (wire form).

        Where they tell no driver, their "filename" is the name of an image.
        """

    def close(self, backend: BlockBackend) -> None:
        """Give the BlockBackend back (and its node, if open() made it)."""

    def node_filename(self, reference: str) -> str:
        """The file name of an open node."""

    def open_fdset(self, path: str, flags: int) -> int:
        """Open a set of passed descriptors, by its path /dev/fdset/N. Errors: GenericError."""

    def close_fdset(self, fd: int) -> None:
        """Close what open_fdset() returned."""


class ReopenState:
    """One node's part in a reopen: the new options and flags, and room for the driver's prepared state.

    options: the driver's new options (its ``Options`` struct), or None when they stay as they are. effective,
    explicit: all new options, those given by the user alone, as flat wire names. references: what is asked for
    children that are replaced, or only named. prepared: the driver's own.
    """

    __slots__ = (
        "node",
        "options",
        "read_only",
        "auto_read_only",
        "cache_direct",
        "cache_no_flush",
        "discard_unmap",
        "detect_zeroes",
        "explicit",
        "effective",
        "references",
        "keeps_old",
        "says_backing",
        "prepared",
    )

    def __init__(self, node: Node, options: Any, read_only: bool) -> None:
        self.node = node
        self.options = options
        self.read_only = read_only
        self.auto_read_only = node.auto_read_only
        self.cache_direct = node.cache_direct
        self.cache_no_flush = node.cache_no_flush
        self.discard_unmap = node.discard_unmap
        self.detect_zeroes = node.detect_zeroes
        self.explicit: dict[str, Any] = {}
        self.effective: dict[str, Any] = {}
        self.references: dict[str, Any] = {}
        self.keeps_old = False
        self.says_backing = False
        self.prepared: Any = None

    def take_effect(self) -> None:
        """Give the node its new flags and options; the driver follows."""
        node = self.node
        node.read_only = self.read_only
        node.auto_read_only = self.auto_read_only
        node.cache_direct = self.cache_direct
        node.cache_no_flush = self.cache_no_flush
        node.discard_unmap = self.discard_unmap
        node.detect_zeroes = self.detect_zeroes
        node.explicit_options = crumple(self.explicit)
        node.options = crumple(self.effective)
