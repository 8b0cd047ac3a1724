"""
The block graph as the rows of a tree: nodes *and* the edges that lead to them.

Roots are the parents that use the graph (devices, exports), then the nodes that nothing but the monitor, a job or an
unnamed user holds. A node that several parents share is shown in full where it first comes up, and as a reference after
that. The edges of jobs are left out, for a job takes an edge on every node of its chain; rows carry the jobs instead.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from blockmon.model.graph import EdgeInfo, GraphModel, NodeInfo, ParentInfo

_ROOT_KINDS = ("device", "export")

PARENT, NODE, REFERENCE, BROKEN = "parent", "node", "reference", "broken"

RowKey = tuple[str, str, str | None]


@dataclass(frozen=True, slots=True)
class TreeRow:
    """
    One row. *kind* is PARENT (a root that is no node), NODE, REFERENCE (shown in full elsewhere) or BROKEN.

    *guides* has one entry a level above the row: whether a line runs on there; *last* is whether the row is the last
    child of its parent.
    """

    key: RowKey
    kind: str
    depth: int
    guides: tuple[bool, ...]
    last: bool
    edge: EdgeInfo | None = None
    node: NodeInfo | None = None
    parent: ParentInfo | None = None
    expandable: bool = False
    expanded: bool = False
    hidden: int = 0
    """How many rows are folded away below this one."""

    @property
    def fold_key(self) -> str:
        """What is folded with this row: a node wherever it is shown, or a parent."""
        if self.node is not None:
            return self.node.name
        return self.parent.key if self.parent is not None else ""


def children_in_order(model: GraphModel, key: str) -> list[EdgeInfo]:
    """The edges down from *key* with the chain's continuation (``backing``) last, so that a chain reads downwards."""
    return sorted(model.children(key), key=lambda edge: edge.name == "backing")


def root_edges(model: GraphModel) -> list[ParentInfo | str]:
    """What the tree starts from: parents, and names of nodes that no parent of the tree leads to, in this order."""
    roots: list[ParentInfo | str] = []
    for kind in _ROOT_KINDS:
        roots += [parent for parent in model.parents.values() if parent.kind == kind]
    roots += [
        parent for parent in model.parents.values() if parent.kind not in (*_ROOT_KINDS, "job", "monitor", "user")
    ]
    shown = ("node", *(parent.kind for parent in roots if isinstance(parent, ParentInfo)))
    for name in model.nodes:
        if not any(edge.parent_kind in shown for edge in model.parents_of(name)):
            roots.append(name)
    return roots


def _matching(model: GraphModel, text: str) -> set[str]:
    """Fold keys of everything whose row holds *text*, and of all that leads there."""
    text = text.casefold()
    found: list[str] = []
    for node in model.nodes.values():
        if text in f"{node.name} {node.driver} {node.filename}".casefold():
            found.append(node.name)
    for parent in model.parents.values():
        if text in f"{parent.name} {parent.id} {parent.kind} {parent.model or ''}".casefold():
            found.append(parent.key)
    for edge in model.edges:
        if text in f"{edge.name} {edge.error or ''} {edge.filename or ''}".casefold():
            found.append(edge.child or edge.parent)
    wanted: set[str] = set()
    while found:
        key = found.pop()
        if key not in wanted:
            wanted.add(key)
            found.extend(edge.parent for edge in model.parents_of(key))
    return wanted


def _reachable(model: GraphModel, roots: list[ParentInfo | str]) -> set[str]:
    """Names of all nodes below *roots*, folded away or not."""
    waiting = [root.key if isinstance(root, ParentInfo) else root for root in roots]
    reached = set(waiting)
    while waiting:
        for edge in model.children(waiting.pop()):
            if edge.child is not None and edge.child not in reached:
                reached.add(edge.child)
                waiting.append(edge.child)
    return reached


def flatten(model: GraphModel, folded: Collection[str] = (), filter_text: str = "") -> list[TreeRow]:
    """
    The rows of the tree, top to bottom.

    *folded* holds the fold keys of rows whose children are hidden. With *filter_text* only rows that hold it in a name,
    driver, file name or error are kept, with all that leads to them, and nothing is folded.
    """
    wanted = _matching(model, filter_text) if filter_text else None
    if wanted is not None:
        folded = ()
    rows: list[TreeRow] = []
    shown: set[str] = set()

    def admitted(key: str) -> bool:
        return wanted is None or key in wanted

    def below(key: str) -> list[EdgeInfo]:
        return [edge for edge in children_in_order(model, key) if admitted(edge.child or edge.parent)]

    def size_below(key: str) -> int:
        """Rows under *key*, each shared node counted once."""
        seen: set[str] = set()
        waiting = [key]
        count = 0
        while waiting:
            for edge in below(waiting.pop()):
                count += 1
                if edge.child is not None and edge.child not in seen:
                    seen.add(edge.child)
                    waiting.append(edge.child)
        return count

    # (edge or root, depth, guides, last); a stack instead of recursion, for a chain may have hundreds of layers.
    Pending = tuple[EdgeInfo | ParentInfo | str, int, tuple[bool, ...], bool]
    remaining = root_edges(model)
    stack: list[Pending] = [(root, 0, (), True) for root in reversed(remaining)]

    def visit(item: EdgeInfo | ParentInfo | str, depth: int, guides: tuple[bool, ...], last: bool) -> None:
        edge: EdgeInfo | None = None
        parent: ParentInfo | None = None
        node: NodeInfo | None = None
        key: RowKey
        if isinstance(item, ParentInfo):
            parent, kind, down = item, PARENT, item.key
            key = (item.key, "", None)
        elif isinstance(item, EdgeInfo):
            edge, key = item, item.key
            node = model.nodes.get(item.child) if item.child is not None else None
            kind, down = (NODE, node.name) if node is not None else (BROKEN, "")
        else:
            node, kind, down = model.nodes[item], NODE, item
            key = ("", "", item)
            holders = [held for held in model.parents_of(item) if held.parent_kind not in ("node", "job")]
            edge = holders[0] if holders else None
        if not admitted(down or (edge.parent if edge is not None else "")):
            return
        if node is not None and node.name in shown:
            rows.append(TreeRow(key, REFERENCE, depth, guides, last, edge, node))
            return
        if node is not None:
            shown.add(node.name)
        edges = below(down) if down else []
        is_folded = bool(edges) and down in folded
        rows.append(
            TreeRow(
                key, kind, depth, guides, last, edge, node, parent, expandable=bool(edges),
                expanded=bool(edges) and not is_folded, hidden=size_below(down) if is_folded else 0,
            )
        )  # fmt: skip
        if is_folded:
            # What is folded away does not count as shown: another parent then shows it in full.
            return
        below_guides = (*guides, not last) if depth else guides
        for number, child_edge in reversed(list(enumerate(edges))):
            stack.append((child_edge, depth + 1, below_guides, number == len(edges) - 1))

    while stack:
        visit(*stack.pop())
    # A graph has no cycles; a server that claims one still gets all its nodes listed.
    reached = _reachable(model, remaining)
    for name in model.nodes:
        if name not in reached and name not in shown and admitted(name):
            stack.append((name, 0, (), True))
            while stack:
                visit(*stack.pop())
    return rows
