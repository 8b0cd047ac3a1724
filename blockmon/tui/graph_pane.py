"""The graph as a tree of nodes and edges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.message import Message

from blockmon.model.format import basename, elide_middle, safe_text, size_short, sparkline
from blockmon.model.graph import EdgeInfo
from blockmon.model.refresher import Changes, ScreenState
from blockmon.model.tree import BROKEN, PARENT, REFERENCE, TreeRow, flatten
from blockmon.tui.actions import NODE_ACTIONS
from blockmon.tui.line import Line
from blockmon.tui.look import Look
from blockmon.tui.rows import RowsPane
from blockmon.tui.subject import BrokenEdgeSubject, NodeSubject, ParentSubject, Subject

_INDENT = 2
_SPARKS = ((60, 8), (50, 5))
"""From which width on the sparkline has how many cells."""
# Cells of the columns at the right: access, allocated, size; each with a blank before it.
_ACCESS, _ALLOCATED, _SIZE = 3, 6, 6


# Why every node of a chain but the topmost is busy; the tree shows as much by its shape.
_BACKING_REASON = "node is used as backing hd of "


class GraphPane(RowsPane):
    """The tree. Its right-hand columns are the I/O of the last seconds, the access, and allocated and virtual size."""

    title = "Graph"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "choose", "inspect", key_display="Enter", id="graph.inspect"),
        Binding("space", "fold", "fold", key_display="Space", id="graph.fold"),
        Binding("left,h", "fold_or_up", "fold, or go to the parent", show=False),
        Binding("right,l", "unfold_or_down", "unfold, or go to the first child", show=False),
        Binding("minus", "fold_all", "fold every chain", key_display="-", show=False),
        Binding("plus,equals_sign", "unfold_all", "unfold everything", key_display="+", show=False),
        Binding("slash", "filter", "filter", key_display="/", id="graph.filter"),
        Binding("y", "copy", "copy the name", show=False, id="graph.copy"),
        # Direct keys for what the actions menu lists.
        *(
            Binding(action.key, f"app.node('{action.key}')", action.name, show=False, id=f"node.{action.command}")
            for action in NODE_ACTIONS
        ),
    ]

    class Selected(Message):
        """The cursor came to another row."""

        can_bubble = True

        def __init__(self, subject: Subject | None) -> None:
            super().__init__()
            self.subject = subject

    class Chosen(Selected):
        """A row was chosen to be looked at closely."""

    def __init__(self, look: Look, state: ScreenState, *, id: str | None = None) -> None:
        super().__init__(look, id=id)
        self.state = state
        self.rows: list[TreeRow] = []
        self.folded: set[str] = set()

    # What there is.

    @property
    def row(self) -> TreeRow | None:
        """The row under the cursor."""
        return self.rows[self.cursor] if self.cursor < len(self.rows) else None

    def subject(self) -> Subject | None:
        """What the cursor is on."""
        row = self.row
        if row is None:
            return None
        if row.node is not None:
            return NodeSubject(row.node.name, row.edge)
        if row.parent is not None:
            return ParentSubject(row.parent.key)
        return BrokenEdgeSubject(row.edge) if row.edge is not None else None

    def model_changed(self, changes: Changes) -> None:
        """Take in a new snapshot."""
        if changes.graph.rows:
            self.rebuild()
        elif changes.io or changes.jobs or changes.status:
            self.update_rows()

    def rebuild(self) -> None:
        """Lay out the tree anew; the cursor stays with what it was on."""
        old, was_on = self.row, self.subject()
        self.rows = flatten(self.state.graph, self.folded, self.filter_text)
        if old is not None:
            name = old.node.name if old.node is not None else None
            places = [number for number, row in enumerate(self.rows) if row.key == old.key] or [
                number
                for number, row in enumerate(self.rows)
                if name is not None and row.node is not None and row.node.name == name and row.kind != REFERENCE
            ]
            self.cursor = places[0] if places else min(self.cursor, max(0, len(self.rows) - 1))
            self.show_row(self.cursor)
        self.update_rows()
        if self.subject() != was_on:
            self.cursor_moved()
        if self.is_mounted:
            self.screen.refresh_bindings()

    def count(self) -> int:
        return len(self.rows)

    def empty_text(self) -> Sequence[str]:
        state = self.state
        if state.lost is not None:
            return (f"The connection is lost: {safe_text(state.lost)}",)
        if state.graph_error is not None:
            return (f"No graph: {safe_text(state.graph_error)}",)
        if not state.connected:
            return ("starting …" if self.look.symbols.ellipsis == "…" else "starting ...",)
        if self.filter_text:
            return ("Nothing here has that in a name, driver or file name.",)
        return (
            "No block nodes yet.",
            "",
            "Give one at the prompt (F5), for instance",
            "  blockdev-add driver=qcow2 node-name=disk file.driver=file file.filename=/img/disk.qcow2",
            "or start as  blockmon IMAGE",
        )

    # Drawing.

    def _columns(self, width: int) -> tuple[int, int, int]:
        """Where the sparkline, the access column and the sizes begin; the sparkline goes first where it is narrow."""
        sizes = width - (_ALLOCATED + _SIZE)
        access = sizes - _ACCESS
        cells = next((cells + 1 for least, cells in _SPARKS if width >= least), 0)
        return access - cells, access, sizes

    def heading(self, line: Line) -> Line | None:
        if not self.rows:
            return None
        spark, access, _ = self._columns(line.width)
        line.add("edge → node  driver" if self.look.symbols.arrow == "→" else "edge -> node  driver", "heading")
        if spark < access:
            line.to(spark).right("I/O", access - spark, "heading")
        line.to(access)
        return line.right("", _ACCESS).right("used", _ALLOCATED, "heading").right("size", _SIZE, "heading")

    def draw(self, index: int, line: Line) -> Line:
        row = self.rows[index]
        self._draw_branch(row, line)
        if row.kind == PARENT:
            return self._draw_parent(row, line)
        if row.kind == BROKEN:
            return self._draw_broken(row, line)
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

    def _draw_edge(self, edge: EdgeInfo | None, line: Line) -> None:
        if edge is None:
            return
        symbols = self.look.symbols
        name = edge.name or edge.parent_kind
        if edge.parent_kind in ("monitor", "user"):
            name = edge.parent_kind
        line.add(safe_text(name), "edge").add(" ")
        line.add(symbols.frozen_arrow if edge.frozen else symbols.arrow, "edge").add(" ")

    def _draw_parent(self, row: TreeRow, line: Line) -> Line:
        parent = row.parent
        assert parent is not None
        _, access, _ = self._columns(line.width)
        line.add(safe_text(parent.name or parent.id), "parent", limit=access - line.used)
        line.add("  ").add(safe_text(parent.model or parent.kind), "driver", limit=access - line.used - 1)
        self._add_hidden(row, line, access)
        edges = self.state.graph.children(parent.key)
        edge = next((edge for edge in edges if edge.child is not None), None)
        node = self.state.graph.nodes.get(edge.child) if edge is not None and edge.child is not None else None
        line.to(access)
        if edge is None or node is None:
            return line
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
            self._draw_edge(row.edge, line)
        badges = self._badges(row)
        badge_width = min(sum(len(text) + 1 for text, _ in badges), max(0, spark - line.used) // 2)
        end = spark - badge_width
        # What holds a format's data is written lighter, so that the chain itself stands out.
        style = "dim" if row.kind == REFERENCE else "node" if row.expandable or not row.depth else "text"
        line.add(safe_text(node.name), style, limit=max(4, end - line.used))
        line.add("  ", limit=end - line.used).add(safe_text(node.driver), "driver", limit=end - line.used - 1)
        if row.kind == REFERENCE:
            return line.add(f"  {symbols.see} shown above", "dim", limit=end - line.used)
        self._add_hidden(row, line, end)
        name = safe_text(basename(node.filename))
        if name and not self.state.graph.child(node.name, "file") and end - line.used >= 10:
            line.add("  ").add(elide_middle(name, end - line.used - 1, symbols.ellipsis), "file")
        line.to(end)
        for text, style in badges:
            line.add(" ", limit=spark - line.used).add(text, style, limit=spark - line.used)
        line.to(spark)
        if spark < access:
            picture = sparkline(self.state.io.bins(node.name, access - spark - 1), symbols.spark)
            line.add(" ").add(picture, "spark")
        mode = "ro" if node.read_only else "rw"
        line.right(mode, _ACCESS, f"state.{mode}")
        line.right("" if node.allocated is None else size_short(node.allocated), _ALLOCATED, "size")
        return line.right(size_short(node.size), _SIZE, "size")

    def _add_hidden(self, row: TreeRow, line: Line, end: int) -> None:
        if row.hidden:
            line.add(f"  +{row.hidden}", "dim", limit=end - line.used)

    def _badges(self, row: TreeRow) -> list[tuple[str, str]]:
        """Signs of what goes on at a node: errors, jobs, other reasons why it is busy."""
        node, symbols = row.node, self.look.symbols
        assert node is not None
        badges: list[tuple[str, str]] = []
        if row.kind == REFERENCE:
            return badges
        if node.error:
            badges.append((f"{symbols.error} error", "state.error"))
        seen: set[str] = set()
        for edge in self.state.graph.jobs_on(node.name):
            parent = self.state.graph.parents.get(edge.parent)
            job_id = parent.name or parent.id if parent is not None else edge.parent
            if job_id in seen:
                continue
            seen.add(job_id)
            job = self.state.jobs.live(job_id)
            status = job.status if job is not None else "running"
            badges.append((f"{symbols.state(status)} {safe_text(job_id)}", f"state.{status}"))
        if not seen and any(not reason.startswith(_BACKING_REASON) for reason in node.busy):
            badges.append((f"{symbols.busy} busy", "state.busy"))
        return badges

    # Keys.

    def cursor_moved(self) -> None:
        self.post_message(self.Selected(self.subject()))

    def row_chosen(self) -> None:
        self.post_message(self.Chosen(self.subject()))

    def action_choose(self) -> None:
        self.row_chosen()

    def action_copy(self) -> None:
        row = self.row
        if row is None:
            return
        name = row.node.name if row.node else row.parent.name if row.parent else row.edge.filename if row.edge else ""
        if name:
            self.post_message(self.Copied(name, safe_text(name)))

    def filter_changed(self) -> None:
        self.rebuild()

    def on_focus(self) -> None:
        super().on_focus()
        self.cursor_moved()

    def _set_folded(self, row: TreeRow, folded: bool) -> None:
        if folded:
            self.folded.add(row.fold_key)
        else:
            self.folded.discard(row.fold_key)
        self.rebuild()

    def action_fold(self) -> None:
        row = self.row
        if row is not None and row.expandable:
            self._set_folded(row, row.expanded)

    def action_fold_or_up(self) -> None:
        row = self.row
        if row is not None and row.expandable and row.expanded:
            self._set_folded(row, True)
        elif row is not None and row.depth:
            self.go_to(max(n for n in range(self.cursor) if self.rows[n].depth == row.depth - 1))

    def action_unfold_or_down(self) -> None:
        row = self.row
        if row is not None and row.expandable and not row.expanded:
            self._set_folded(row, False)
        elif row is not None and row.expandable:
            self.go_to(self.cursor + 1)
        elif row is not None and row.kind == REFERENCE and row.node is not None:
            self.go_to(next(n for n, r in enumerate(self.rows) if r.node == row.node and r.kind != REFERENCE))

    def action_fold_all(self) -> None:
        self.folded = {row.fold_key for row in flatten(self.state.graph) if row.expandable and row.depth <= 1}
        self.rebuild()

    def action_unfold_all(self) -> None:
        self.folded.clear()
        self.rebuild()
