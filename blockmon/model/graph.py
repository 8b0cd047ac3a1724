"""A block graph at one moment: nodes, parents that are not nodes, and the edges between; and what changed since."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import InitVar, dataclass, field
from functools import cached_property
from operator import attrgetter
from types import MappingProxyType
from typing import Any

PERMISSIONS = ("consistent-read", "write", "write-unchanged", "resize")
"""Every permission an edge can take or share, in QEMU's order (QAPI ``BlockPermission``)."""


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A block node. Sizes in bytes; *allocated* is what it takes on the host's disk, None where that has no meaning."""

    name: str
    driver: str = ""
    filename: str = ""
    read_only: bool = False
    size: int = 0
    allocated: int | None = None
    monitor_owned: bool = False
    implicit: bool = False
    filter: bool = False
    auto_name: bool = False
    encrypted: bool = False
    backing_file: str | None = None
    backing_format: str | None = None
    cluster_size: int | None = None
    busy: tuple[str, ...] = ()
    error: str | None = None
    bitmaps: int = 0
    """How many named dirty bitmaps it has."""


@dataclass(frozen=True, slots=True)
class ParentInfo:
    """A parent that is no node: *kind* is device, job, export, monitor or user."""

    id: str
    kind: str
    name: str
    model: str | None = None

    @property
    def key(self) -> str:
        """What identifies it among everything that can be a parent; no node name contains a colon."""
        return f"{self.kind}:{self.id}"


@dataclass(frozen=True, slots=True)
class EdgeInfo:
    """A parent's link to a child node. *child* is None where the link is broken; *error* then says why."""

    parent: str
    """A node name, or the key of a `ParentInfo`."""
    parent_kind: str
    name: str
    child: str | None
    roles: tuple[str, ...] = ()
    perm: frozenset[str] = frozenset()
    shared: frozenset[str] = frozenset()
    frozen: bool = False
    filename: str | None = None
    error: str | None = None

    @property
    def key(self) -> tuple[str, str, str | None]:
        """What identifies the edge from one snapshot to the next."""
        return (self.parent, self.name, self.child)


@dataclass(frozen=True, slots=True)
class IoCounters:
    """What a node has read and written since it was opened."""

    rd_bytes: int = 0
    rd_ops: int = 0
    wr_bytes: int = 0
    wr_ops: int = 0


@dataclass(frozen=True, slots=True)
class _Source:
    """Members of an answer to ``x-blockmon-query-graph`` as they came."""

    nodes: Mapping[str, Mapping[str, Any]]
    edges: tuple[Mapping[str, Any], ...]


_NO_EDGES: tuple[EdgeInfo, ...] = ()
_PARENT_OF, _CHILD_OF = attrgetter("parent"), attrgetter("child")


def _index(
    found: dict[str, tuple[EdgeInfo, ...]], edges: Iterable[EdgeInfo], key_of: Callable[[EdgeInfo], str]
) -> None:
    """Put *edges* into *found* by what *key_of* says of each."""
    lists: dict[str, list[EdgeInfo]] = {}
    for edge in edges:
        lists.setdefault(key_of(edge), []).append(edge)
    found.update((key, tuple(listed)) for key, listed in lists.items())


@dataclass(frozen=True)
class GraphModel:
    """An immutable snapshot. Order is that of the source."""

    generation: int = 0
    nodes: Mapping[str, NodeInfo] = field(default_factory=dict)
    parents: Mapping[str, ParentInfo] = field(default_factory=dict)
    edges: tuple[EdgeInfo, ...] = ()
    counters: Mapping[str, IoCounters] = field(default_factory=dict)
    permissions_known: bool = True
    """False where the server does not tell what its links take and share; theirs are empty then."""
    source: _Source | None = field(default=None, repr=False, compare=False)
    """What it was made from, so that the next snapshot can share what did not change."""
    _below: Mapping[str, tuple[EdgeInfo, ...]] = field(init=False, repr=False, compare=False)
    _above: Mapping[str, tuple[EdgeInfo, ...]] = field(init=False, repr=False, compare=False)

    alike: InitVar[GraphModel | None] = None
    """A snapshot that shares most edges with this one, from which it is indexed much faster."""

    def __post_init__(self, alike: GraphModel | None) -> None:
        below: dict[str, tuple[EdgeInfo, ...]] = {}
        above: dict[str, tuple[EdgeInfo, ...]] = {}
        downwards = upwards = self.edges
        if alike is not None:
            # A link to one child moves past the others only as it is taken away and put in again, which is a change.
            had, have = set(map(id, alike.edges)), set(map(id, self.edges))
            other = [edge for edge in alike.edges if id(edge) not in have]
            other += [edge for edge in self.edges if id(edge) not in had]
            parents, children = {edge.parent for edge in other}, {edge.child for edge in other}
            below = {key: edges for key, edges in alike._below.items() if key not in parents}
            above = {key: edges for key, edges in alike._above.items() if key not in children}
            downwards = tuple(edge for edge in self.edges if edge.parent in parents)
            upwards = tuple(edge for edge in self.edges if edge.child in children)
        _index(below, downwards, _PARENT_OF)
        _index(above, (edge for edge in upwards if edge.child is not None), _CHILD_OF)
        object.__setattr__(self, "_below", MappingProxyType(below))
        object.__setattr__(self, "_above", MappingProxyType(above))

    def children(self, parent: str) -> tuple[EdgeInfo, ...]:
        """The edges from *parent* (a node name or the key of a parent) down."""
        return self._below.get(parent, _NO_EDGES)

    def parents_of(self, node: str) -> tuple[EdgeInfo, ...]:
        """The edges that end in *node*."""
        return self._above.get(node, _NO_EDGES)

    def child(self, parent: str, name: str) -> EdgeInfo | None:
        """The edge called *name* from *parent*, if there is one."""
        return next((edge for edge in self.children(parent) if edge.name == name), None)

    def backing(self, node: str) -> EdgeInfo | None:
        """The edge to what *node* shows where it holds no data of its own: ``backing``, or a filter's child."""
        info = self.nodes.get(node)
        if info is not None and info.filter:
            filtered = next((edge for edge in self.children(node) if "filtered" in edge.roles), None)
            if filtered is not None:
                return filtered
        return self.child(node, "backing")

    def parent_label(self, key: str) -> str:
        """How to call a parent in one word or two: its name, or its kind where it has none."""
        info = self.parents.get(key)
        if info is None:
            return key
        return info.name or info.id or info.kind

    def jobs_on(self, node: str) -> tuple[EdgeInfo, ...]:
        """The edges that jobs hold on *node*."""
        return tuple(edge for edge in self.parents_of(node) if edge.parent_kind == "job")

    def active_layer(self, node: str) -> str:
        """The topmost node of the chain that *node* is in: the first one up that no node has as a backing child."""
        seen = {node}
        current = node
        while True:
            step = next(
                (
                    edge.parent
                    for edge in self.parents_of(current)
                    if edge.parent_kind == "node" and ({"cow", "filtered"} & set(edge.roles) or edge.name == "backing")
                ),
                None,
            )
            if step is None or step in seen:
                return current
            seen.add(step)
            current = step

    @cached_property
    def leaves(self) -> tuple[str, ...]:
        """Names of the nodes without children: where bytes come from and go to."""
        return tuple(name for name in self.nodes if not any(edge.child is not None for edge in self.children(name)))

    @cached_property
    def broken(self) -> int:
        """How many edges lead nowhere."""
        return sum(edge.child is None for edge in self.edges)

    @cached_property
    def unused(self) -> tuple[str, ...]:
        """Names of the nodes that nothing takes part in but the monitor and nameless users."""
        return tuple(
            name
            for name in self.nodes
            if all(edge.parent_kind in ("monitor", "user") for edge in self.parents_of(name))
        )

    def with_counters(self, counters: Mapping[str, IoCounters]) -> GraphModel:
        """The same graph with other counters; all else is shared with this one."""
        return self._with(counters=counters)

    def with_nodes(self, items: Iterable[Mapping[str, Any]]) -> GraphModel:
        """The same graph with *items*, which it has, as an answer to ``x-blockmon-query-graph`` has nodes."""
        nodes, counters = dict(self.nodes), dict(self.counters)
        raw = dict(self.source.nodes) if self.source is not None else {}
        for item in items:
            name = str(item["node-name"])
            raw[name] = item
            node, counters[name] = _node(item), _counters(item)
            if node != nodes.get(name):
                nodes[name] = node
        source = None if self.source is None else _Source(raw, self.source.edges)
        return self._with(nodes=nodes, counters=counters, source=source)

    def _with(self, **members: Any) -> GraphModel:
        # Not replace(), which would look at every edge again.
        other = copy.copy(self)
        for name, value in members.items():
            object.__setattr__(other, name, value)
        return other


@dataclass(frozen=True, slots=True)
class GraphDiff:
    """What changed from one snapshot to the next. Counters are told apart, for they change all the time."""

    nodes_added: tuple[str, ...] = ()
    nodes_removed: tuple[str, ...] = ()
    nodes_changed: tuple[str, ...] = ()
    parents_changed: tuple[str, ...] = ()
    edges_added: tuple[EdgeInfo, ...] = ()
    edges_removed: tuple[EdgeInfo, ...] = ()
    edges_changed: tuple[EdgeInfo, ...] = ()
    io_nodes: tuple[str, ...] = ()

    @property
    def shape(self) -> bool:
        """True where the tree has other rows than before."""
        return bool(
            self.nodes_added or self.nodes_removed or self.parents_changed or self.edges_added or self.edges_removed
        )

    @property
    def rows(self) -> bool:
        """True where some row shows something else than before."""
        return self.shape or bool(self.nodes_changed or self.edges_changed)

    def __bool__(self) -> bool:
        return self.rows or bool(self.io_nodes)


def diff(old: GraphModel, new: GraphModel) -> GraphDiff:
    """Compare two snapshots."""
    if old is new:
        return GraphDiff()
    # Snapshots share what did not change, and so only the rest has to be looked at.
    old_edges: dict[Any, EdgeInfo] = {}
    new_edges: dict[Any, EdgeInfo] = {}
    if old.edges is not new.edges:
        old_ids, new_ids = set(map(id, old.edges)), set(map(id, new.edges))
        old_edges = {edge.key: edge for edge in old.edges if id(edge) not in new_ids}
        new_edges = {edge.key: edge for edge in new.edges if id(edge) not in old_ids}
    old_nodes, old_counters = old.nodes, old.counters
    return GraphDiff(
        nodes_added=tuple(name for name in new.nodes if name not in old_nodes),
        nodes_removed=tuple(name for name in old_nodes if name not in new.nodes),
        nodes_changed=tuple(
            name
            for name, node in new.nodes.items()
            if (was := old_nodes.get(name)) is not node and was is not None and was != node
        ),
        parents_changed=()
        if old.parents is new.parents
        else tuple(key for key in {**old.parents, **new.parents} if old.parents.get(key) != new.parents.get(key)),
        edges_added=tuple(edge for key, edge in new_edges.items() if key not in old_edges),
        edges_removed=tuple(edge for key, edge in old_edges.items() if key not in new_edges),
        edges_changed=tuple(edge for key, edge in new_edges.items() if key in old_edges and old_edges[key] != edge),
        io_nodes=tuple(
            name
            for name, counters in new.counters.items()
            if (had := old_counters.get(name)) is not counters and had is not None and had != counters
        ),
    )


def from_query_graph(reply: Mapping[str, Any], last: GraphModel | None = None) -> GraphModel:
    """
    Build a snapshot from the answer to ``x-blockmon-query-graph``. Unknown members are passed over.

    What did not change since the snapshot *last* is shared with it.
    """
    nodes: dict[str, NodeInfo] = {}
    counters: dict[str, IoCounters] = {}
    before = last.source if last is not None else None
    known = before.nodes if before is not None else {}
    raw_nodes: dict[str, Mapping[str, Any]] = {}
    for item in reply.get("nodes", ()):
        name = str(item["node-name"])
        raw_nodes[name] = item
        if last is not None and known.get(name) == item:
            nodes[name], counters[name] = last.nodes[name], last.counters[name]
            continue
        nodes[name], counters[name] = _node(item), _counters(item)
    parents: dict[str, ParentInfo] = {}
    for item in reply.get("parents", ()):
        parent = ParentInfo(
            str(item["id"]), str(item.get("kind", "user")), str(item.get("name", "")), item.get("model")
        )
        parents[parent.key] = parent
    raw_edges = tuple(reply.get("edges", ()))
    edges = _edges(raw_edges, last.edges if last is not None else (), before.edges if before is not None else ())
    source = _Source(raw_nodes, raw_edges)
    return GraphModel(int(reply.get("generation", 0)), nodes, parents, edges, counters, source=source, alike=last)


def _node(item: Mapping[str, Any]) -> NodeInfo:
    return NodeInfo(
        name=str(item["node-name"]),
        driver=str(item.get("driver", "")),
        filename=str(item.get("filename", "")),
        read_only=bool(item.get("read-only", False)),
        size=int(item.get("size", 0)),
        allocated=item.get("allocated"),
        monitor_owned=bool(item.get("monitor-owned", False)),
        implicit=bool(item.get("implicit", False)),
        filter=bool(item.get("filter", False)),
        auto_name=bool(item.get("auto-name", False)),
        encrypted=bool(item.get("encrypted", False)),
        backing_file=item.get("backing-file"),
        backing_format=item.get("backing-format"),
        cluster_size=item.get("cluster-size"),
        busy=tuple(item.get("busy", ())),
        error=item.get("error"),
        bitmaps=int(item.get("bitmaps", 0)),
    )


def _counters(item: Mapping[str, Any]) -> IoCounters:
    return IoCounters(
        rd_bytes=int(item.get("rd-bytes", 0)),
        rd_ops=int(item.get("rd-operations", 0)),
        wr_bytes=int(item.get("wr-bytes", 0)),
        wr_ops=int(item.get("wr-operations", 0)),
    )


def _edges(
    items: tuple[Mapping[str, Any], ...], last: tuple[EdgeInfo, ...], before: tuple[Mapping[str, Any], ...]
) -> tuple[EdgeInfo, ...]:
    """The edges of *items*, shared with the *last* ones (made from *before*) where they are equal."""
    edges: list[EdgeInfo] = []
    by_key: dict[tuple[Any, Any, Any], int] | None = None
    for number, item in enumerate(items):
        place: int | None = number
        if number >= len(before) or before[number] != item:
            # One that was put in or taken out has moved the others.
            if by_key is None:
                by_key = {(had["parent"], had.get("name"), had.get("child")): n for n, had in enumerate(before)}
            place = by_key.get((item["parent"], item.get("name"), item.get("child")))
            if place is not None and before[place] != item:
                place = None
        edges.append(_edge(item) if place is None else last[place])
    return tuple(edges)


def _edge(item: Mapping[str, Any]) -> EdgeInfo:
    kind = str(item.get("parent-kind", "node"))
    origin = str(item["parent"])
    return EdgeInfo(
        parent=origin if kind == "node" else f"{kind}:{origin}",
        parent_kind=kind,
        name=str(item.get("name", "")),
        child=item.get("child"),
        roles=tuple(item.get("roles", ())),
        perm=frozenset(item.get("perm", ())),
        shared=frozenset(item.get("shared-perm", ())),
        frozen=bool(item.get("frozen", False)),
        filename=item.get("filename"),
        error=item.get("error"),
    )
