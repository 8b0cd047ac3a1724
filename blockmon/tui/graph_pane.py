"""The graph as a tree of nodes and edges."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.timer import Timer

from blockmon.model.format import basename, elide_middle, safe_text, size_short, sparkline
from blockmon.model.graph import EdgeInfo
from blockmon.model.marks import ADDED, CHANGED, REMOVED, ChangeMarks
from blockmon.model.refresher import Changes, ScreenState
from blockmon.model.tree import BROKEN, GONE, PARENT, REFERENCE, TreeRow, flatten, nearest, row_text, with_gone
from blockmon.tui.actions import NODE_ACTIONS
from blockmon.tui.graph_badges import badges, fitted
from blockmon.tui.inspect_text import permission_letters
from blockmon.tui.line import Line
from blockmon.tui.look import Look
from blockmon.tui.rows import RowsPane
from blockmon.tui.subject import BrokenEdgeSubject, NodeSubject, ParentSubject, Subject

_INDENT = 2
_SPARKS = ((60, 8), (50, 5))
"""From which width on the sparkline has how many cells."""
# Cells of the columns at the right: access, allocated, size; each with a blank before it.
_ACCESS, _ALLOCATED, _SIZE = 3, 6, 6
_PERMISSIONS = 10
_MARKS = {ADDED: "state.completed", CHANGED: "state.notable", REMOVED: "state.error"}


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
        Binding(
            "v", "permissions", "show what each link takes and lets others have", show=False, id="graph.permissions"
        ),
        Binding("F", "filters", "fold filters into the link below them", show=False, id="graph.filters"),
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

    def __init__(
        self,
        look: Look,
        state: ScreenState,
        *,
        clock: Callable[[], float] = time.monotonic,
        id: str | None = None,
    ) -> None:
        super().__init__(look, id=id)
        self.state = state
        self.rows: list[TreeRow] = []
        self.folded: set[str] = set()
        self.filters_folded = False
        self.permissions_shown = False
        self.marks = ChangeMarks()
        self._clock = clock
        self._fading: Timer | None = None

    # What there is.

    @property
    def row(self) -> TreeRow | None:
        """The row under the cursor."""
        return self.rows[self.cursor] if self.cursor < len(self.rows) else None

    def subject(self) -> Subject | None:
        """What the cursor is on."""
        row = self.row
        if row is None or row.kind == GONE:
            return None
        if row.node is not None:
            return NodeSubject(row.node.name, row.edge)
        if row.parent is not None:
            return ParentSubject(row.parent.key)
        return BrokenEdgeSubject(row.edge) if row.edge is not None else None

    def model_changed(self, changes: Changes) -> None:
        """Take in a new snapshot."""
        if changes.graph.rows or (changes.status and self.state.connected):
            seen = self.display and self.size.area > 0
            self.marks.update(self.state.graph, changes.graph, self.rows, self._clock(), seen=seen)
        if changes.graph.rows:
            self.rebuild()
            self._fade_later()
        elif changes.io or changes.jobs or changes.status:
            self.update_rows()

    def rebuild(self) -> None:
        """Lay out the tree anew; the cursor stays with what it was on, and that where it was on the screen."""
        before, was_on, place = self.rows, self.subject(), self.cursor
        rows = flatten(self.state.graph, self.folded, self.filter_text, fold_filters=self.filters_folded)
        self.rows = with_gone(rows, self.marks.gone) if self.marks.gone and not self.filter_text else rows
        if before:
            line = place - self.top
            self.cursor = nearest(before, place, self.rows)
            self.top = max(0, self.cursor - line)
            self.show_row(self.cursor)
        self.update_rows()
        if self.subject() != was_on:
            self.cursor_moved()
        if self.is_mounted:
            self.screen.refresh_bindings()

    # Marks of what has changed.

    def _fade_later(self) -> None:
        """Take the marks away when their time has come, and not a moment before: nothing is sent until then."""
        due = self.marks.next_fade
        if self._fading is not None:
            self._fading.stop()
            self._fading = None
        if due is not None and self.is_mounted:
            self._fading = self.set_timer(max(0.05, due - self._clock()), self._fade)

    def _fade(self) -> None:
        had_gone = bool(self.marks.gone)
        if self.marks.fade(self._clock()):
            if had_gone:
                self.rebuild()
            else:
                self.update_rows()
        self._fade_later()

    def on_show(self, event: events.Show) -> None:
        """What changed while the tree was out of sight is news from now on."""
        self.marks.look(self._clock())
        self._fade_later()

    def mark(self, index: int) -> tuple[str, str]:
        sign = self.marks.sign(self.rows[index])
        return sign, _MARKS.get(sign, "text")

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
        if row.kind == BROKEN or (row.kind == GONE and row.node is None):
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
        if row.edge is not None and row.edge.parent_kind != "monitor":
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
        assert row.node is not None
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
        if self.filter_text and not self._is_match(self.cursor):
            self._next_match(1, stay=True)

    def filter_hint(self) -> str:
        return super().filter_hint() if self.filtering else "n N next  Esc clear"

    def _is_match(self, index: int) -> bool:
        return index < len(self.rows) and self.filter_text.casefold() in row_text(self.rows[index])

    def _next_match(self, step: int, *, stay: bool = False) -> None:
        """On to the next row that itself has what is looked for, round the ends; the rows between only lead there."""
        count = len(self.rows)
        for distance in range(0 if stay else 1, count + 1 if count else 0):
            index = (self.cursor + step * distance) % count
            if self._is_match(index):
                self.go_to(index)
                return

    async def _on_key(self, event: events.Key) -> None:
        """While something is looked for, n and N go on to the next and the previous place."""
        if self.filter_text and not self.filtering and event.key in ("n", "N"):
            self._next_match(1 if event.key == "n" else -1)
            event.stop()
            event.prevent_default()
            return
        await super()._on_key(event)

    def check_consume_key(self, key: str, character: str | None) -> bool:
        return super().check_consume_key(key, character) or (bool(self.filter_text) and key in ("n", "N"))

    def title_note(self) -> str:
        if self.state.lost is not None:
            return "as last seen"
        return "filters folded" if self.filters_folded else ""

    def action_permissions(self) -> None:
        self.permissions_shown = not self.permissions_shown
        self.update_rows()

    def action_filters(self) -> None:
        self.filters_folded = not self.filters_folded
        self.rebuild()

    def on_focus(self) -> None:
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
        elif row is not None and row.kind == REFERENCE:
            self._go_to_node(row)

    def _go_to_node(self, row: TreeRow) -> None:
        """From a reference to the one place where the node is shown in full."""
        self.go_to(
            next((n for n, r in enumerate(self.rows) if r.node == row.node and r.kind != REFERENCE), self.cursor)
        )

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
        elif row is not None and row.kind == REFERENCE:
            self._go_to_node(row)

    def action_fold_all(self) -> None:
        self.folded = {row.fold_key for row in flatten(self.state.graph) if row.expandable and row.depth <= 1}
        self.rebuild()

    def action_unfold_all(self) -> None:
        self.folded.clear()
        self.rebuild()

    def reveal(self, subject: Subject) -> None:
        """Bring the cursor to a node or parent, unfolding what hides it; nothing where the tree does not have it."""
        for whole in (False, True):
            if whole:
                self.folded.clear()
                self.filters_folded = False
                if self.filter_text:
                    self._set_filter("")
                self.rebuild()
            for index, row in enumerate(self.rows):
                if row.kind == REFERENCE:
                    continue
                name = row.node.name if row.node is not None else None
                key = row.parent.key if row.parent is not None else None
                if (isinstance(subject, NodeSubject) and name == subject.name) or (
                    isinstance(subject, ParentSubject) and key == subject.key
                ):
                    self.go_to(index)
                    return
