"""Our own commands for front ends: the graph in one answer, and opening an image with all that belongs to it."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from engine.bitmaps.dirty import bitmaps_of
from engine.commands.query import refresh_filenames, visible_nodes
from engine.errors import GenericError
from engine.graph.backend import BlockBackend
from engine.graph.broken import BrokenDriver
from engine.graph.driver import drivers
from engine.graph.edge import Edge, Parent
from engine.graph.graph import NODE_NAME_MAX, Graph
from engine.graph.node import Node
from engine.graph.opening import open_node
from engine.graph.options import BlockPermission
from engine.graph.permissions import Perm, Role, role_names, wire_names
from engine.graph.policy import OpenPolicy
from engine.qapi import Enum, Int, Struct, command, event
from engine.qapi.output import OnWire

if TYPE_CHECKING:
    from engine.engine import Engine


@event
class XBlockmonGraphChange(Struct, name="X_BLOCKMON_GRAPH_CHANGE", features=("unstable",)):
    """The block graph is different from before; several changes may share one event.

    generation: what x-blockmon-query-graph tells now, or less
    """

    generation: Int


class XBlockmonParentKind(Enum):
    """What holds an edge."""

    NODE = "node"
    DEVICE = "device"
    JOB = "job"
    EXPORT = "export"
    MONITOR = "monitor"
    USER = "user"


class XBlockmonRole(Enum):
    """What a child is for its parent."""

    DATA = "data"
    METADATA = "metadata"
    FILTERED = "filtered"
    COW = "cow"
    PRIMARY = "primary"


class XBlockmonNode(Struct):
    """A node.

    size: virtual length, bytes. allocated: bytes on the host's disk. auto_name: nobody chose the name. backing_file,
    backing_format: as the image has them. rd_bytes and so on: counters since the node was opened. busy: why some
    operations are blocked. bitmaps: how many named dirty bitmaps it has, if any. error: what is wrong with the image.
    """

    node_name: str
    driver: str
    filename: str
    read_only: bool
    size: Int
    allocated: Int | None = None
    monitor_owned: bool
    implicit: bool
    filter: bool
    auto_name: bool
    encrypted: bool | None = None
    backing_file: str | None = None
    backing_format: str | None = None
    cluster_size: Int | None = None
    rd_bytes: Int
    rd_operations: Int
    wr_bytes: Int
    wr_operations: Int
    busy: list[str]
    bitmaps: Int | None = None
    error: str | None = None


class XBlockmonParent(Struct):
    """A parent that is no node. id: unique among those of its kind. model: sort of device, job or export."""

    id: str
    kind: XBlockmonParentKind
    name: str
    model: str | None = None


class XBlockmonEdge(Struct):
    """A link from a parent (a node name or the id of a parent) to a child node.

    child: absent where the link is broken; filename then is what it should have led to, and error says why it doesn't.
    """

    parent: str
    parent_kind: XBlockmonParentKind
    name: str
    child: str | None = None
    roles: list[XBlockmonRole]
    perm: list[BlockPermission]
    shared_perm: list[BlockPermission]
    frozen: bool
    filename: str | None = None
    error: str | None = None


class XBlockmonGraph(Struct):
    """The graph at one moment, nodes newest first.

    generation: grows with each change. mark: where x-blockmon-query-io goes on from.
    """

    generation: Int
    mark: Int
    nodes: list[XBlockmonNode]
    parents: list[XBlockmonParent]
    edges: list[XBlockmonEdge]


class XBlockmonIo(Struct):
    """What has moved without another generation: nodes that did I/O, or have other bitmaps or errors.

    generation: where it is another than the graph's that is known, all of that is to be asked for. mark: for next time.
    """

    generation: Int
    mark: Int
    nodes: list[XBlockmonNode]


# A thousand nodes are asked for several times a second: the answer is made in wire form at once.
_PERMS = [wire_names(Perm(bits)) for bits in range(Perm.ALL + 1)]
_ROLES = [role_names(Role(bits)) for bits in range(32)]
_MONITOR = "monitor"

_Moving = tuple[int, int, int, int, bool, int, str | None]


class _Marks:
    """When each node was last seen to have moved, by name; counted in questions, and one for all who ask."""

    def __init__(self) -> None:
        self.now = 0
        self._seen: dict[str, tuple[_Moving, int]] = {}

    def look(self, nodes: list[Node]) -> int:
        """Take in how the nodes are; returns the mark of this moment."""
        self.now += 1
        seen = self._seen
        if len(seen) > 2 * len(nodes):
            names = {node.name for node in nodes}
            for name in [name for name in seen if name not in names]:
                del seen[name]
        for node in nodes:
            trackers = node.trackers
            moving = (
                node.rd_bytes, node.rd_operations, node.wr_bytes, node.wr_operations,
                node.read_only, _named_bitmaps(node) if trackers else 0, node.error,
            )  # fmt: skip
            known = seen.get(node.name)
            if known is None or known[0] != moving:
                seen[node.name] = moving, self.now
        return self.now

    def after(self, node: Node, mark: int) -> bool:
        """Whether the node was seen to have moved after *mark*."""
        return self._seen[node.name][1] > mark


_marks: WeakKeyDictionary[Graph, _Marks] = WeakKeyDictionary()
_named_at: WeakKeyDictionary[Graph, int] = WeakKeyDictionary()
_numbers: WeakKeyDictionary[BlockBackend, int] = WeakKeyDictionary()


def _named_bitmaps(node: Node) -> int:
    return sum(bitmap.name is not None for bitmap in bitmaps_of(node))


def _node(node: Node) -> dict[str, Any]:
    driver = node.driver
    info = driver.info()
    result: dict[str, Any] = {
        "node-name": node.name,
        "driver": driver.name,
        "filename": node.filename,
        "read-only": node.read_only,
        "size": driver.length,
        "monitor-owned": node.monitor_owned,
        "implicit": node.implicit,
        "filter": driver.is_filter,
        "auto-name": node.auto_name,
        "rd-bytes": node.rd_bytes,
        "rd-operations": node.rd_operations,
        "wr-bytes": node.wr_bytes,
        "wr-operations": node.wr_operations,
        "busy": node.blockers.reasons(),
    }
    allocated = driver.allocated_size()
    if allocated is not None:
        result["allocated"] = allocated
    if driver.is_encrypted():
        result["encrypted"] = True
    if node.auto_backing_file:
        result["backing-file"] = node.auto_backing_file
        if node.auto_backing_format:
            result["backing-format"] = node.auto_backing_format
    if info is not None and info.cluster_size:
        result["cluster-size"] = info.cluster_size
    if node.trackers:
        bitmaps = _named_bitmaps(node)
        if bitmaps:
            result["bitmaps"] = bitmaps
    if node.error is not None:
        result["error"] = node.error
    return result


def _edge(edge: Edge, parent: str, kind: str) -> dict[str, Any]:
    result: dict[str, Any] = {
        "parent": parent,
        "parent-kind": kind,
        "name": edge.name,
        "roles": _ROLES[edge.role],
        "perm": _PERMS[edge.perm],
        "shared-perm": _PERMS[edge.shared],
        "frozen": edge.frozen,
    }
    child = edge.child
    if isinstance(child.driver, BrokenDriver):
        assert isinstance(edge.parent, Node)
        result["filename"], result["error"] = edge.parent.broken_links.get(edge.name, (child.filename, ""))
    else:
        result["child"] = child.name
    return result


class _Parents:
    """Collects the parents that are no nodes; a job and the back ends it does its I/O through are one."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], dict[str, Any]] = {}

    def id_of(self, parent: Parent) -> str:
        kind, name = parent.parent_kind, parent.parent_name
        ident = name
        if not name:
            assert isinstance(parent, BlockBackend)
            ident = f"#{_numbers.setdefault(parent, len(_numbers) + 1)}"
        entry = self.found.get((kind, ident))
        if entry is None:
            if not name and isinstance(parent, BlockBackend):
                name = parent.title
            entry = self.found[kind, ident] = {"id": ident, "kind": kind, "name": name}
        model = getattr(parent, "model", None) or getattr(parent, "job_type", None)
        if model:
            entry["model"] = str(model)
        return ident


@command(name="x-blockmon-query-graph", features=("unstable",))
def x_blockmon_query_graph(engine: Engine) -> XBlockmonGraph:
    """Show nodes, their parents of every kind and the links between, broken ones too."""
    graph = engine.graph
    generation = graph.generation
    if _named_at.get(graph) != generation:
        refresh_filenames(graph)
        _named_at[graph] = generation
    parents = _Parents()
    nodes: list[dict[str, Any]] = []
    edges: list[dict[str, Any]] = []
    for backend in graph.backends:
        # A device without a medium has no edge, but is there.
        parents.id_of(backend)
    visible = visible_nodes(graph)
    mark = _marks.setdefault(graph, _Marks()).look(visible)
    for node in reversed(visible):
        nodes.append(_node(node))
        name = node.name
        edges.extend(_edge(edge, name, "node") for edge in node.children.values())
        for edge in node.parents:
            parent = edge.parent
            if not isinstance(parent, Node):
                edges.append(_edge(edge, parents.id_of(parent), parent.parent_kind))
        if node.monitor_owned:
            edges.append(
                {
                    "parent": _MONITOR,
                    "parent-kind": _MONITOR,
                    "name": "",
                    "child": name,
                    "roles": [],
                    "perm": [],
                    "shared-perm": _PERMS[Perm.ALL],
                    "frozen": False,
                }
            )
            parents.found.setdefault((_MONITOR, _MONITOR), {"id": _MONITOR, "kind": _MONITOR, "name": _MONITOR})
    result: Any = OnWire(
        {
            "generation": generation,
            "mark": mark,
            "nodes": nodes,
            "parents": list(parents.found.values()),
            "edges": edges,
        }
    )
    return result  # type: ignore[no-any-return]


@command(name="x-blockmon-query-io", features=("unstable",))
def x_blockmon_query_io(engine: Engine, since: Int) -> XBlockmonIo:
    """Show the nodes that have moved since a mark, as x-blockmon-query-graph does. Much cheaper than all of that.

    since: the mark of an answer from before
    """
    graph = engine.graph
    visible = visible_nodes(graph)
    marks = _marks.setdefault(graph, _Marks())
    mark = marks.look(visible)
    nodes = [_node(node) for node in reversed(visible) if marks.after(node, since)]
    result: Any = OnWire({"generation": graph.generation, "mark": mark, "nodes": nodes})
    return result  # type: ignore[no-any-return]


# -- opening an image ------------------------------------------------------------------------------------------------

_FILE_SUFFIX = "-file"


class _Names:
    """Readable names for the nodes of a chain: the stem of the file for an image, with ``-file`` added for its file."""

    def __init__(self, graph: Graph, prefix: str, filename: str) -> None:
        self._graph = graph
        self._prefix = prefix
        self._first = filename
        self._stems: dict[str, str] = {}

    def __call__(self, filename: str, driver: str, child: str) -> str | None:
        place = _innermost(filename or self._first)
        stem = self._stems.get(place)
        if stem is None:
            stem = self._stems[place] = self._free(place)
        name = stem + (_FILE_SUFFIX if drivers[driver].is_protocol else "")
        return name if name not in self._graph.nodes else None

    def _free(self, place: str) -> str:
        return next(stem for stem in self._candidates(place) if self._is_free(stem))

    def _candidates(self, place: str) -> Iterator[str]:
        base = os.path.basename(place.rstrip("/"))
        plain = unicodedata.normalize("NFKD", os.path.splitext(base)[0] or base).encode("ascii", "ignore").decode()
        stem = re.sub(r"[^A-Za-z0-9._]+", "-", self._prefix + plain).strip("-.")
        if not stem[:1].isalpha():
            stem = f"image-{stem}".rstrip("-")
        room = NODE_NAME_MAX - len(_FILE_SUFFIX)
        yield stem[:room].rstrip("-.")
        number = 2
        while True:
            tail = f"-{number}"
            yield stem[: room - len(tail)].rstrip("-.") + tail
            number += 1

    def _is_free(self, stem: str) -> bool:
        return not any(
            name in self._graph.nodes or self._graph.find_backend(name) is not None
            for name in (stem, stem + _FILE_SUFFIX)
        )


def _innermost(filename: str) -> str:
    """The plain file name inside a ``json:`` name, or *filename* without what comes before the path."""
    if not filename.startswith("json:"):
        return filename.removeprefix("file:")
    try:
        options = json.loads(filename.removeprefix("json:"))
    except ValueError:
        return filename
    while isinstance(options, dict):
        for key in ("filename", "file.filename", "path", "export"):
            if isinstance(options.get(key), str):
                return str(options[key])
        options = options.get("file")
    return "image"


class XBlockmonOpened(Struct):
    """node_name: the topmost node of the chain."""

    node_name: str


@command(name="x-blockmon-open", features=("unstable",))
def x_blockmon_open(
    engine: Engine, *, filename: str, node_prefix: str | None = None, read_write: bool | None = None
) -> XBlockmonOpened:
    """Open an image and its backing chain by file name, told apart by their contents, until blockdev-del.

    A backing file that can't be opened leaves a broken link in the graph, which says why.

    filename: the image; a path, a protocol's name or json:{...}
    node_prefix: put in front of the node names, which are made from the file names
    read_write: open the image for writing and alone; else it is read-only and others may even write to it
    """
    if not filename:
        raise GenericError("Parameter 'filename' expects a file name")
    graph = engine.graph
    prefix = node_prefix or ""
    if prefix and re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]{0,15}", prefix) is None:
        raise GenericError("Parameter 'node-prefix' expects up to 16 letters, digits, '-', '.' or '_', a letter first")
    options: dict[str, Any] = {"read-only": False} if read_write else {"read-only": True, "force-share": True}
    node = open_node(
        graph,
        options,
        filename=filename,
        policy=OpenPolicy(tolerate_broken=True),
        naming=_Names(graph, prefix, filename),
    )
    node.monitor_owned = True
    graph.changed()
    graph.unpin(node)
    return XBlockmonOpened(node_name=node.name)
