"""The graph as a tree of nodes and edges."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.timer import Timer

from blockmon.model.format import safe_text
from blockmon.model.marks import ADDED, CHANGED, REMOVED, ChangeMarks
from blockmon.model.refresher import Changes, ScreenState
from blockmon.model.tree import GONE, REFERENCE, TreeRow, flatten, nearest, renewed, row_text, with_gone
from blockmon.tui.actions import NODE_ACTIONS
from blockmon.tui.graph_drawing import GraphDrawing
from blockmon.tui.look import Look
from blockmon.tui.subject import BrokenEdgeSubject, NodeSubject, ParentSubject, Subject

_MARKS = {ADDED: "state.completed", CHANGED: "state.notable", REMOVED: "state.error"}


class GraphPane(GraphDrawing):
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

    def __init__(
        self,
        look: Look,
        state: ScreenState,
        *,
        clock: Callable[[], float] = time.monotonic,
        id: str | None = None,
    ) -> None:
        super().__init__(look, state, id=id)
        self.folded: set[str] = set()
        self.filters_folded = False
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
        if changes.graph.shape or (changes.graph.rows and (self.filter_text or self.filters_folded)):
            self.rebuild()
            self._fade_later()
        elif changes.graph.rows:
            # The same rows, with other sizes, links and badges: laying out thousands of them anew takes its time.
            self.rows = renewed(self.rows, self.state.graph, changes.graph)
            self.update_rows()
            self._fade_later()
            if self.has_focus:
                self.screen.refresh_bindings()
        elif changes.io or changes.jobs or changes.status:
            self.update_rows()

    def rebuild(self) -> None:
        """Lay out the tree anew; the cursor stays with what it was on, and that where it was on the screen."""
        self._take(flatten(self.state.graph, self.folded, self.filter_text, fold_filters=self.filters_folded))

    def _take(self, rows: list[TreeRow]) -> None:
        """Show these rows, and those that are gone among them."""
        before, was_on, place = self.rows, self.subject(), self.cursor
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
                self._take([row for row in self.rows if row.kind != GONE])
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

    def empty_text(self) -> Sequence[str]:
        state = self.state
        if state.lost is not None:
            return (f"The connection is lost: {safe_text(state.lost)}",)
        if state.graph_error is not None:
            return (f"No graph: {safe_text(state.graph_error)}",)
        if not state.connected:
            return ("starting …" if self.look.symbols.ellipsis == "…" else "starting ...",)
        if not state.graph_known:
            return (f"asking for the graph {self.look.symbols.ellipsis}",)
        if self.filter_text:
            return ("Nothing here has that in a name, driver or file name.",)
        return (
            "No block nodes yet.",
            "",
            "Give one at the prompt (F5), for instance",
            "  blockdev-add driver=qcow2 node-name=disk file.driver=file file.filename=/img/disk.qcow2",
            "or start as  blockmon IMAGE",
        )

    # Keys.

    def cursor_moved(self) -> None:
        self.post_message(self.Selected(self.subject()))

    def row_chosen(self) -> None:
        self.on_choose(self.subject())

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

    def takes(self, event: events.Key) -> bool:
        return super().takes(event) or (bool(self.filter_text) and event.key in ("n", "N"))

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
