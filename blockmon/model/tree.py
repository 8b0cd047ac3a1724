"""
The block graph as the rows of a tree: nodes *and* the edges that lead to them.

Roots are the parents that use the graph (devices, exports), then the nodes that nothing but the monitor, a job or an
unnamed user holds. A node that several parents share is shown in full where it first comes up, and as a reference after
that. The edges of jobs are left out, for a job takes an edge on every node of its chain; rows carry the jobs instead.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from blockmon.model.graph import EdgeInfo, GraphDiff, GraphModel, NodeInfo, ParentInfo

_ROOT_KINDS = ("device", "export")

PARENT, NODE, REFERENCE, BROKEN, GONE = "parent", "node", "reference", "broken", "gone"

RowKey = tuple[str, str, str | None]


@dataclass(slots=True)  # not frozen, which would take three times as long to make: there are thousands
class TreeRow:
    """
    One row. *kind* is PARENT (a root that is no node), NODE, REFERENCE (shown in full elsewhere), BROKEN, or GONE for
    what was there a moment ago (`with_gone`).

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
    filters: tuple[str, ...] = ()
    """Names of the filters that are folded into the link to this node, topmost first."""

    @property
    def fold_key(self) -> str:
        """What is folded with this row: a node wherever it is shown, or a parent."""
        if self.node is not None:
            return self.node.name
        return self.parent.key if self.parent is not None else ""


def row_text(row: TreeRow) -> str:
    """What of a row is searched: names, driver, file name, error; casefolded."""
    texts: list[object] = []
    if row.node is not None:
        texts += [row.node.name, row.node.driver, row.node.filename]
    if row.parent is not None:
        texts += [row.parent.name, row.parent.id, row.parent.kind, row.parent.model or ""]
    if row.edge is not None:
        texts += [row.edge.name, row.edge.error or "", row.edge.filename or ""]
    return " ".join(str(text) for text in texts).casefold()


def children_in_order(model: GraphModel, key: str) -> list[EdgeInfo]:
    """The edges down from *key* with the chain's continuation (``backing``) last, so that a chain reads downwards."""
    edges = model.children(key)
    return list(edges) if len(edges) < 2 else sorted(edges, key=lambda edge: edge.name == "backing")


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


def _through(model: GraphModel, name: str) -> tuple[str, tuple[str, ...]]:
    """The node below the filters from *name* down, and those filters. A broken one stays, as one with more children."""
    passed: list[str] = []
    while True:
        node = model.nodes.get(name)
        edges = model.children(name)
        if node is None or not node.filter or node.error or len(edges) != 1 or name in passed:
            return name, tuple(passed)
        below = edges[0].child
        if below is None or below not in model.nodes:
            return name, tuple(passed)
        passed.append(name)
        name = below


def flatten(
    model: GraphModel, folded: Collection[str] = (), filter_text: str = "", *, fold_filters: bool = False
) -> list[TreeRow]:
    """
    The rows of the tree, top to bottom.

    *folded* holds the fold keys of rows whose children are hidden. With *filter_text* only rows that hold it in a name,
    driver, file name or error are kept, with all that leads to them, and nothing is folded. *fold_filters* has no rows
    for filters; the link to the node below them tells of them.
    """
    wanted = _matching(model, filter_text) if filter_text else None
    if wanted is not None:
        folded, fold_filters = (), False
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
        filters: tuple[str, ...] = ()
        if isinstance(item, ParentInfo):
            parent, kind, down = item, PARENT, item.key
            key = (item.key, "", None)
        elif isinstance(item, EdgeInfo):
            edge, key = item, item.key
            node = model.nodes.get(item.child) if item.child is not None else None
            if fold_filters and node is not None and node.filter:
                below_filters, filters = _through(model, node.name)
                node, key = model.nodes[below_filters], (item.parent, item.name, below_filters)
            kind, down = (NODE, node.name) if node is not None else (BROKEN, "")
        else:
            bottom, filters = _through(model, item) if fold_filters else (item, ())
            node, kind, down = model.nodes[bottom], NODE, bottom
            key = ("", "", bottom)
            holders = [held for held in model.parents_of(item) if held.parent_kind not in ("node", "job")]
            edge = holders[0] if holders else None
        if not admitted(down or (edge.parent if edge is not None else "")):
            return
        if node is not None and node.name in shown:
            rows.append(TreeRow(key, REFERENCE, depth, guides, last, edge, node, filters=filters))
            return
        if node is not None:
            shown.add(node.name)
        edges = below(down) if down else []
        is_folded = bool(edges) and down in folded
        rows.append(
            TreeRow(
                key, kind, depth, guides, last, edge, node, parent, expandable=bool(edges),
                expanded=bool(edges) and not is_folded, hidden=size_below(down) if is_folded else 0, filters=filters,
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
    reached = _reachable(model, remaining) if len(shown) < len(model.nodes) else shown
    for name in model.nodes:
        if name not in reached and name not in shown and admitted(name):
            stack.append((name, 0, (), True))
            while stack:
                visit(*stack.pop())
    return rows


def renewed(rows: Sequence[TreeRow], model: GraphModel, changed: GraphDiff) -> list[TreeRow]:
    """The rows with what has *changed* as it is in *model*: for changes after which the tree has the same rows."""
    nodes = {name: model.nodes[name] for name in changed.nodes_changed}
    links = {edge.key: edge for edge in changed.edges_changed}
    found: list[TreeRow] = []
    for row in rows:
        node, edge = row.node, row.edge
        if row.kind != GONE:
            node = nodes.get(node.name, node) if node is not None else None
            edge = links.get(edge.key, edge) if links and edge is not None else edge
        found.append(row if node is row.node and edge is row.edge else replace(row, node=node, edge=edge))
    return found


def nearest(before: Sequence[TreeRow], place: int, after: Sequence[TreeRow]) -> int:
    """
    Which row of *after* stands for row *place* of *before*: the same one, its node elsewhere, or where both are gone
    the one nearest to it, first of all below and above it under the same parent, then its parent.
    """
    if place >= len(before):
        return max(0, min(place, len(after) - 1))
    if place < len(after) and after[place].key == before[place].key and after[place].kind != GONE:
        return place
    keys = {row.key: number for number, row in enumerate(after) if row.kind != GONE}
    names = {row.fold_key: number for number, row in enumerate(after) if row.kind not in (GONE, REFERENCE)}

    def found(row: TreeRow) -> int | None:
        number = keys.get(row.key)
        return names.get(row.fold_key) if number is None and row.fold_key else number

    row = before[place]
    number = found(row)
    if number is not None:
        return number
    above = next((n for n in range(place - 1, -1, -1) if before[n].depth < row.depth), -1)
    end = next((n for n in range(place + 1, len(before)) if before[n].depth < row.depth), len(before))
    siblings = [*range(place + 1, end), *range(place - 1, above, -1)]
    order = [n for n in siblings if before[n].depth == row.depth]
    for n in (*order, *([above] if above >= 0 else []), *range(place - 1, -1, -1), *range(place + 1, len(before))):
        number = found(before[n])
        if number is not None:
            return number
    return max(0, min(place, len(after) - 1))


def with_gone(rows: Sequence[TreeRow], gone: Sequence[tuple[TreeRow, RowKey | None]]) -> list[TreeRow]:
    """
    The rows with those that are *gone* put in again, each after the row of the key given with it (None: on top).

    A row whose place is not there any more is left out.
    """
    after: dict[RowKey | None, list[TreeRow]] = {}
    for row, key in gone:
        after.setdefault(key, []).append(row)
    there = {row.key for row in rows}
    found: list[TreeRow] = []

    def add(key: RowKey | None) -> None:
        waiting = list(reversed(after.pop(key, ())))
        while waiting:
            row = waiting.pop()
            if row.key not in there:
                found.append(replace(row, kind=GONE, expandable=False, expanded=False, hidden=0))
                waiting += reversed(after.pop(row.key, ()))

    add(None)
    for row in rows:
        found.append(row)
        if after:
            add(row.key)
    return found
