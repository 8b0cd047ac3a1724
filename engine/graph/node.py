"""Node: one opened driver instance and its place in the graph; ``engine.graph.requests`` has its request path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.graph.blockers import OpBlockers
from engine.graph.driver import Limits
from engine.graph.permissions import Perm, Role
from engine.graph.requests import RequestPath

if TYPE_CHECKING:
    from engine.graph.driver import Driver
    from engine.graph.edge import Edge
    from engine.graph.graph import Graph
    from engine.objects.iothread import IOThread

_COW, _FILTERED, _PRIMARY = int(Role.COW), int(Role.FILTERED), int(Role.PRIMARY)


class Node(RequestPath):
    """One block node. Graph fields are changed on the control plane alone; I/O methods run in any thread."""

    def __init__(self, graph: Graph, name: str, driver: type[Driver]) -> None:
        super().__init__()
        self.graph = graph
        self.name = name
        self.auto_name = False
        self.driver: Driver = driver(self)
        self.options: dict[str, Any] = {}
        """Effective options, wire names; children given inline are left out."""
        self.explicit_options: dict[str, Any] = {}
        """Options the user gave for this node."""
        self.children: dict[str, Edge] = {}
        self.parents: list[Edge] = []
        self.inherits_from: Node | None = None
        self.monitor_owned = False
        self.implicit = False
        self.pins = 0
        """References held by running operations; the node is not closed while there are any."""
        self.never_freeze = False
        self.blockers = OpBlockers()
        self.opened = False
        """The driver's open() has succeeded, so its close() will be called."""
        self.closed = False

        self.read_only = False
        self.pending_read_only: bool | None = None
        self.auto_read_only = False
        self.force_share = False
        self.cache_direct = False
        self.cache_no_flush = False
        self.discard_unmap = False
        self.detect_zeroes = "off"
        self.probed_raw = False

        self.filename = ""
        """Name to show: plain, or ``json:`` with the options needed to open the node again."""
        self.exact_filename = ""
        self.full_options: dict[str, Any] = {}
        self.auto_backing_file = ""
        """Backing file name of the image header, '' for none."""
        self.auto_backing_format = ""
        self.followed_backing: tuple[str, str] | None = None
        """(the header's string, name of the node that was opened for it), where the header was followed."""
        self.backing_overridden = False
        self.no_backing = False
        """The user asked for no backing node although the header may name one."""
        self.error: str | None = None
        """What is wrong with the image, as the driver found out while it was in use."""
        self.ejected = False
        """The image turned out to be so corrupt that it must not be used any more: as a drive without a medium."""
        self.broken_links: dict[str, tuple[str, str]] = {}
        """Child name → (file name, error) of links that could not be opened and were tolerated."""

        self._iothread: IOThread | None = None
        self.quiesce_count = 0

    def __repr__(self) -> str:
        return f"<Node {self.name} {self.driver.name}>"

    # -- graph -----------------------------------------------------------------------------------------------

    @property
    def parent_kind(self) -> str:
        return "node"

    @property
    def parent_name(self) -> str:
        return self.name

    @property
    def stays_at_node(self) -> bool:
        return False

    def describe_edge(self, edge: Edge) -> str:
        return f"node '{self.name}'"

    @property
    def limits(self) -> Limits:
        return self.driver.limits

    @property
    def writable(self) -> bool:
        """Whether the node is writable, a pending reopen taken into account."""
        return not (self.read_only if self.pending_read_only is None else self.pending_read_only)

    @property
    def file(self) -> Edge | None:
        return self.children.get("file")

    @property
    def backing(self) -> Edge | None:
        """The COW child's edge."""
        edge = self.children.get("backing")
        return edge if edge is not None and edge.role_bits & _COW else None

    @property
    def filtered(self) -> Edge | None:
        """The one child a filter passes through."""
        if not self.driver.is_filter:
            return None
        return self._child_with(_FILTERED)

    @property
    def filter_or_cow(self) -> Edge | None:
        return self.filtered or self.backing

    @property
    def primary(self) -> Edge | None:
        """The child whose file name stands for the node."""
        return self._child_with(_PRIMARY)

    def _child_with(self, role: int) -> Edge | None:
        for edge in self.children.values():
            if edge.role_bits & role:
                return edge
        return None

    @property
    def device_name(self) -> str:
        """Name of the device whose root this node is, '' for none."""
        names = (edge.parent.parent_name for edge in self.parents if edge.parent.parent_kind == "device")
        return next(filter(None, names), "")

    @property
    def device_or_node_name(self) -> str:
        return self.device_name or self.name

    def cumulative_permissions(self) -> tuple[Perm, Perm]:
        """(taken by any parent, shared by all parents)."""
        taken, shared = Perm.NONE, Perm.ALL
        for edge in self.parents:
            taken |= edge.perm
            shared &= edge.shared
        return taken, shared

    @property
    def iothread(self) -> IOThread | None:
        """The iothread that serves the node's users, None for the engine's own threads. Control plane."""
        return self._iothread

    @iothread.setter
    def iothread(self, iothread: IOThread | None) -> None:
        old, self._iothread = self._iothread, iothread
        if old is not None:
            old.release(self)
        if iothread is not None:
            iothread.hold(self)

    # -- drain -----------------------------------------------------------------------------------------------

    def drained_begin(self) -> None:
        self.quiesce_count += 1
        if self.quiesce_count == 1:
            self.driver.drained_begin()
            for edge in reversed(self.parents):  # newest first, as QEMU goes
                edge.quiesces_parent = True
                edge.parent.drained_begin()

    def drained_wait(self) -> None:
        for edge in reversed(self.parents):
            if edge.quiesces_parent:
                edge.parent.drained_wait()
        self.driver.drained_wait()

    def drained_end(self) -> None:
        self.quiesce_count -= 1
        if self.quiesce_count == 0:
            self.driver.drained_end()
            for edge in reversed(self.parents):  # newest first, as QEMU goes
                if edge.quiesces_parent:
                    edge.quiesces_parent = False
                    edge.parent.drained_end()

    # -- reports of the driver -------------------------------------------------------------------------------

    def report_corruption(self, message: str, offset: int | None, size: int | None, fatal: bool) -> None:
        """Tell the control plane that the image's metadata is broken (event BLOCK_IMAGE_CORRUPTED). Any thread."""
        if fatal:
            self.ejected = True
        self.graph.report_corruption(self, message, offset, size, fatal)
