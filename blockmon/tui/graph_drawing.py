"""How the rows of the graph are drawn: branch, link, node, badges, and the columns at the right."""

from __future__ import annotations

from collections.abc import Sequence

from blockmon.model.format import basename, elide_middle, safe_text, size_short, sparkline
from blockmon.model.graph import EdgeInfo
from blockmon.model.refresher import ScreenState
from blockmon.model.tree import BROKEN, GONE, PARENT, REFERENCE, TreeRow, row_text
from blockmon.tui.graph_badges import badges, fitted
from blockmon.tui.inspect_text import permission_letters
from blockmon.tui.line import Line
from blockmon.tui.look import Look
from blockmon.tui.rows import RowsPane

_INDENT = 2
_SPARKS = ((60, 8), (50, 5))
"""From which width on the sparkline has how many cells."""
# Cells of the columns at the right: access, allocated, size; each with a blank before it.
_ACCESS, _ALLOCATED, _SIZE = 3, 6, 6
_PERMISSIONS = 10


class GraphDrawing(RowsPane):
    """A pane that shows rows of the tree."""

    def __init__(self, look: Look, state: ScreenState, *, id: str | None = None) -> None:
        super().__init__(look, id=id)
        self.state = state
        self.rows: list[TreeRow] = []
        self.permissions_shown = False

    def count(self) -> int:
        return len(self.rows)

    def _columns(self, width: int) -> tuple[int, int, int]:
        """Where the sparkline, the access column and the sizes begin; the sparkline goes first where it is narrow."""
        sizes = width - (_ALLOCATED + _SIZE)
        access = sizes - _ACCESS
        cells = next((cells + 1 for least, cells in _SPARKS if width >= least), 0)
        if self.permissions_shown:
            cells = _PERMISSIONS
        return access - cells, access, sizes

    def heading(self, line: Line) -> Line | None:
        if not self.rows:
            return None
        spark, access, _ = self._columns(line.width)
        line.add("edge → node  driver" if self.look.symbols.arrow == "→" else "edge -> node  driver", "heading")
        if self.permissions_shown:
            line.to(spark).add(" has  lets", "heading")
        elif spark < access:
            line.to(spark).right("I/O", access - spark, "heading")
        line.to(access)
        return line.right("", _ACCESS).right("used", _ALLOCATED, "heading").right("size", _SIZE, "heading")

    def draw(self, index: int, line: Line) -> Line:
        row = self.rows[index]
        self._draw_branch(row, line)
        if row.kind == PARENT:
            return self._draw_parent(row, line)
        if row.kind == BROKEN or (row.kind == GONE and row.node is None and row.parent is None):
            return self._draw_broken(row, line)
        if row.kind == GONE:
            return self._draw_gone(row, line)
        return self._draw_node(row, line)

    def _draw_branch(self, row: TreeRow, line: Line) -> None:
        """The lines of the tree. Where a chain is so long that they would push out the names, a number stands in."""
        symbols = self.look.symbols
        room = max(4, line.width // 4)
        guides = row.guides
        skipped = max(0, (len(guides) + 1) * _INDENT - room + 1) // _INDENT if row.depth else 0
        if skipped:
            line.add(f"{row.depth:<{_INDENT}d}", "dim")
            guides = guides[skipped + 1 :]
        for runs_on in guides:
            line.add(symbols.line if runs_on else " ", "faint").add(" ")
        if row.depth:
            line.add(symbols.corner if row.last else symbols.tee, "faint").add(symbols.down, "faint")
        if row.expandable:
            line.add(symbols.opened if row.expanded else symbols.closed, "edge").add(" ")
        elif row.depth:
            line.add(symbols.down, "faint").add(" ")
        else:
            line.add("  ")

    def _draw_edge(self, edge: EdgeInfo | None, line: Line, filters: Sequence[str] = ()) -> None:
        if edge is None:
            return
        symbols = self.look.symbols
        name = edge.name or edge.parent_kind
        if edge.parent_kind in ("monitor", "user"):
            name = edge.parent_kind
        line.add(safe_text(name), "edge").add(" ")
        arrow = symbols.frozen_arrow if edge.frozen else symbols.arrow
        line.add(arrow, "edge").add(" ")
        if filters:
            known = self.state.graph.nodes.get(filters[0])
            what = f"{len(filters)} filters" if len(filters) > 1 or known is None else known.driver
            line.add(f"[{safe_text(what)}]", "dim").add(f" {arrow} ", "edge")

    def _draw_permissions(self, row: TreeRow, line: Line, start: int, end: int) -> None:
        """What the link takes and shares, in letters."""
        line.to(start)
        if row.edge is not None and not self.state.graph.permissions_known:
            line.add(" not told", "dim", limit=end - line.used)
        elif row.edge is not None and row.edge.parent_kind != "monitor":
            line.add(" ").add(permission_letters(row.edge.perm), "strong").add(" ")
            line.add(permission_letters(row.edge.shared), "text", limit=end - line.used)
        line.to(end)

    def _draw_roles(self, row: TreeRow, line: Line, end: int) -> None:
        """What the node is for its parent; that it is the primary child goes without saying where there is no room."""
        roles = row.edge.roles if row.edge is not None else ()
        for shown in (roles, [role for role in roles if role != "primary"]):
            text = ", ".join(shown)
            if text and len(text) + 3 <= end - line.used:
                line.add("  ").add(text, "edge")
                return

    def _draw_gone(self, row: TreeRow, line: Line) -> Line:
        if row.node is None:
            assert row.parent is not None
            title, model = row.parent.name or row.parent.id, row.parent.model or row.parent.kind
            return line.add(f"{safe_text(title)}  {safe_text(model)}  gone", "faint")
        name = f"{row.edge.name} {self.look.symbols.arrow} " if row.edge is not None and row.edge.name else ""
        return line.add(f"{safe_text(name)}{safe_text(row.node.name)}  {safe_text(row.node.driver)}  gone", "faint")

    def _draw_parent(self, row: TreeRow, line: Line) -> Line:
        parent = row.parent
        assert parent is not None
        _, access, _ = self._columns(line.width)
        line.add(safe_text(parent.name or parent.id), "parent", limit=access - line.used)
        line.add("  ").add(safe_text(parent.model or parent.kind), "driver", limit=access - line.used - 1)
        self._add_hidden(row, line, access)
        edges = self.state.graph.children(parent.key)
        if not edges and parent.kind == "device":
            line.add("  no medium", "dim", limit=access - line.used)
        edge = next((edge for edge in edges if edge.child is not None), None)
        node = self.state.graph.nodes.get(edge.child) if edge is not None and edge.child is not None else None
        line.to(access)
        if edge is None or node is None:
            return line
        if not self.state.graph.permissions_known and not edge.perm:
            return line.right("", _ACCESS + _ALLOCATED).right(size_short(node.size), _SIZE, "size")
        mode = "rw" if "write" in edge.perm else "ro"
        line.right(mode, _ACCESS, f"state.{mode}").right("", _ALLOCATED)
        return line.right(size_short(node.size), _SIZE, "size")

    def _draw_broken(self, row: TreeRow, line: Line) -> Line:
        edge, symbols = row.edge, self.look.symbols
        assert edge is not None
        line.add(safe_text(edge.name), "edge").add(" ").add(symbols.error, "state.error").add(" ")
        reason = safe_text(edge.error or "this link leads nowhere")
        if edge.filename:
            name = safe_text(edge.filename)
            reason = reason.replace(f" '{name}'", "").replace(f"'{name}'", "the file")
            # Which file it is comes before the whole reason, which the inspector has too.
            shown = name if "://" in name else basename(name)
            room = max(line.room - len(reason) - 2, min(16, line.room // 3))
            line.add(elide_middle(shown, room, symbols.ellipsis), "strong").add("  ")
        return line.add(elide_middle(reason, line.room, symbols.ellipsis), "state.error")

    def _draw_node(self, row: TreeRow, line: Line) -> Line:
        node, symbols = row.node, self.look.symbols
        assert node is not None
        spark, access, _ = self._columns(line.width)
        if row.edge is not None and (row.depth or row.edge.parent_kind in ("monitor", "user")):
            self._draw_edge(row.edge, line, row.filters)
        # The name comes first, then the badges; driver and file name take what is left.
        room, name = max(0, spark - line.used), safe_text(node.name)
        signs = fitted(badges(self.state, row, symbols), max(room - len(name) - 1, room // 4))
        end = spark - min(room, sum(len(text) + 1 for text, _ in signs))
        # What holds a format's data is written lighter, so that the chain itself stands out.
        style = "dim" if row.kind == REFERENCE else "node" if row.expandable or not row.depth else "text"
        if self.filter_text and self.filter_text.casefold() in row_text(row):
            style = "match"
        line.add(name, style, limit=max(4, end - line.used))
        driver = safe_text(node.driver)
        if end - line.used - 3 >= min(len(driver), 5):
            line.add("  ").add(driver, "driver", limit=end - line.used - 1)
        if row.kind == REFERENCE:
            line.add(f"  {symbols.see} shown above", "dim", limit=end - line.used)
            if self.permissions_shown:
                self._draw_permissions(row, line, spark, access)
            return line
        self._add_hidden(row, line, end)
        name = safe_text(basename(node.filename))
        if self.permissions_shown:
            self._draw_roles(row, line, end)
        elif name and not self.state.graph.child(node.name, "file") and end - line.used >= 10:
            line.add("  ").add(elide_middle(name, end - line.used - 1, symbols.ellipsis), "file")
        line.to(end)
        for text, style in signs:
            line.add(" ", limit=spark - line.used).add(text, style, limit=spark - line.used)
        line.to(spark)
        if self.permissions_shown:
            self._draw_permissions(row, line, spark, access)
        elif spark < access:
            picture = sparkline(self.state.io.bins(node.name, access - spark - 1), symbols.spark)
            line.add(" ").add(picture, "spark")
        mode = "ro" if node.read_only else "rw"
        line.right(mode, _ACCESS, f"state.{mode}")
        line.right("" if node.allocated is None else size_short(node.allocated), _ALLOCATED, "size")
        return line.right(size_short(node.size), _SIZE, "size")

    def _add_hidden(self, row: TreeRow, line: Line, end: int) -> None:
        if row.hidden:
            line.add(f"  +{row.hidden}", "dim", limit=end - line.used)
