"""Everything about one thing: a node, an edge, a parent, a job or an event, in sections."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar

from rich.cells import cell_len
from textual.binding import Binding, BindingType

from blockmon.backend import Backend, CommandError
from blockmon.model.format import safe_text
from blockmon.model.refresher import Changes, ScreenState
from blockmon.tui.inspect_text import Pieces, json_lines, pages_for, wrap
from blockmon.tui.line import Line
from blockmon.tui.look import Look
from blockmon.tui.rows import RowsPane
from blockmon.tui.subject import BrokenEdgeSubject, EventSubject, JobSubject, NodeSubject, ParentSubject, Subject

_JSON = "JSON"


class InspectorPane(RowsPane):
    """The inspector. It follows what is selected in the other panes."""

    title = "Inspector"
    has_cursor = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right,l", "section(1)", "section", key_display="→", id="inspector.section"),
        Binding("left,h", "section(-1)", "previous section", key_display="←", show=False),
        Binding("1", "section_number(1)", "turn to a section", key_display="1-4", show=False),
        *(Binding(str(number), f"section_number({number})", show=False) for number in range(2, 5)),
        Binding("y", "copy", "copy", id="inspector.copy"),
        Binding("r", "reload", "ask again", id="inspector.reload"),
    ]

    def __init__(self, look: Look, state: ScreenState, *, id: str | None = None) -> None:
        super().__init__(look, id=id)
        self.state = state
        self.backend: Backend | None = None
        self.subject: Subject | None = None
        self.section = "Overview"
        self._lines: list[Pieces] = []
        self._wrapped: list[Pieces] = []
        self._wrapped_width = -1
        self._json: Any = None
        self._json_of: tuple[str, int] | None = None
        self._tops: dict[str, int] = {}

    # What there is.

    @property
    def sections(self) -> list[str]:
        """The names of the sections that the subject has."""
        names = list(pages_for(self.state, self.subject))
        if isinstance(self.subject, NodeSubject) and "query-named-block-nodes" in self.state.commands:
            names.append(_JSON)
        return names

    def inspect(self, subject: Subject | None) -> None:
        """Show *subject* from now on, in the section shown before where it has that."""
        if subject == self.subject:
            return
        self.subject = subject
        self.top = 0
        self._tops.clear()
        self.renew()

    def model_changed(self, changes: Changes) -> None:
        """Take in what changed."""
        if changes.graph.rows or changes.io or changes.jobs or changes.status:
            self.renew()

    def renew(self) -> None:
        """Put the text together anew."""
        self._gone()
        sections = self.sections
        section = self.section if self.section in sections else (sections[0] if sections else "")
        if section == _JSON:
            self._lines = self._json_page()
        else:
            page = pages_for(self.state, self.subject).get(section)
            self._lines = page(self.look) if page is not None else []
        self._wrapped_width = -1
        self.update_rows()

    def _gone(self) -> None:
        """Forget a subject that does not exist any more."""
        state, subject = self.state, self.subject
        if (
            (isinstance(subject, NodeSubject) and subject.name not in state.graph.nodes)
            or (isinstance(subject, ParentSubject) and subject.key not in state.graph.parents)
            or (isinstance(subject, JobSubject) and state.jobs.by_serial(subject.serial) is None)
            or (isinstance(subject, EventSubject) and subject.number < state.events.first)
        ):
            self.subject = None

    def _json_page(self) -> list[Pieces]:
        assert isinstance(self.subject, NodeSubject)
        wanted = (self.subject.name, self.state.graph.generation)
        if self._json_of != wanted:
            known = self._json_of is not None and self._json_of[0] == wanted[0]
            self._json_of = wanted
            if not known:
                self._json = None
            self.run_worker(self._fetch_json(self.subject.name), group="json", exclusive=True)
        if self._json is None:
            return [[("asking query-named-block-nodes …", "dim")]]
        if isinstance(self._json, CommandError):
            return [[(safe_text(self._json.desc), "state.error")]]
        return json_lines(self._json)

    async def _fetch_json(self, name: str) -> None:
        if self.backend is None:
            return
        try:
            nodes = await self.backend.execute("query-named-block-nodes", {"flat": True})
            answer: Any = next((node for node in nodes if node.get("node-name") == name), None)
            if answer is None:
                answer = CommandError("GenericError", f"query-named-block-nodes does not list node '{name}'")
        except CommandError as error:
            answer = error
        except (asyncio.CancelledError, OSError, EOFError, RuntimeError):
            return
        self._json = answer
        self.renew()

    # Drawing.

    def count(self) -> int:
        width = self.inner_width
        if width != self._wrapped_width:
            self._wrapped = [part for pieces in self._lines for part in wrap(pieces, width)]
            self._wrapped_width = width
        return len(self._wrapped)

    def draw(self, index: int, line: Line) -> Line:
        for text, style in self._wrapped[index]:
            line.add(text, style)
        return line

    def empty_text(self) -> Sequence[str]:
        return ("Nothing is selected.",)

    def title_text(self) -> str:
        subject, state = self.subject, self.state
        dot = f" {self.look.symbols.dot} "
        if isinstance(subject, NodeSubject):
            node = state.graph.nodes.get(subject.name)
            if node is not None:
                return dot.join((safe_text(node.name), node.driver, "ro" if node.read_only else "rw"))
        if isinstance(subject, ParentSubject):
            parent = state.graph.parents.get(subject.key)
            if parent is not None:
                return dot.join((safe_text(parent.name or parent.id), parent.model or parent.kind))
        if isinstance(subject, BrokenEdgeSubject):
            return dot.join((safe_text(subject.edge.name), "broken link"))
        if isinstance(subject, JobSubject):
            job = state.jobs.by_serial(subject.serial)
            if job is not None:
                return dot.join(filter(None, (safe_text(job.id), job.type, job.word)))
        if isinstance(subject, EventSubject):
            return safe_text(state.events[subject.number].name)
        return self.title

    def heading(self, line: Line) -> Line | None:
        sections = self.sections
        if len(sections) < 2 and self.show_title:
            return None
        current = self.section if self.section in sections else sections[0]
        for number, name in enumerate(sections, 1):
            if name == current:
                line.add(f"{number} {name}", "tab-active" if self.has_focus else "strong")
            else:
                line.add(f"{number} ", "faint").add(name, "dim")
            line.add("  ")
        if not self.show_title and self.subject is not None:
            # Among tabs there is no title that would name it.
            text = self.title_text()
            line.to(max(line.used, line.width - cell_len(text))).add(text, "strong")
        return line

    # Keys.

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Asking again makes sense for what was asked for only once."""
        if action == "reload":
            return self.section == _JSON and isinstance(self.subject, NodeSubject)
        return True

    def show_section(self, name: str) -> None:
        """Turn to a section; each keeps its own place."""
        self._tops[self.section] = self.top
        self.section = name
        self.top = self._tops.get(name, 0)
        self.renew()
        self.screen.refresh_bindings()

    def action_section(self, step: int) -> None:
        sections = self.sections
        if sections:
            current = sections.index(self.section) if self.section in sections else 0
            self.show_section(sections[(current + step) % len(sections)])

    def action_section_number(self, number: int) -> None:
        sections = self.sections
        if number <= len(sections):
            self.show_section(sections[number - 1])

    def action_copy(self) -> None:
        text = "\n".join("".join(part for part, _ in pieces).rstrip() for pieces in self._lines)
        if text:
            self.post_message(self.Copied(text, "the page"))

    def action_reload(self) -> None:
        self._json_of = None
        self.renew()
