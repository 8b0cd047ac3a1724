"""Edges: a parent's link to a child node, and what a parent has to answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from engine.graph.driver import Extent, Prealloc
from engine.graph.permissions import Perm, Role

if TYPE_CHECKING:
    from engine.graph.node import Node


class Parent(Protocol):
    """Whatever holds an edge: a node, a block back end (device, export, job I/O, command), or a job."""

    @property
    def parent_kind(self) -> str:
        """node, device, job, export, or user."""

    @property
    def parent_name(self) -> str:
        """Name to show; '' for an unnamed back end."""

    @property
    def stays_at_node(self) -> bool:
        """Whether the edges stay where they are when a node is replaced (a job's do)."""

    def describe_edge(self, edge: Edge) -> str:
        """The parent as permission errors name it, e.g. ``node 'x'``."""

    def drained_begin(self) -> None:
        """Start no new request into the child."""

    def drained_wait(self) -> None:
        """Block until no request of this parent is in flight."""

    def drained_end(self) -> None:
        """Undo one drained_begin."""


def held_together(parent: Parent) -> list[Node]:
    """The nodes that *parent* works on at a time: a block job's; none for others."""
    edges: list[Edge] = getattr(parent, "edges", [])
    return [edge.child for edge in edges]


class Edge:
    """A parent → child link with its role, the permissions taken and those shared with others.

    The data-plane methods are those of the child; they may run in any thread.
    """

    __slots__ = ("parent", "child", "name", "role", "role_bits", "perm", "shared", "frozen", "quiesces_parent")

    def __init__(self, parent: Parent, child: Node, name: str, role: Role, perm: Perm, shared: Perm) -> None:
        self.parent = parent
        self.child = child
        self.name = name
        self.role = role
        self.role_bits = int(role)  # tests of plain bits are several times as fast
        self.perm = perm
        self.shared = shared
        self.frozen = False
        self.quiesces_parent = False

    def __repr__(self) -> str:
        return f"<Edge {self.parent.parent_name!r} -{self.name}-> {self.child.name!r}>"

    @property
    def length(self) -> int:
        return self.child.length

    def read(self, offset: int, buffer: memoryview) -> None:
        self.child.read(offset, buffer)

    def write(self, offset: int, data: memoryview, flags: int = 0) -> None:
        self.child.write(offset, data, flags)

    def write_zeroes(self, offset: int, length: int, flags: int = 0) -> None:
        self.child.write_zeroes(offset, length, flags)

    def discard(self, offset: int, length: int) -> None:
        self.child.discard(offset, length)

    def flush(self) -> None:
        self.child.flush()

    def block_status(self, offset: int, length: int, want_zero: bool = True) -> Extent:
        return self.child.block_status(offset, length, want_zero)

    def truncate(self, length: int, *, exact: bool = True, prealloc: Prealloc = Prealloc.OFF) -> None:
        self.child.truncate(length, exact=exact, prealloc=prealloc)
