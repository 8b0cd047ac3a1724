"""commit_top and mirror_top: filters that only block jobs put into the graph; no option makes one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

from engine.graph.driver import FilterDriver, Opening
from engine.graph.edge import Edge
from engine.graph.node import Node
from engine.graph.permissions import Perm
from engine.qapi import Struct

if TYPE_CHECKING:
    from engine.graph.driver import Driver
    from engine.graph.graph import Graph


class NoOptions(Struct):
    """These filters have none."""


class JobFilterDriver(FilterDriver):
    """Passes everything on to its one child, which sits in the ``backing`` slot."""

    Options = NoOptions
    sees_no_data = True

    def open(self, opening: Opening) -> None:
        raise AssertionError

    def exact_filename(self) -> str | None:
        # These filters go by the name of what is below them, plain or not.
        below = self.node.filtered
        return below.child.filename if below is not None else None


class CommitTopDriver(JobFilterDriver):
    """Above the top of an intermediate commit: takes nothing from the layers below, which are not consistent."""

    name = "commit_top"

    def child_permissions(self, edge: Edge, perm: Perm, shared: Perm, *, writable: bool) -> tuple[Perm, Perm]:
        return Perm.NONE, Perm.ALL


class GuestWrites(Protocol):
    """Takes a guest's writes to more places than the source; *to_source* does the part of the source."""

    def write(self, to_source: Callable[[], None], offset: int, data: memoryview, flags: int) -> None: ...

    def write_zeroes(self, to_source: Callable[[], None], offset: int, length: int, flags: int) -> None: ...


class MirrorTopDriver(JobFilterDriver):
    """Above the source of a mirror or an active commit.

    active_commit: the target is in the source's own chain. stopped: the job is over and wants nothing of the child.
    active: takes the guest's writes to the target as well, in a write-blocking mirror. Discards end here, as the node
    never has ``discard_unmap``: the target keeps what the source might lose.
    """

    name = "mirror_top"
    active_commit = False
    stopped = False
    active: GuestWrites | None = None

    def write(self, offset: int, data: memoryview, flags: int = 0) -> None:
        active = self.active
        if active is None:
            self.filtered.write(offset, data, flags)
        else:
            active.write(partial(self.filtered.write, offset, data, flags), offset, data, flags)

    def write_zeroes(self, offset: int, length: int, flags: int = 0) -> None:
        active = self.active
        if active is None:
            self.filtered.write_zeroes(offset, length, flags)
        else:
            active.write_zeroes(partial(self.filtered.write_zeroes, offset, length, flags), offset, length, flags)

    def child_permissions(self, edge: Edge, perm: Perm, shared: Perm, *, writable: bool) -> tuple[Perm, Perm]:
        if self.stopped:
            return Perm.NONE, Perm.ALL
        if self.active_commit:
            # The job unshares consistent reads of everything above the base; and were writing not shared here, it
            # would not be at the base either, through the backing links, and the job would lock itself out.
            return Perm(perm & ~Perm.CONSISTENT_READ), Perm(shared | Perm.WRITE)
        return perm, shared


def new_filter_node(graph: Graph, driver: type[Driver], name: str | None, *, read_only: bool) -> Node:
    """A node for a job's filter, pinned and without a child; implicit, with a generated name, when *name* is None.

    Errors: GenericError (the name).
    """
    node = Node(graph, "", driver)
    node.read_only = read_only
    graph.name_node(node, name)
    node.options = {"driver": driver.name} | ({"node-name": name} if name is not None else {})
    node.pins = 1
    node.never_freeze = True
    node.implicit = name is None
    return node
