"""What of the graph has changed a moment ago, and is marked so until somebody has had the time to see it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from blockmon.model.graph import EdgeInfo, GraphDiff, GraphModel, NodeInfo
from blockmon.model.tree import GONE, REFERENCE, RowKey, TreeRow

SECONDS = 4.0
"""How long a mark stays in sight."""
_GHOSTS = 40
"""Rows of things that are gone, at most; of a larger crowd none is kept."""

ADDED, CHANGED, REMOVED = "+", "~", "-"
_UNSEEN = float("inf")

Key = str | RowKey


class ChangeMarks:
    """
    A sign for each row that is new (+) or another than before (~), and rows that are gone (-), for a few seconds.

    What changes while nobody looks keeps its mark until it has been looked at for that long.
    """

    def __init__(self) -> None:
        self._graph: GraphModel | None = None
        self._signs: dict[Key, tuple[str, float]] = {}
        self._gone: list[tuple[TreeRow, RowKey | None, float]] = []

    def update(self, graph: GraphModel, diff: GraphDiff, rows: Iterable[TreeRow], now: float, *, seen: bool) -> None:
        """Take in another snapshot. *rows* are those of the one before; *seen*: the tree is in sight."""
        before, self._graph = self._graph, graph
        if before is None:
            # What was there from the start is no news.
            return
        until = now + SECONDS if seen else _UNSEEN
        for key in self._changed(before, graph, diff):
            if self._signs.get(key, ("", 0.0))[0] != ADDED:
                self._signs[key] = (CHANGED, until)
        for name in diff.nodes_added:
            self._signs[name] = (ADDED, until)
        for name in diff.parents_changed:
            if name in graph.parents and name not in before.parents:
                self._signs[name] = (ADDED, until)
        removed = {*diff.nodes_removed, *(key for key in diff.parents_changed if key not in graph.parents)}
        for name in removed:
            self._signs.pop(name, None)
        ghosts: list[tuple[TreeRow, RowKey | None, float]] = []
        last: RowKey | None = None
        for row in rows if removed else ():
            if row.kind not in (GONE, REFERENCE) and row.fold_key in removed:
                ghosts.append((row, last, until))
            last = row.key
        known = {row.key for row, _, _ in ghosts}
        if len(ghosts) <= _GHOSTS:
            self._gone = [ghost for ghost in self._gone if ghost[0].key not in known] + ghosts

    @staticmethod
    def _changed(before: GraphModel, graph: GraphModel, diff: GraphDiff) -> Iterable[Key]:
        """What rows look different, by node, parent or link. What grows by itself is not news."""
        for name in diff.nodes_changed:
            if _settled(graph, before.nodes[name]) != _settled(graph, graph.nodes[name]):
                yield name
        for name in diff.parents_changed:
            if name in graph.parents and name in before.parents:
                yield name
        for edge in (*diff.edges_added, *diff.edges_changed):
            if edge.parent_kind != "monitor" and (edge.child is None or edge.child in before.nodes):
                yield edge.child if edge.parent_kind == "job" and edge.child is not None else edge.key
        for edge in diff.edges_removed:
            if edge.parent_kind == "job":
                if edge.child in graph.nodes:
                    yield str(edge.child)
            elif edge.parent in graph.nodes or edge.parent in graph.parents:
                yield edge.parent

    @property
    def gone(self) -> list[tuple[TreeRow, RowKey | None]]:
        """The rows that are gone, each with the key of the row that was before it."""
        return [(row, key) for row, key, _ in self._gone]

    def sign(self, row: TreeRow) -> str:
        """The mark of a row, or ''."""
        if row.kind == GONE:
            return REMOVED
        if not self._signs or row.kind == REFERENCE:
            return ""
        found = self._signs.get(row.fold_key) or self._signs.get(row.key) or self._signs.get(_edge_key(row.edge))
        return found[0] if found is not None else ""

    def look(self, now: float) -> None:
        """The tree has come into sight: what changed meanwhile is marked from now on."""
        until = now + SECONDS
        self._signs = {key: (sign, until if end == _UNSEEN else end) for key, (sign, end) in self._signs.items()}
        self._gone = [(row, key, until if end == _UNSEEN else end) for row, key, end in self._gone]

    def fade(self, now: float) -> bool:
        """Take away the marks whose time is over. True where there were any."""
        before = len(self._signs) + len(self._gone)
        self._signs = {key: (sign, end) for key, (sign, end) in self._signs.items() if end > now}
        self._gone = [ghost for ghost in self._gone if ghost[2] > now]
        return len(self._signs) + len(self._gone) != before

    @property
    def next_fade(self) -> float | None:
        """When the first mark goes; None while all stay."""
        ends = [end for _, end in self._signs.values()] + [end for _, _, end in self._gone]
        first = min(ends, default=_UNSEEN)
        return None if first == _UNSEEN else first


_NOBODY: RowKey = ("", "", "")


def _edge_key(edge: EdgeInfo | None) -> RowKey:
    return edge.key if edge is not None else _NOBODY


def _settled(graph: GraphModel, node: NodeInfo) -> NodeInfo:
    """A node without what changes with every write."""
    size = node.size if graph.children(node.name) else 0
    return replace(node, allocated=None, size=size)
