"""x-debug-query-block-graph: every vertex and edge with its permissions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.commands.query import visible_nodes
from engine.graph.broken import BrokenDriver
from engine.graph.edge import Edge, Parent
from engine.graph.options import BlockPermission
from engine.qapi import Enum, Int, Struct, command

if TYPE_CHECKING:
    from engine.engine import Engine


class XDbgBlockGraphNodeType(Enum):
    """What a vertex of the graph is."""

    BLOCK_BACKEND = "block-backend"
    BLOCK_JOB = "block-job"
    BLOCK_DRIVER = "block-driver"


class XDbgBlockGraphNode(Struct):
    """A vertex. id: for this answer only. name: node name, device name or job id, '' for nameless back ends."""

    id: Int
    type: XDbgBlockGraphNodeType
    name: str


class XDbgBlockGraphEdge(Struct):
    """A link. parent, child: ids of vertices. perm: taken. shared_perm: granted to others."""

    parent: Int
    child: Int
    name: str
    perm: list[BlockPermission]
    shared_perm: list[BlockPermission]


class XDbgBlockGraph(Struct):
    """The whole graph."""

    nodes: list[XDbgBlockGraphNode]
    edges: list[XDbgBlockGraphEdge]


def permission_list(perm: int) -> list[BlockPermission]:
    """The single permissions, in the order QEMU lists them: highest bit first."""
    return [item for bit, item in enumerate(BlockPermission) if perm >> bit & 1][::-1]


class _Builder:
    """Collects the graph; a vertex is numbered when it is first spoken of."""

    def __init__(self) -> None:
        self._numbers: dict[Parent, int] = {}
        self.nodes: list[XDbgBlockGraphNode] = []
        self.edges: list[XDbgBlockGraphEdge] = []

    def _number(self, vertex: Parent) -> int:
        return self._numbers.setdefault(vertex, len(self._numbers) + 1)

    def vertex(self, vertex: Parent, kind: XDbgBlockGraphNodeType, name: str) -> None:
        self.nodes.append(XDbgBlockGraphNode(id=self._number(vertex), type=kind, name=name))

    def edge(self, edge: Edge) -> None:
        if isinstance(edge.child.driver, BrokenDriver):
            return
        self.edges.append(
            XDbgBlockGraphEdge(
                parent=self._number(edge.parent),
                child=self._number(edge.child),
                name=edge.name,
                perm=permission_list(edge.perm),
                shared_perm=permission_list(edge.shared),
            )
        )


@command(name="x-debug-query-block-graph", since="4.0", features=("unstable",), allow_preconfig=True)
def x_debug_query_block_graph(engine: Engine) -> XDbgBlockGraph:
    """Show the block graph as it is, with jobs and nameless back ends."""
    graph = engine.graph
    build = _Builder()
    for backend in graph.backends:
        build.vertex(backend, XDbgBlockGraphNodeType.BLOCK_BACKEND, backend.label)
        if backend.root is not None:
            build.edge(backend.root)
    for job in engine.jobs.block_jobs:
        build.vertex(job, XDbgBlockGraphNodeType.BLOCK_JOB, job.id)
        for edge in reversed(job.edges):
            build.edge(edge)
    for node in visible_nodes(graph):
        build.vertex(node, XDbgBlockGraphNodeType.BLOCK_DRIVER, node.name)
        for edge in reversed(node.children.values()):
            build.edge(edge)
    # QEMU puts each in front of those before.
    build.nodes.reverse()
    build.edges.reverse()
    return XDbgBlockGraph(nodes=build.nodes, edges=build.edges)
